"""Why does a heatmap lie in the background: every known cause on a network and its images, with pictures.

What it may import stands in docs/architecture.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "diagnose": ["diagnose_run"],
        "inputs": ["prepare"],
        "network": ["build_network", "load_checkpoint"],
    },
)
