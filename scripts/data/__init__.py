"""Datalists, the one preprocessing pipeline, its cache, and the samplers of training.

May import `transforms` and `scripts.command`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "caching": ["CachedDataset"],
        "preprocessing": ["make_augmentation", "make_preprocessing", "make_training_pipeline"],
        "samplers": ["MixedBatchSampler", "ShareSampler"],
    },
)
