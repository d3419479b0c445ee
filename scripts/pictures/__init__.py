"""Figures, overlays and sheets as images.

May import `scripts.command`."""
