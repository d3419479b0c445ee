"""Figures, overlays and sheets as images.

May import `scripts.command`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "figures": ["confusion_matrix", "dice_histogram", "roc"],
        "overlays": ["colorize", "overlay", "panel"],
    },
)
