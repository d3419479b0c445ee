"""Runs beside each other: comparison, ablation, ensembles, sources left out.

May import everything up to `scripts.evaluation`."""
