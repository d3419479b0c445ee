"""The page about one or two runs, made from their files alone.

May import everything up to `scripts.comparison`."""
