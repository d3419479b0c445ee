"""Measurements of speed: `python -m benchmarks.NAME`, each against a reference in the same run."""
