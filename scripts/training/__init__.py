"""Training: engines, losses, stages, handlers and checkpoints.

May import command, data, measures, networks and runs."""
