"""Phantoms: seeded heads with and without tumors, in 2D and 3D, for demonstrations and tests without any real image.

May import `scripts.command`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "acquisition": ["acquire"],
        "dataset": ["Volume", "make_phantoms", "phantom_slice", "phantom_volume"],
        "head": ["Head", "Rendered", "Tumor", "draw_head", "render", "with_tumor"],
        "sequences": ["Case", "phantom_case"],
    },
)
