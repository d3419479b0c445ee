"""Figures of merit: metrics, masks, lesions, shortcuts, and the one bootstrap.

May import `scripts.explain`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bootstrap": ["bootstrap_interval"],
        "lesions": ["lesion_summary"],
        "metrics": ["choose_threshold", "classification_metrics", "fit_temperature"],
    },
)
