"""What frames a picture has no part in what the network gets."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from scripts.data.preprocessing import make_preprocessing
from transforms.borders import CropBordersd, content_box, head_window
from transforms.intensity import ScaleRobustd
from transforms.order import Pipeline

COLORS = (0, 128, 255)
SIDES = {"all": (1, 1, 1, 1), "left": (1, 0, 0, 0), "top and right": (0, 1, 1, 0), "bottom": (0, 0, 0, 1)}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """An 8-bit head, (X, Y), that ends at the picture's lower edge."""
    x, y = np.meshgrid(np.arange(240), np.arange(280), indexing="ij")
    radius = np.sqrt(((x - 120) / 96) ** 2 + ((y - 160) / 116) ** 2)
    scaled = np.select([radius < 0.25, radius < 0.82, radius < 0.9, radius < 1], [40, 110, 12, 190], 3.0)
    scaled = scaled + (radius < 0.8) * 20 * np.sin(x / 5) * np.cos(y / 7)
    noisy = scaled + np.random.default_rng(0).normal(0, 1.5, scaled.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)[:, :264]


def framed(picture: np.ndarray, sides: tuple[int, ...], color: int, width: int) -> np.ndarray:
    left, top, right, bottom = (side * width for side in sides)
    return np.pad(picture, ((left, right), (top, bottom)), constant_values=color)


def prepared(array: np.ndarray, **given: np.ndarray) -> torch.Tensor:
    item = {"image": array[None].astype(np.float32), **{key: value[None] for key, value in given.items()}}
    return make_preprocessing((64, 64), trace=False)(item)["image"]


def jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES.keys())
@pytest.mark.parametrize("width", [1, 13, 112])
def test_a_border_changes_nothing_that_the_network_gets(picture, sides, color, width):
    assert torch.equal(prepared(framed(picture, sides, color, width)), prepared(picture))


def test_a_border_around_a_border_goes_too(picture):
    twice = framed(framed(picture, SIDES["all"], 255, 5), SIDES["left"], 40, 30)
    assert torch.equal(prepared(twice), prepared(picture))


@pytest.mark.parametrize("color", COLORS)
def test_a_border_that_went_through_jpeg_hardly_moves_the_input(picture, color):
    plain, bordered = prepared(jpeg(picture)), prepared(jpeg(framed(picture, SIDES["all"], color, 44)))
    assert float(((plain != 0) != (bordered != 0)).float().mean()) < 0.02
    both = (plain != 0) & (bordered != 0)
    assert float((plain - bordered)[both].abs().mean()) < 0.1


def test_letters_and_a_frame_are_outside_of_the_window(picture):
    page = Image.fromarray(framed(picture, SIDES["all"], 0, 30))
    draw = ImageDraw.Draw(page)
    draw.rectangle((4, 4, page.size[0] - 5, page.size[1] - 5), outline=255)
    draw.text((8, 8), "L 10:33", fill=255)
    array = np.asarray(page)
    window = head_window(array[None].astype(np.float32))
    inner = head_window(picture[None].astype(np.float32))
    assert all(
        abs(w.start - 30 - i.start) <= 2 and abs(w.stop - 30 - i.stop) <= 2 for w, i in zip(window, inner, strict=True)
    )
    assert float((prepared(array) - prepared(picture)).abs().mean()) < 0.1


def test_content_box_by_hand():
    image = np.full((1, 7, 6), 9.0)
    image[0, 2:5, 1:6] = 3.0
    image[0, 3, 2], image[0, 4, 4] = 5.0, 6.0
    assert content_box(image) == (slice(3, 5), slice(2, 5))


def test_a_line_stays_where_one_channel_varies_in_it():
    image = np.zeros((2, 6, 6))
    image[0, 2:4, 2:4] = [[1, 2], [3, 5]]
    image[1, 1, 3] = 1
    assert content_box(image) == (slice(1, 4), slice(2, 4))


def test_a_constant_image_is_left_whole():
    assert content_box(np.ones((1, 4, 5))) == (slice(0, 4), slice(0, 5))


def test_a_volume_loses_empty_planes_of_all_axes():
    volume = np.zeros((1, 9, 10, 11))
    volume[0, 2:7, 3:8, 4:10] = np.random.default_rng(1).random((5, 5, 6)) + 1
    assert content_box(volume) == (slice(2, 7), slice(3, 8), slice(4, 10))


def test_the_users_mask_is_never_cut(picture):
    bordered = framed(picture, SIDES["all"], 128, 10)
    mask = np.zeros(bordered.shape, np.uint8)
    mask[2:-2, 2:-2] = 1
    item = make_preprocessing((64, 64), trace=False)(
        {"image": bordered[None].astype(np.float32), "foreground": mask[None]}
    )
    sides = [stop - start for start, stop in ((2, n - 2) for n in bordered.shape)]
    share = float(item["foreground"].float().mean())
    assert share == pytest.approx(min(sides) / max(sides), abs=0.15)


def test_borders_after_the_scale_are_refused():
    with pytest.raises(ValueError, match="take borders off first"):
        Pipeline([ScaleRobustd("image"), CropBordersd(["image"])])
