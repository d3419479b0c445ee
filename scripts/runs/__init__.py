"""The run folder: its files, its weights, where they come from, and the processes that write them.

May import `scripts.command`, `scripts.data` and `scripts.networks`."""
