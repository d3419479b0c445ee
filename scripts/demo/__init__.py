"""The whole way in one command.

May import everything.
"""
