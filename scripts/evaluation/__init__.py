"""The jobs that measure a trained run: evaluation, localization, faithfulness, robustness, galleries.

May import everything up to `scripts.inference`."""
