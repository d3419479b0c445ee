"""Figures of merit: metrics, masks, lesions, shortcuts, and intervals, claims.

May import `scripts.explain`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": ["difference_of", "verdict"],
        "intervals": ["case_summary"],
        "lesions": ["lesion_summary"],
        "metrics": ["classification_metrics", "fit_temperature"],
        "thresholds": ["choose_threshold"],
    },
)
