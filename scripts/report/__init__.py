"""The page about one or two runs, made from their files alone.

What it may import stands in docs/architecture.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "report": ["comparison_table", "write_comparison_picture", "write_report"],
    },
)
