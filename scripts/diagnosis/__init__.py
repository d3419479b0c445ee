"""Why does a heatmap lie in the background: every known cause on a network and its images, with pictures.

May import everything up to `scripts.inference`, and `scripts.checks`."""
