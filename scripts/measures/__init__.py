"""Figures of merit: metrics, masks, lesions, shortcuts, and the one bootstrap.

May import `scripts.explain`."""
