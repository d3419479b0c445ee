"""Pictures put together on one sheet: below each other under a heading, or as rows of labelled tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from scripts.pictures import overlays

__all__ = ["HEADING", "Cell", "stack", "tile_grid"]

HEADING, LABEL = 30, 132  # height of a heading, width of a row's label, in pixels


def stack(heading: str, pictures: Sequence[overlays.RGB]) -> overlays.RGB:
    """Pictures below each other under a heading; the heading alone where there are none."""
    width = max([picture.shape[1] for picture in pictures], default=760)
    height = HEADING + sum(picture.shape[0] + overlays.GAP for picture in pictures)
    canvas = Image.new("RGB", (width, height), overlays.PAPER)
    overlays.write_line(canvas, heading, (0, HEADING / 2), width, size=15)
    top = HEADING
    for picture in pictures:
        canvas.paste(Image.fromarray(picture), (0, top))
        top += picture.shape[0] + overlays.GAP
    return np.asarray(canvas)


Cell = tuple[overlays.RGB | None, str, str]  # picture (None: an empty place), title, line below


def tile_grid(heading: str, rows: Sequence[tuple[str, Sequence[Cell]]]) -> overlays.RGB:
    """Rows of labelled tiles of one size under a heading.

    Args:
        heading: over all.
        rows: (label, cells).

    Raises:
        ValueError: when there is no picture.
    """
    pictures = [picture for _, cells in rows for picture, _, _ in cells if picture is not None]
    if not pictures:
        raise ValueError("grid of tiles without any picture")
    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    step, line = width + overlays.GAP, overlays.LINE
    columns = max(len(cells) for _, cells in rows)
    row_height = height + 2 * line + overlays.GAP
    canvas = Image.new("RGB", (LABEL + columns * step, HEADING + len(rows) * row_height), overlays.PAPER)
    overlays.write_line(canvas, heading, (0, HEADING / 2), canvas.width, size=15)
    for i, (label, cells) in enumerate(rows):
        top = HEADING + i * row_height
        overlays.write_line(canvas, label, (0, top + line + height / 2), LABEL - overlays.GAP)
        for j, (picture, title, below) in enumerate(cells):
            left = LABEL + j * step
            if picture is None:
                continue
            canvas.paste(Image.fromarray(picture), (left, top + line))
            overlays.write_line(canvas, title, (left, top + line / 2), width)
            overlays.write_line(canvas, below, (left, top + line + height + line / 2), width)
    return np.asarray(canvas)
