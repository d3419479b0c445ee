"""Runs beside each other: comparison, ablation, ensembles, sources left out.

What it may import stands in docs/architecture.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ablation": ["run_ablation"],
        "compare": ["write_comparison"],
        "ensembles": ["make_ensemble"],
    },
)
