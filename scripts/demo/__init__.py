"""The whole way in one command.

What it may import stands in docs/architecture.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "demo": ["phantom_datalist"],
    },
)
