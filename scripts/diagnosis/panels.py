"""What the pictures of a diagnosis are made of: figures, cases to show, planes of images and volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from scripts.diagnosis.examination import Examination
from scripts.pictures import overlays
from scripts.pictures.figures import COLORS

__all__ = [
    "AIR",
    "DPI",
    "HEAD",
    "LIMIT",
    "WIDTH",
    "case_of",
    "contour",
    "height_of",
    "new_figure",
    "overlay_of",
    "plane_of",
    "share_in_air",
    "short",
    "show",
    "shown_cases",
]

DPI, WIDTH = 110, 9.0
HEAD, AIR, LIMIT = COLORS[0], COLORS[1], "#444444"


def new_figure(height: float, columns: int, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Figure of the page's width, `height` inches high, and its axes as (rows, columns)."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def shown_cases(examination: Examination, count: int = 4) -> list[int]:
    """Indices of the cases to show: tumors from small to large, the last place for a case without one, if there is."""
    samples = examination.subject.samples
    if samples.tumor is not None:
        area = samples.tumor.flatten(1).sum(1).tolist()
    else:
        area = [float(label > 0) for label in samples.labels]
    tumors = sorted((i for i, value in enumerate(area) if value > 0), key=lambda i: area[i])
    free = [i for i, label in enumerate(samples.labels) if label == 0 and area[i] == 0]
    others = [i for i in range(len(area)) if i not in tumors and i not in free]
    spread = count - bool(free)
    picked = [tumors[int((k + 0.5) * len(tumors) / spread)] for k in range(spread)] if len(tumors) > spread else tumors
    return (picked + free + others)[:count]


def short(name: str, length: int = 13) -> str:
    """The end of a case's name, by which cases of one set differ."""
    return name if len(name) <= length else "…" + name[1 - length :]


def height_of(examination: Examination, i: int) -> float:
    """Height of the shown slice of a volume, in (0, 1): where most of the tumor lies in the head, else most head.

    One height for all pictures of a case, whatever grid they are on; 0.5 for an image.
    """
    samples = examination.subject.samples
    inside = samples.foreground[i]
    if inside.dim() == 3:
        return 0.5
    area = inside.float().sum((0, 1, 2))
    if samples.tumor is not None:
        tumor = (samples.tumor[i] * inside).sum((0, 1, 2))
        area = tumor if bool(tumor.any()) else area
    return (int(area.argmax()) + 0.5) / len(area)


def plane_of(t: Tensor, height: float = 0.5) -> np.ndarray:
    """(1, X, Y) of one sample (C, X, Y[, Z]): first channel; of a volume the slice at that height, see `height_of`."""
    array = t[:1].detach().float()
    if array.dim() == 4:
        array = array[..., int(height * array.shape[3])]
    return array.numpy()


def case_of(
    examination: Examination, i: int, heat: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image with air 0, map in [0, 1] and mask of a case, each (1, X, Y)."""
    samples = examination.subject.samples
    tumor = None if samples.tumor is None or not bool(samples.tumor[i].any()) else samples.tumor[i]
    height = height_of(examination, i)
    inside = plane_of(samples.foreground[i], height) != 0
    image = plane_of(samples.images[i], height)
    image = np.where(inside, np.where(image == 0, 1e-6, image), 0)
    shown = np.zeros_like(image) if heat is None else plane_of(heat, height)
    return image, np.clip(shown, 0, 1), None if tumor is None else plane_of(tumor, height)


def show(axes: Any, picture: np.ndarray, title: str, **options: Any) -> Any:
    """Show a picture without axes; returns what a color bar needs."""
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, fontweight="normal")
    return axes.imshow(picture, **options)


def overlay_of(examination: Examination, i: int, heat: Tensor) -> np.ndarray:
    """A map (1, *spatial) in [0, 1] over a case, RGB."""
    image, shown, mask = case_of(examination, i, heat)
    return overlays.overlay(image, shown, mask=mask, scale=overlays.legible_scale(image.shape))


def contour(axes: Any, examination: Examination, i: int, size: tuple[int, int] | None = None) -> None:
    """Draw the outline of the head, on a grid of `size` (X, Y) cells if given."""
    inside = plane_of(examination.subject.samples.foreground[i], height_of(examination, i))[0].T
    x, y = inside.shape[1], inside.shape[0]
    fx, fy = (1.0, 1.0) if size is None else (size[0] / x, size[1] / y)
    grid = np.arange(x) * fx + fx / 2 - 0.5, np.arange(y) * fy + fy / 2 - 0.5
    axes.contour(*grid, inside, [0.5], colors=["#00c4da"], linewidths=0.9)


def share_in_air(heat: Tensor, inside: Tensor) -> float | None:
    """Share of a map's sum outside the head; None for an empty map."""
    total = float(heat.clamp(min=0).sum())
    return float((heat.clamp(min=0) * ~inside).sum()) / total if total > 0 else None
