"""The parts that take borders off and put air around, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from tests.transforms.images import disc, head
from tests.transforms.images import overlap as dice
from transforms.borders import (
    CropBordersd,
    PadBordersd,
    _peel,
    _shrink,
    _varying,
    content_box,
    head_mask,
    head_window,
    inside,
    on_image,
    overlap,
    rim_level,
    surrounded,
)


def naive(image: np.ndarray) -> tuple[slice, ...]:
    """Lines of equal pixels taken off all sides, one at a time; the whole image where nothing is left."""
    ends = [[0, n] for n in image.shape[1:]]
    changed = True
    while changed:
        changed = False
        for axis in range(len(ends)):
            for side in (0, 1):
                box = [slice(*e) for e in ends]
                if any(s.stop <= s.start for s in box):
                    return tuple(slice(0, n) for n in image.shape[1:])
                box[axis] = (
                    slice(box[axis].start, box[axis].start + 1)
                    if side == 0
                    else slice(box[axis].stop - 1, box[axis].stop)
                )
                line = image[(slice(None), *box)].reshape(len(image), -1)
                if (line == line[:, :1]).all():
                    ends[axis][side] += 1 - 2 * side
                    changed = True
    return tuple(slice(*e) for e in ends)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dims", [2, 3])
def test_constant_lines_go_from_all_sides_as_often_as_there_are_any(seed, dims):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 2, (1 + seed % 2, *rng.integers(1, 6, dims))) * 100.0
    for _ in range(2):
        widths = [tuple(pair) for pair in rng.integers(0, 8, (dims, 2))]
        image = np.pad(image, [(0, 0), *widths], constant_values=float(rng.integers(0, 3) * 50))
    whole = tuple(slice(0, n) for n in image.shape[1:])
    assert (_shrink(image, whole, 0.0) or whole) == naive(image)


@pytest.mark.parametrize("place", [*range(25), 83, 84, 85, 86, 99])
def test_the_first_varying_line_is_found_from_either_side(place):
    image = np.full((2, 4, 100), 7.0)
    image[1, 2, place] = 7.5
    box = (slice(0, 4), slice(0, 100))
    assert _varying(image, box, 1, 0.0, range(100)) == place
    assert _varying(image, box, 1, 0.0, range(99, -1, -1)) == place
    assert _varying(image, box, 1, 0.0, range(place + 1, 100)) is None
    assert _varying(image, box, 1, 0.0, range(place - 1, -1, -1)) is None
    assert _varying(image, box, 1, 0.5, range(100)) is None, "as much as is tolerated"
    assert _varying(image, box, 1, 0.49, range(100)) == place
    assert _varying(image, (slice(0, 2), slice(0, 100)), 1, 0.0, range(100)) is None, "outside of the box"
    image[0, 3, max(0, place - 3)] = 0
    image[0, 3, min(99, place + 3)] = 0
    assert _varying(image, box, 1, 0.0, range(100)) == max(0, place - 3)
    assert _varying(image, box, 1, 0.0, range(99, -1, -1)) == min(99, place + 3)


@pytest.mark.parametrize("level", [0, 1000, -1000])
@pytest.mark.parametrize(("noise", "start"), [(2.9, 10), (3.0, 10), (3.1, 0)])
def test_what_jpeg_leaves_of_a_border_is_up_to_three_hundredths_of_the_range(noise, start, level):
    x, y = np.indices((40, 40))
    chess = (x + y) % 2
    image = np.where((abs(x - 19.5) < 10) & (abs(y - 19.5) < 10), 100.0, noise) * chess
    assert content_box(image[None] + level) == (slice(start, 40 - start),) * 2


def lined(color: float, delta: float, lines: int, near: int = 20) -> np.ndarray:
    """Black and white (0 and 100) in [5, 25), a color around; lines at the start of axis 0 that are near the color."""
    image = np.full((1, 30, 30), float(color))
    image[0, 5:25, 5:25] = np.indices((20, 20)).sum(0) % 2 * 100.0
    image[0, 5 : 5 + lines, 5:25] = color + 100.0
    image[0, 5 : 5 + lines, 5 : 5 + near] = color + delta
    return image


BOX = (slice(5, 25), slice(5, 25))


@pytest.mark.parametrize(
    ("color", "delta", "lines", "near", "taken"),
    [
        (60, 0, 3, 20, 3), (60, 15, 3, 20, 3), (60, -15, 3, 20, 3), (60, 15.1, 3, 20, 0), (60, -15.1, 3, 20, 0),
        (60, 0, 8, 20, 8), (60, 0, 12, 20, 8),  # as far as JPEG reaches
        (60, 0, 3, 16, 3), (60, 0, 3, 15, 0),  # three quarters of the line
        (10, 0, 3, 20, 0), (10.1, 0, 3, 20, 3), (0, 0, 3, 20, 0),  # a dark border shows air
    ],
)  # fmt: skip
def test_lines_that_still_show_a_bright_border_go_with_it(color, delta, lines, near, taken):
    image = lined(color, delta, lines, near)
    assert _peel(image, BOX, 100.0) == (slice(5 + taken, 25), slice(5, 25))
    assert _peel(image[:, ::-1], BOX, 100.0) == (slice(5, 25 - taken), slice(5, 25))
    assert _peel(image.swapaxes(1, 2), BOX, 100.0) == (slice(5, 25), slice(5 + taken, 25))
    assert _peel(image.swapaxes(1, 2)[:, :, ::-1], BOX, 100.0) == (slice(5, 25), slice(5, 25 - taken))


def test_a_border_of_one_line_is_one():
    image = lined(60, 0, 3)[:, 4:]
    assert _peel(image, (slice(1, 21), slice(5, 25)), 100.0) == (slice(4, 21), slice(5, 25))
    mirrored = lined(60, 0, 3)[:, ::-1][:, :-4]
    assert _peel(mirrored, BOX, 100.0) == (slice(5, 22), slice(5, 25))


def test_where_there_is_no_border_nothing_is_taken_for_one():
    image = lined(60, 0, 3)
    image[0, -1] = 60.0
    inner = image[:, 5:, 5:]  # touches the start of both axes; the last line has the color of the first ones
    assert _peel(inner, (slice(0, 20), slice(0, 20)), 100.0)[0].start == 0


def test_a_border_that_is_dark_in_one_channel_stays_and_a_line_is_left():
    image = np.concatenate([lined(60, 0, 3), lined(0, 0, 3)])
    assert _peel(image, BOX, 100.0) == BOX
    flat = np.full((1, 30, 30), 60.0)
    flat[0, 0, 0] = 0.0
    assert _peel(flat, (slice(5, 9), slice(5, 25)), 100.0)[0] == slice(8, 9)


def test_boxes_within_boxes_and_what_of_a_box_lies_in_an_image():
    assert inside((slice(2, 9), slice(5, 8)), (slice(1, 4), slice(0, 3))) == (slice(3, 6), slice(5, 8))
    assert overlap([(-2, 3), (1, 9), (4, 6)], (5, 6, 9)) == (
        (slice(0, 3), slice(1, 6), slice(4, 6)), (slice(2, 5), slice(0, 5), slice(0, 2)),
    )  # fmt: skip
    values = np.arange(1, 7, dtype=np.int16).reshape(2, 3)
    placed = on_image(values, (1, -1), (4, 3))
    assert placed.dtype == np.int16
    assert placed.tolist() == [[0, 0, 0], [2, 3, 0], [5, 6, 0], [0, 0, 0]]


@pytest.mark.parametrize("seed", range(6))
def test_the_rim_are_the_first_and_last_rows_and_columns(seed):
    image = np.random.default_rng(seed).normal(size=(1, 5, 4))
    lines = [*image[0, 0], *image[0, 4], *image[0, :, 0], *image[0, :, 3]]
    assert rim_level(image)[0] == np.median(lines)


def test_the_level_of_the_rim_is_its_median_and_goes_around_the_image():
    image = np.array(
        [[[1, 1, 1, 9], [1, 99, 99, 9], [5, 5, 9, 9]], [[2, 2, 2, 2], [2, 50, 60, 2], [2, 2, 2, 70]]], float
    )
    # of the first: 1 1 1 9, 5 5 9 9, 1 1 5, 9 9 9
    assert rim_level(image).tolist() == [5, 2]
    around = surrounded(image, [1, 2])
    assert around.dtype == np.float32
    assert around.shape == (2, 5, 8)
    assert np.array_equal(around[:, 1:-1, 2:-2], image)
    around[:, 1:-1, 2:-2] = np.array([5, 2])[:, None, None]
    assert (around == np.array([5, 2])[:, None, None]).all()
    volume = np.zeros((1, 4, 4, 3))
    volume[..., 0] = 7  # the first slice is no rim
    assert rim_level(volume).tolist() == [0]


def noisy(shape: tuple[int, int] = (120, 100)) -> tuple[np.ndarray, np.ndarray]:
    """A head in air that varies too much to be a border, and its outline."""
    image, outline = head(shape, 30)
    return np.where(outline, image, np.random.default_rng(0).uniform(0, 12, shape)).astype(np.float32), outline


def test_the_window_is_the_box_of_the_head_with_four_pixels_around():
    image, outline = noisy()
    framed = np.pad(image, 6, constant_values=0.0)[None]
    tight = head_window(framed, 0)
    for w, axis in zip(tight, (0, 1), strict=True):
        hit = np.flatnonzero(outline.any(1 - axis)) + 6
        assert abs(w.start - hit[0]) <= 1, "to a cell of the mask"
        assert abs(w.stop - hit[-1] - 1) <= 1
    assert head_window(framed) == tuple(slice(w.start - 4, w.stop + 4) for w in tight)
    assert head_window(framed, (2, 7)) == tuple(
        slice(w.start - m, w.stop + m) for w, m in zip(tight, (2, 7), strict=True)
    )
    assert head_window(framed, 500) == (slice(6, 126), slice(6, 106)), "the border stays off"


def test_without_a_head_the_window_is_what_borders_leave():
    noise = np.random.default_rng(0).normal(100, 10, (1, 60, 50))
    framed = np.pad(noise, ((0, 0), (5, 0), (0, 3)), constant_values=0)
    assert head_window(framed) == (slice(5, 65), slice(0, 50))


def test_the_mask_of_a_head_lies_where_the_head_does():
    image, outline = head((120, 100), 30)
    mask = head_mask(np.pad(image, ((20, 5), (0, 9)), constant_values=255)[None])
    expected = np.pad(outline, ((20, 5), (0, 9)))
    assert mask.dtype == bool
    assert mask.shape == expected.shape
    assert dice(mask, expected) > 0.95
    with pytest.raises(ValueError, match="no foreground found"):
        head_mask(np.ones((1, 20, 20)))


@pytest.mark.parametrize("traced", [False, True])
def test_cropping_says_where_the_window_lies_and_takes_masks_along(traced):
    image = np.zeros((1, 140, 130), np.float32)
    image[0, 12:132, 25:125], outline = noisy()
    mask = np.zeros((1, 140, 130), np.uint8)
    mask[0, 12:132, 25:125] = outline
    wrap = MetaTensor if traced else torch.as_tensor
    item = {"image": wrap(torch.from_numpy(image)), "label": wrap(torch.from_numpy(mask))}
    out = CropBordersd(["image", "label"])(item)
    window = head_window(image)
    assert out["border_window"] == [[w.start, w.stop] for w in window]
    assert out["border_offset"] == [w.start for w in window]
    for key, whole in (("image", image), ("label", mask)):
        assert np.array_equal(torch.as_tensor(out[key]).numpy(), whole[(slice(None), *window)])
        assert isinstance(out[key], MetaTensor) == traced
    wide = CropBordersd(["image"], margin=9)(item)["border_window"]
    assert [(w[0] - n[0], w[1] - n[1]) for w, n in zip(wide, out["border_window"], strict=True)] == [(-5, 5)] * 2


def test_a_mask_of_ones_own_widens_the_window_and_an_empty_one_does_not():
    image = np.zeros((1, 40, 40), np.float32)
    image[0, 10:30, 10:30] = np.indices((20, 20)).sum(0) % 7
    content = content_box(image)
    empty = {"image": torch.from_numpy(image), "foreground": torch.zeros(1, 40, 40)}
    out = CropBordersd(["image", "foreground"])(empty)
    assert out["border_window"] == [[c.start, c.stop] for c in content]
    own = torch.zeros(2, 40, 40)
    own[1, 5:20, 15:36] = 1
    out = CropBordersd(["image", "foreground"])({"image": torch.from_numpy(image), "foreground": own})
    assert out["border_window"] == [[5, content[0].stop], [content[1].start, 36]]
    with pytest.raises(KeyError):
        CropBordersd(["image", "label"])(empty)
    assert "label" not in CropBordersd(["image", "label"], allow_missing_keys=True)(empty)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4)])
def test_air_goes_around_in_plane_and_is_the_median_of_the_rim(traced, shape):
    generator = torch.Generator().manual_seed(0)
    image, mask = torch.rand((1, *shape), generator=generator), torch.ones((1, *shape), dtype=torch.uint8)
    wrap = MetaTensor if traced else torch.as_tensor
    item = {"image": wrap(image), "label": wrap(mask), "border_offset": [10, 20, 30][: len(shape)]}
    pad = PadBordersd(["image", "label"], margin=(2, 3, 1)[: len(shape)])
    out = pad(item)
    widths = [3, 3, 0][: len(shape)]
    assert out["border_offset"] == [7, 17, 30][: len(shape)]
    place = (slice(None), *(slice(w, w + n) for w, n in zip(widths, shape, strict=True)))
    for key, whole, air in (("image", image, float(rim_level(image.numpy())[0])), ("label", mask, 0)):
        padded = torch.as_tensor(out[key])
        assert padded.shape[1:] == tuple(n + 2 * w for n, w in zip(shape, widths, strict=True))
        assert torch.equal(padded[place], whole)
        around = torch.ones_like(padded, dtype=torch.bool)
        around[place] = False
        assert (padded[around] == air).all()
        assert isinstance(out[key], MetaTensor) == traced
    if traced:
        assert torch.equal(torch.as_tensor(pad.inverse(out)["image"]), image)
    with pytest.raises(KeyError):
        PadBordersd(["image", "other"])(item)
    assert PadBordersd("image")({**item, "border_offset": [0] * len(shape)})["image"].shape[1] == shape[0] + 8


def test_a_disc_of_air_is_kept_around_the_head_only():
    assert head_window(disc((60, 60), 15)[None] * 100.0, 0) == (slice(15, 45), slice(15, 45))
