"""Take off what frames a picture before any statistic is made of it: constant borders of any color, on any side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, Pad
from monai.transforms.croppad.dictionary import Cropd, Padd
from monai.utils import ensure_tuple

from transforms.cropping import foreground_box
from transforms.foreground import foreground_mask
from transforms.intensity import plain, quantile

OFFSET_KEY, WINDOW_KEY = "border_offset", "border_window"
_NEAR = 0.03  # of the range: what JPEG leaves of a constant border; the scalp stands out by more than 0.12
_RINGING = 0.15  # of the range: how far JPEG moves pixels of a border next to what it frames
_BLOCK = 8  # pixels: as far as JPEG does so


def content_box(image: np.ndarray) -> tuple[slice, ...]:
    """Find what is left of an image when constant lines are taken off its sides, as often as there are any.

    A line (row, column; of a volume: plane) at the outside goes if all its pixels are equal in every channel, whatever
    their value: a border around a border, and constant air around the head too. What is left is the same whatever was
    put around it. After that lines go that vary by at most 3 % of the range, as a border does that went through JPEG,
    and of a border that is not dark the last lines, in which JPEG mixes it with what it frames.

    Args:
        image: (C, X, Y[, Z]), any real dtype and unit.

    Returns:
        one slice an axis; the whole image where nothing would be left (a constant image).
    """
    whole = tuple(slice(0, n) for n in image.shape[1:])
    exact = _shrink(image, whole, 0.0)
    if exact is None:
        return whole
    inner = image[(slice(None), *exact)]
    step = max(1, inner[0].size // 16384)
    spread = max(float(quantile(channel.reshape(-1)[::step], 0.995) - channel.min()) for channel in inner)
    return _peel(image, _shrink(image, exact, _NEAR * spread) or exact, spread)


def _peel(image: np.ndarray, box: tuple[slice, ...], spread: float) -> tuple[slice, ...]:
    """Take up to `_BLOCK` lines off each side that still show the color of the bright border that was taken off it."""
    dark = None
    for axis in range(len(box)):
        for last in (False, True):
            edge = box[axis].stop if last else box[axis].start - 1
            if not 0 <= edge < image.shape[axis + 1]:
                continue
            if dark is None:
                dark = image.reshape(len(image), -1).min(axis=1) + 0.1 * spread
            color = np.median(_line(image, box, axis, edge), axis=1)
            if (color <= dark).any():
                continue
            for _ in range(min(_BLOCK, box[axis].stop - box[axis].start - 1)):
                place = box[axis].stop - 1 if last else box[axis].start
                off = np.abs(_line(image, box, axis, place) - color[:, None])
                if np.quantile(off, 0.75) > _RINGING * spread:
                    break
                kept = slice(box[axis].start, place) if last else slice(place + 1, box[axis].stop)
                box = (*box[:axis], kept, *box[axis + 1 :])
    return box


def _line(image: np.ndarray, box: tuple[slice, ...], axis: int, place: int) -> np.ndarray:
    """Pixels of one line of a box, (C, N)."""
    index: Any = (slice(None), *box[:axis], place, *box[axis + 1 :])
    return image[index].reshape(len(image), -1)


def _shrink(image: np.ndarray, box: tuple[slice, ...], tolerance: float) -> tuple[slice, ...] | None:
    """Take lines that vary by at most ``tolerance`` off all sides until none is left to take; None: nothing is left."""
    axes, settled, axis = len(box), 0, 0
    while settled < axes:
        start, stop = box[axis].start, box[axis].stop
        first = _varying(image, box, axis, tolerance, range(start, stop))
        if first is None:
            return None
        last = _varying(image, box, axis, tolerance, range(stop - 1, first - 1, -1))
        kept = slice(first, (first if last is None else last) + 1)
        settled = settled + 1 if kept == box[axis] else 1
        box = (*box[:axis], kept, *box[axis + 1 :])
        axis = (axis + 1) % axes
    return box


def _varying(image: np.ndarray, box: tuple[slice, ...], axis: int, tolerance: float, places: range) -> int | None:
    """The first of these lines of a box that varies by more than ``tolerance``; None: none does.

    Looked for in growing blocks: mostly it is the first line of all, and the others need not be read.
    """
    across = tuple(a + 1 for a in range(len(box)) if a != axis)
    done, size = 0, 1
    while done < len(places):
        block = places[done : done + size]
        low, high = min(block[0], block[-1]), max(block[0], block[-1]) + 1
        lines = image[(slice(None), *box[:axis], slice(low, high), *box[axis + 1 :])]
        varies = ((lines.max(axis=across) - lines.min(axis=across)) > tolerance).any(axis=0)
        if varies.any():
            return low + int(varies.argmax()) if places.step > 0 else high - 1 - int(varies[::-1].argmax())
        done, size = done + size, 4 * size
    return None


def head_mask(image: np.ndarray, margin: Sequence[int] | int = 4) -> np.ndarray:
    """Foreground mask of an image with whatever frames it, as the pipeline finds it.

    Args:
        image: (C, X, Y[, Z]), any real dtype and unit.
        margin: as in :func:`head_window`.

    Returns:
        bool (X, Y[, Z]).

    Raises:
        ValueError: When no foreground is found.
    """
    window = head_window(image, margin)
    mask = foreground_mask(image[(slice(None), *window)])
    return on_image(mask, [w.start for w in window], image.shape[1:])


def on_image(values: np.ndarray, offset: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Put values (X, Y[, Z]) whose first one lies at ``offset`` into an image of a shape; 0 elsewhere."""
    target, source = overlap([(o, o + n) for o, n in zip(offset, values.shape, strict=True)], shape)
    result = np.zeros(tuple(shape), values.dtype)
    result[target] = values[source]
    return result


def overlap(box: Sequence[Sequence[int]], shape: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What of a box, [start, stop) an axis, lies in an image of a shape: slices of the image, and of the box."""
    target = tuple(slice(max(0, start), min(n, stop)) for (start, stop), n in zip(box, shape, strict=True))
    return target, tuple(slice(t.start - start, t.stop - start) for t, (start, _) in zip(target, box, strict=True))


def _widths(shape: Sequence[int], margin: Sequence[int] | int) -> list[int]:
    """Air to put around a window: in-plane only, as heads are cut at the first and last slice of a volume."""
    width = max(ensure_tuple(margin))
    return [width, width, 0][: len(shape)]


def surrounded(image: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """An image (C, X, Y[, Z]) with the median of its rim around it: float32, ``widths`` pixels more on both sides."""
    sides = [(w, w) for w in widths]
    levels = rim_level(image)
    return np.stack(
        [np.pad(c, sides, constant_values=v) for c, v in zip(image.astype(np.float32), levels, strict=True)]
    )


def rim_level(image: np.ndarray) -> np.ndarray:
    """Median of each channel over the outermost in-plane lines of an image (C, X, Y[, Z]): (C,), in its unit."""
    rim = [image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]]
    return np.median(np.concatenate([part.reshape(len(image), -1) for part in rim], axis=1), axis=1)


def head_window(image: np.ndarray, margin: Sequence[int] | int = 4) -> tuple[slice, ...]:
    """Find the window of an image that its head fills: without borders, letters in the corners, and frames.

    The head is looked for in what `content_box` leaves, and the window is its bounding box with the margin, borders
    taken off once more. So what lies outside of it has no part in any statistic.

    Args:
        image: (C, X, Y[, Z]), any real dtype and unit.
        margin: pixels kept around the head, one number or one an axis.

    Returns:
        one slice an axis; what `content_box` leaves where no head is found.
    """
    box = content_box(image)
    inner = image[(slice(None), *box)]
    try:
        head = foreground_box(foreground_mask(inner), margin)
    except ValueError:  # said by ForegroundMaskd, with the file's name
        return box
    assert head is not None  # foreground_mask raises rather than finding nothing
    box = inside(box, head)
    return inside(box, content_box(image[(slice(None), *box)]))


def inside(box: Sequence[slice], inner: Sequence[slice]) -> tuple[slice, ...]:
    """A box within a box, in the coordinates of the outer one's image."""
    return tuple(slice(b.start + i.start, b.start + i.stop) for b, i in zip(box, inner, strict=True))


class CropBordersd(Cropd):
    """Crop to the window that the head fills (`head_window`), image and masks alike.

    Adds ``border_offset``, per axis the place of the result's first pixel in the image, and ``border_window``, [start,
    stop] of the result in the image.

    Args:
        keys: the image first, then masks of its size; (C, X, Y[, Z]).
        foreground_key: the user's own mask of the head; where the item has one the window is what `content_box` leaves,
            and never cuts it.
        margin: pixels kept around the head, one number or one an axis.
        allow_missing_keys: skip keys that the item does not have.
    """

    stage = "border"

    def __init__(
        self,
        keys: KeysCollection,
        foreground_key: str = "foreground",
        margin: Sequence[int] | int = 4,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, cropper=Crop(), allow_missing_keys=allow_missing_keys)
        self.foreground_key, self.margin = foreground_key, margin

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the cropped item."""
        item = dict(data)
        image = plain(item[self.keys[0]]).numpy()
        foreground = item.get(self.foreground_key)
        if foreground is None:
            slices = head_window(image, self.margin)
        else:
            slices = content_box(image)
            head = foreground_box(np.asarray(np.asarray(foreground).any(axis=0)))
            if head is not None:
                pairs = zip(slices, head, strict=True)
                slices = tuple(slice(min(b.start, h.start), max(b.stop, h.stop)) for b, h in pairs)
        item[OFFSET_KEY] = [s.start for s in slices]
        item[WINDOW_KEY] = [[s.start, s.stop] for s in slices]
        for key in self.key_iterator(item):
            value = item[key]
            traced = isinstance(value, MetaTensor)
            item[key] = self.cropper(value, slices=slices, lazy=bool(lazy)) if traced else value[(slice(None), *slices)]
        return item


class PadBordersd(Padd):
    """Put air around the window, in-plane, so that what lies there is the same for every image, cropped or not.

    The image gets the median of its rim, masks get 0. ``border_offset`` moves along.

    Args:
        keys: the image first, then masks of its size; (C, X, Y[, Z]).
        margin: pixels, the largest of one an axis.
        allow_missing_keys: skip keys that the item does not have.
    """

    def __init__(self, keys: KeysCollection, margin: Sequence[int] | int = 4, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, padder=Pad(), allow_missing_keys=allow_missing_keys)
        self.margin = margin

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Return the padded item."""
        item = dict(data)
        size = tuple(item[self.keys[0]].shape[1:])
        widths = _widths(size, self.margin)
        place = (slice(None), *(slice(w, w + n) for w, n in zip(widths, size, strict=True)))
        item[OFFSET_KEY] = [start - w for start, w in zip(item[OFFSET_KEY], widths, strict=True)]
        for key in self.key_iterator(item):
            value = item[key]
            if isinstance(value, MetaTensor):
                padded = self.padder(value, to_pad=[(0, 0), *((w, w) for w in widths)], lazy=bool(lazy))
            else:
                padded = value.new_zeros((value.shape[0], *(n + 2 * w for w, n in zip(widths, size, strict=True))))
                padded[place] = value
            if key == self.keys[0]:
                plain(padded).copy_(torch.from_numpy(surrounded(plain(value).numpy(), widths)))
            item[key] = padded
        return item
