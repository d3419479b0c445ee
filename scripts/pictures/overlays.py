"""Heatmaps over images as RGB pictures, with PIL and numpy: 1 is red-hot, 0 leaves the image as it is."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from scipy.ndimage import binary_dilation

from scripts.command.files import whole
from scripts.pictures.parts import Part

__all__ = [
    "MARK",
    "TITLES",
    "colorize",
    "gray_image",
    "layers",
    "legible_scale",
    "marked",
    "overlay",
    "panel",
    "png_bytes",
    "png_uri",
    "save",
    "say_empty",
    "with_legend",
    "write_line",
]

RGB = NDArray[np.uint8]

# A part of inferno: still perceptually uniform, but its top is a glowing red-orange, not a pale yellow that would be
# lost on a bright head, and its bottom is dark blue.
COLORMAP, LOWEST, HIGHEST = "inferno", 0.10, 0.70
MASK_COLOR = (0, 229, 255)
PREDICTED_COLOR = (255, 90, 255)
# Of the masks in `layers`.
TRUE_BIT, PREDICTED_BIT = 64, 128
INK, PAPER = (34, 34, 34), (255, 255, 255)
DASH = 4  # pixels of a dash and of a gap
# Percentiles of the foreground that become black and white.
ROBUST = (1.0, 99.5)
TILE = 256  # shortest legible longest side of a tile, in pixels
GAP, LINE, LEGEND = 8, 22, 18
MARK = "TumorLens result"
TITLES = ("image", "heatmap", "overlay", "masks")
EMPTY = "no evidence"


@cache
def _table() -> RGB:
    colors = matplotlib.colormaps[COLORMAP](np.linspace(LOWEST, HIGHEST, 256))[:, :3]
    return np.rint(colors * 255).astype(np.uint8)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _plane(array: Any, what: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A (1, X, Y) array as (Y, X), the way a picture is stored."""
    array = np.asarray(array)
    if array.ndim != 3 or array.shape[0] != 1:
        raise ValueError(f"{what}: expected one channel-first 2D array (1, X, Y), got shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{what}: expected the image's shape {shape}, got {array.shape}; bring it to the image grid")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: values that are not finite")
    return array[0].T


def _mask(array: Any, what: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    plane = _plane(array, what, shape)
    if ((plane != 0) & (plane != 1)).any():
        raise ValueError(f"{what}: expected a mask of 0 and 1, got values from {plane.min()} to {plane.max()}")
    return plane.astype(bool)


def _resize(plane: np.ndarray, scale: int, how: Image.Resampling) -> NDArray[np.float32]:
    if scale == 1:
        return plane.astype(np.float32)
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    return np.asarray(picture.resize((plane.shape[1] * scale, plane.shape[0] * scale), how))


def legible_scale(shape: Sequence[int]) -> int:
    """Whole factor that brings an image (1, X, Y) to at least 256 pixels on its longest side; 1 if it has them."""
    return max(1, -(-TILE // max(shape[-2:])))


def colorize(values: np.ndarray) -> RGB:
    """Colors (..., 3) of values in [0, 1]: a perceptually uniform map from dark blue (0) to red-hot (1)."""
    return _table()[np.rint(np.clip(values, 0, 1) * 255).astype(int)]


def gray_image(image: Any, scale: int = 1) -> RGB:
    """Image as a gray picture, scaled between percentiles 1 and 99.5 of its foreground; air is black.

    Args:
        image: (1, X, Y), any range; the foreground is what is not exactly 0, as everywhere in the pipeline.
        scale: whole enlargement factor.

    Returns:
        (Y * scale, X * scale, 3) uint8.

    Raises:
        ValueError: for another shape, or an image without any foreground.
    """
    plane = _plane(image, "image").astype(np.float32)
    foreground = plane != 0
    if not foreground.any():
        raise ValueError("image: every pixel is 0, there is no foreground to show")
    low, high = np.percentile(plane[foreground], ROBUST)
    gray = (plane - low) / (high - low) if high > low else np.full_like(plane, 0.5)
    gray = np.clip(np.where(foreground, gray, 0.0), 0, 1)
    gray = np.clip(_resize(gray, scale, Image.Resampling.BICUBIC), 0, 1)
    return np.repeat(np.rint(gray * 255).astype(np.uint8)[..., None], 3, axis=2)


def _heat(heatmap: Any, shape: tuple[int, ...], scale: int) -> NDArray[np.float32]:
    plane = _plane(heatmap, "heatmap", shape)
    if plane.min() < 0 or plane.max() > 1 + 1e-5:
        raise ValueError(
            f"heatmap: expected values in [0, 1] (divide by the maximum), got {plane.min():.4g} to {plane.max():.4g}"
        )
    return np.clip(_resize(plane, scale, Image.Resampling.BILINEAR), 0, 1)


def draw_contour(picture: RGB, mask: NDArray[np.bool_], color: tuple[int, int, int], dashed: bool = False) -> None:
    """Color the pixels just outside the mask, so that what is inside stays visible; thicker on larger pictures."""
    scale = picture.shape[0] // mask.shape[0]
    large = mask.repeat(scale, axis=0).repeat(scale, axis=1)
    width = max(1, round(max(large.shape) / 150))
    rows, columns = (np.flatnonzero(large.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return
    top, left = max(0, rows[0] - width), max(0, columns[0] - width)
    large = large[top : rows[-1] + width + 1, left : columns[-1] + width + 1]
    edge = binary_dilation(large, iterations=width) & ~large
    if dashed:
        down, across = (start + np.arange(n) for start, n in zip((top, left), large.shape, strict=True))
        edge &= np.add.outer(down, across) // DASH % 2 == 0
    picture[top:, left:][: edge.shape[0], : edge.shape[1]][edge] = color


def overlay(
    image: Any,
    heatmap: Any,
    mask: Any = None,
    predicted: Any = None,
    alpha: float = 0.6,
    scale: int = 1,
    brightness: float = 1.0,
    parts: Sequence[Part] = (),
) -> RGB:
    """Heatmap over the gray image; opacity is proportional to the value, so that 0 leaves the image as it is.

    A pixel is ``(1 - alpha v) gray + alpha v color(v)``. The true mask is a cyan line, the predicted one a dashed
    magenta line, both just outside the mask; other regions are lines of their own color, dashed where predicted.

    Args:
        image: (1, X, Y), air exactly 0.
        heatmap: (1, X, Y) in [0, 1], 1 = strongest evidence, on the image grid; an empty map is all 0.
        mask, predicted: (1, X, Y) 0/1, or None.
        alpha: opacity where the heatmap is 1.
        scale: whole enlargement factor; `legible_scale` gives one for reading on a page.
        brightness: factor of the gray image, in [0, 1]: thin maps are lost on a bright tumor.
        parts: regions beside the tumor, see `with_legend` for their names.

    Returns:
        (Y * scale, X * scale, 3) uint8, rows from top to bottom.

    Raises:
        ValueError: for shapes that do not fit, a heatmap outside [0, 1], a mask that is not 0/1, no foreground.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, got {alpha}")
    shape = np.asarray(image).shape
    if not 0 <= brightness <= 1:
        raise ValueError(f"brightness: expected 0 to 1, got {brightness}")
    gray = brightness * gray_image(image, scale).astype(np.float32)
    heat = _heat(heatmap, shape, scale)
    picture = np.rint(gray).astype(np.uint8)
    shown = heat > 0
    opacity = alpha * heat[shown][:, None]
    picture[shown] = np.rint((1 - opacity) * gray[shown] + opacity * colorize(heat[shown])).astype(np.uint8)
    if mask is not None:
        draw_contour(picture, _mask(mask, "mask", shape), MASK_COLOR)
    if predicted is not None:
        draw_contour(picture, _mask(predicted, "predicted mask", shape), PREDICTED_COLOR, dashed=True)
    for part in parts:
        for array, dashed in ((part.mask, False), (part.predicted, True)):
            if array is not None:
                draw_contour(picture, _mask(array, f"mask of {part.name}", shape), part.color, dashed)
    return picture


def with_legend(picture: RGB, tumor: str, parts: Sequence[Part], true: bool = True, predicted: bool = True) -> RGB:
    """A picture with the names of its regions below, each beside its line; as it is without parts.

    Args:
        picture: of `overlay`.
        tumor: name of the first region.
        parts: the others.
        true, predicted: whether true and predicted masks are drawn.
    """
    if not parts:
        return picture
    rows = [(tumor, MASK_COLOR, PREDICTED_COLOR), *((part.name, part.color, part.color) for part in parts)]
    words = ["dashed: predicted"] if true and predicted else []
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + LEGEND * len([*rows, *words])), INK)
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    samples: list[list[tuple[int, int]]] = [[(6, 24)]] if true else []
    samples += [[(30, 34), (38, 42), (46, 50)]] if predicted else []
    for i, name in enumerate([*(row[0] for row in rows), *words]):
        middle = picture.shape[0] + LEGEND * (i + 0.5)
        write_line(canvas, name, (58, middle), picture.shape[1] - 60, ink=PAPER)
        if i < len(rows):
            colors = [rows[i][1]] * true + [rows[i][2]] * predicted
            for color, dashes in zip(colors, samples, strict=True):
                for start, stop in dashes:
                    draw.rectangle((start, middle - 1, stop, middle + 1), fill=color)
    return np.asarray(canvas)


def layers(image: Any, heatmap: Any = None, mask: Any = None, predicted: Any = None, parts: Sequence[Part] = ()) -> RGB:
    """Image, map and masks packed into one picture, for a page that lays them over each other itself.

    Args:
        image: (1, X, Y), air exactly 0.
        heatmap: (1, X, Y) in [0, 1], or None.
        mask, predicted: (1, X, Y) 0/1, or None.
        parts: at most three regions beside the tumor.

    Returns:
        (Y, X, 3) uint8: gray value; 255 times the map; 64 in the true mask and 128 in the predicted one, added, and
        for the parts 1 and 2, 4 and 8, 16 and 32.
    """
    shape = np.asarray(image).shape
    packed = np.zeros((shape[2], shape[1], 3), dtype=np.uint8)
    packed[..., 0] = gray_image(image)[..., 0]
    if heatmap is not None:
        packed[..., 1] = np.rint(255 * _heat(heatmap, shape, 1))
    masks = [(mask, "mask", TRUE_BIT), (predicted, "predicted mask", PREDICTED_BIT)]
    for k, part in enumerate(parts):
        masks += [(part.mask, part.name, 4**k), (part.predicted, part.name, 2 * 4**k)]
    for array, what, bit in masks:
        if array is not None:
            packed[..., 2] += bit * _mask(array, what, shape).astype(np.uint8)
    return packed


def _text(picture: RGB, text: str, center: tuple[float, float], size: int, ink: tuple[int, int, int], box: bool) -> RGB:
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    if box:
        left, top, right, bottom = draw.textbbox(center, text, font=_font(size), anchor="mm")
        draw.rectangle((left - 6, top - 4, right + 6, bottom + 4), fill=PAPER)
    draw.text(center, text, font=_font(size), fill=ink, anchor="mm")
    return np.asarray(canvas)


def panel(
    image: Any,
    heatmap: Any,
    mask: Any = None,
    titles: Sequence[str] = TITLES,
    predicted: Any = None,
    caption: str = "",
    alpha: float = 0.6,
    scale: int | None = None,
    empty: str = EMPTY,
    tumor: str = "tumor",
    parts: Sequence[Part] = (),
) -> RGB:
    """Image, heatmap, overlay and masks side by side, with titles, a caption and a color bar from 0 to 1.

    An empty heatmap is shown in words, not as a color.

    Args:
        image, heatmap, mask, predicted, alpha: see `overlay`.
        titles: of the four tiles.
        caption: one short line under the tiles; cut where the color bar begins.
        scale: whole enlargement factor; None: `legible_scale`.
        empty: what is said of an empty heatmap: "no evidence", or less, where it is one slice of a map.
        tumor, parts: name of the first region, and the others, which stand in the last tile with a legend under it.

    Returns:
        (H, W, 3) uint8 on white.

    Raises:
        ValueError: see `overlay`; also for another number of titles.
    """
    if len(titles) != 4:
        raise ValueError(f"titles: expected 4, one a tile, got {len(titles)}")
    shape = np.asarray(image).shape
    scale = legible_scale(shape) if scale is None else scale
    gray, heat = gray_image(image, scale), _heat(heatmap, shape, scale)
    nothing = not heat.any()
    height, width = gray.shape[:2]
    middle = (width / 2, height / 2)
    over = overlay(image, heatmap, mask=mask, alpha=alpha, scale=scale)
    if nothing:
        heat_tile = _text(np.full_like(gray, 238), empty, middle, 17, INK, box=False)
        over = say_empty(over, empty)
    else:
        heat_tile = colorize(heat)
    masks = overlay(image, np.zeros(shape), mask=mask, predicted=predicted, scale=scale, parts=parts)
    masks = with_legend(masks, tumor, parts, mask is not None, predicted is not None)
    tiles = (gray, heat_tile, over, masks)

    tallest = masks.shape[0]
    canvas = Image.new("RGB", (4 * width + 3 * GAP, tallest + 2 * LINE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for i, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        left = i * (width + GAP)
        canvas.paste(Image.fromarray(tile), (left, LINE))
        write_line(canvas, title, (left, LINE / 2), width)
    middle_y = LINE + tallest + LINE / 2
    bar = min(160, width)
    bar_left = canvas.width - bar - 14
    write_line(canvas, caption, (0, middle_y), bar_left - 20)
    ramp = np.broadcast_to(colorize(np.linspace(0, 1, bar)), (10, bar, 3))
    canvas.paste(Image.fromarray(np.ascontiguousarray(ramp)), (bar_left, int(middle_y) - 5))
    draw.text((bar_left - 4, middle_y), "0", font=_font(13), fill=INK, anchor="rm")
    draw.text((canvas.width - 1, middle_y), "1", font=_font(13), fill=INK, anchor="rm")
    return np.asarray(canvas)


def say_empty(picture: RGB, words: str = EMPTY) -> RGB:
    """The picture of an empty map with the words that say so."""
    return _text(picture, words, (picture.shape[1] / 2, picture.shape[0] - 16), 13, INK, box=True)


def write_line(
    canvas: Image.Image, text: str, left_middle: tuple[float, float], width: float, size: int = 13, ink: Any = INK
) -> None:
    """Write one line of text onto a picture, cut to a width in pixels with an ellipsis where something is missing."""
    font = _font(size)
    if font.getlength(text) > width:
        while text and font.getlength(text + "…") > width:
            text = text[:-1]
        text += "…"
    ImageDraw.Draw(canvas).text(left_middle, text, font=font, fill=ink, anchor="lm")


def marked() -> PngImagePlugin.PngInfo:
    """What a PNG file of ours says about itself, so that it is never taken for an image to predict."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", MARK)
    return info


def png_bytes(picture: RGB) -> bytes:
    """An RGB picture (H, W, 3) uint8 as PNG, as small as it gets."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def png_uri(png: bytes) -> str:
    """A PNG as an address that needs no file, for a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def save(picture: RGB, path: str | Path) -> Path:
    """Write an RGB picture (H, W, 3) uint8 as PNG, marked as ours, whole or not at all."""
    with whole(path) as place:
        # Level 3: in less than half the time of the default, and on overlays no larger.
        Image.fromarray(picture).save(place, format="PNG", compress_level=3, pnginfo=marked())
    return Path(path)
