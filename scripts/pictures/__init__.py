"""Figures, overlays and sheets as images.

Imports nothing of ours."""
