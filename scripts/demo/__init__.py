"""The whole way in one command.

What it may import stands in docs/architecture.md.
"""
