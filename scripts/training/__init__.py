"""Training: engines, losses, stages, handlers and checkpoints.

May import what stands before it, but `scripts.explain`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "engines": ["MultiTaskStep"],
        "losses": ["ClassificationLoss", "EvidenceLoss", "MultiTaskLoss", "SegmentationLoss"],
    },
)
