"""The bundle's Python, under the name that MONAI gives it."""
