"""Datalists, the one preprocessing pipeline, its cache, and the samplers of training.

May import `transforms` and `scripts.command`."""
