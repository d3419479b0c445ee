"""FLAIR-like phantoms: seeded heads with and without tumors, for demonstrations and tests without any real image."""

from __future__ import annotations

from scripts.phantoms.dataset import Volume, acquire, make_phantoms, phantom_slice, phantom_volume
from scripts.phantoms.head import Head, Rendered, Tumor, draw_head, render, with_tumor

__all__ = [
    "Head",
    "Rendered",
    "Tumor",
    "Volume",
    "acquire",
    "draw_head",
    "make_phantoms",
    "phantom_slice",
    "phantom_volume",
    "render",
    "with_tumor",
]
