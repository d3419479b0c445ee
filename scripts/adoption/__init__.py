"""A segmentation network of somebody's own: taken over, explained as it is, and trained on.

What it may import stands in docs/architecture.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adopt": ["read_stock", "write_run"],
    },
)
