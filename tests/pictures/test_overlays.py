from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from PIL import Image

from scripts.pictures import overlays
from scripts.pictures.overlays import (
    MASK_COLOR,
    PREDICTED_COLOR,
    colorize,
    gray_image,
    legible_scale,
    overlay,
    panel,
    save,
)


@pytest.fixture
def image() -> np.ndarray:
    """(1, 6, 4): air at x = 0, else a ramp from 1 to 5 along x."""
    array = np.zeros((1, 6, 4), dtype=np.float32)
    array[0, 1:] = np.arange(1, 6)[:, None]
    return array


def heat(x: int, y: int, value: float = 1.0) -> np.ndarray:
    array = np.zeros((1, 6, 4), dtype=np.float32)
    array[0, x, y] = value
    return array


def test_one_is_red_hot_and_zero_is_cold():
    hot, middle, cold = colorize(np.array([1.0, 0.5, 0.0])).astype(int)
    assert hot.tolist() == [243, 120, 25]
    assert cold.tolist() == [22, 11, 57]
    assert hot[0] > hot[1] > hot[2]
    assert cold[2] > cold[0] > cold[1]
    assert hot.sum() > middle.sum() > cold.sum()


def test_colors_grow_brighter_in_even_steps():
    rgb = colorize(np.linspace(0, 1, 11)) / 255.0
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    steps = np.diff(116 * np.cbrt(np.maximum(luminance, 0.008856)) - 16)  # CIE lightness
    assert steps.min() > 3
    assert steps.max() < 9


def test_zero_leaves_the_gray_image_and_air_black(image):
    picture = overlay(image, heat(0, 0, 0.0))
    assert np.array_equal(picture, gray_image(image))
    assert picture.shape == (4, 6, 3)
    assert picture[:, 0].max() == 0
    assert picture[0, 1].tolist() == [0, 0, 0]
    assert picture[0, 5].tolist() == [255, 255, 255]
    low, high = np.percentile(np.repeat(np.arange(1, 6), 4), [1, 99.5])
    assert picture[0, 3].tolist() == [round(255 * (3 - low) / (high - low))] * 3


def test_gray_scale_ignores_air_and_outliers():
    image = np.zeros((1, 100, 100), dtype=np.float32)
    image[0, 40:60] = np.linspace(-1, 1, 2000).reshape(20, 100)
    image[0, 50, 50] = 1e6
    gray = gray_image(image)[..., 0]
    assert gray[0, 40] == 0
    assert gray[99, 59] == 255
    assert abs(int(gray[0, 50]) - 128) < 4  # 0.0005 of -1 to 1, air at 0 notwithstanding
    assert gray_image(np.full((1, 3, 3), 7.0)).tolist() == [[[128] * 3] * 3] * 3


def test_opacity_is_proportional_to_the_value(image):
    gray = gray_image(image).astype(float)
    for value in (1.0, 0.5):
        picture = overlay(image, heat(3, 2, value), alpha=0.8)
        expected = (1 - 0.8 * value) * gray[2, 3] + 0.8 * value * colorize(np.array(value))
        assert np.abs(picture[2, 3] - expected).max() <= 0.5
        picture[2, 3] = gray[2, 3]
        assert np.array_equal(picture, gray)
    assert overlay(image, heat(3, 2), alpha=1.0)[2, 3].tolist() == colorize(np.array(1.0)).tolist()


def test_a_darker_image_leaves_the_colors_as_they_are(image):
    dim = overlay(image, heat(3, 2), alpha=1.0, brightness=0.5)
    assert dim[2, 3].tolist() == colorize(np.array(1.0)).tolist()
    dim[2, 3] = 0
    gray = gray_image(image)
    gray[2, 3] = 0
    assert np.abs(dim - gray / 2).max() <= 0.5
    with pytest.raises(ValueError, match="brightness: expected 0 to 1, got 2"):
        overlay(image, heat(3, 2), brightness=2)


def test_first_axis_runs_to_the_right_and_second_down(image):
    picture = overlay(image, heat(5, 1), alpha=1.0)
    assert picture[1, 5].tolist() == colorize(np.array(1.0)).tolist()


def test_contour_lies_just_outside_the_mask():
    image = np.ones((1, 9, 9), dtype=np.float32) * np.arange(1, 10)
    zero, mask = np.zeros((1, 9, 9)), np.zeros((1, 9, 9))
    mask[0, 3:6, 4] = 1
    picture = overlay(image, zero, mask=mask)
    cyan = {(int(x), int(y)) for y, x in np.argwhere((picture == MASK_COLOR).all(-1))}
    assert cyan == {(2, 4), (6, 4), *((x, y) for x in (3, 4, 5) for y in (3, 5))}
    enlarged = overlay(image, zero, mask=mask, scale=3)
    assert enlarged.shape == (27, 27, 3)
    inside = enlarged[12:15, 9:18]
    assert not (inside == MASK_COLOR).all(-1).any()
    assert (enlarged[11, 9:18] == MASK_COLOR).all()


def test_predicted_contour_is_dashed_and_of_another_color():
    image, zero, mask = np.ones((1, 64, 64)), np.zeros((1, 64, 64)), np.zeros((1, 64, 64))
    mask[0, 10:50, 10:50] = 1
    dashed = (overlay(image, zero, predicted=mask) == PREDICTED_COLOR).all(-1)
    full = (overlay(image, zero, mask=mask) == MASK_COLOR).all(-1)
    assert full.sum() == 160
    assert not (dashed & ~full).any()
    assert 60 <= dashed.sum() <= 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.ones((6, 4))}, r"image: expected one channel-first 2D array \(1, X, Y\), got shape \(6, 4\)"),
        ({"image": np.zeros((1, 6, 4))}, "image: every pixel is 0"),
        ({"heatmap": np.zeros((1, 4, 6))}, r"heatmap: expected the image's shape \(1, 6, 4\), got \(1, 4, 6\)"),
        ({"heatmap": heat(0, 0, 2.0)}, r"heatmap: expected values in \[0, 1\].* got 0 to 2"),
        ({"heatmap": heat(0, 0, -0.5)}, "got -0.5 to 0"),
        ({"heatmap": heat(0, 0, np.nan)}, "heatmap: values that are not finite"),
        ({"mask": heat(0, 0, 0.5)}, "mask: expected a mask of 0 and 1"),
        ({"predicted": heat(0, 0, 255)}, "predicted mask: expected a mask of 0 and 1"),
        ({"alpha": 1.5}, "alpha: expected 0 to 1"),
    ],
)
def test_wrong_input_is_refused(image, arguments, message):
    with pytest.raises(ValueError, match=message):
        overlay(**{"image": image, "heatmap": heat(0, 0), **arguments})


def test_legible_scale():
    assert [legible_scale((1, s, 10)) for s in (64, 128, 160, 256, 320)] == [4, 2, 2, 1, 1]


def test_panel_holds_the_four_tiles(image):
    heatmap, mask = heat(3, 2), heat(3, 2)
    picture = panel(image, heatmap, mask, scale=21, predicted=mask)
    width, height, gap, line = 126, 84, overlays.GAP, overlays.LINE
    assert picture.shape == (height + 2 * line, 4 * width + 3 * gap, 3)
    tiles = [picture[line : line + height, i * (width + gap) :][:, :width] for i in range(4)]
    assert np.array_equal(tiles[0], gray_image(image, 21))
    assert tiles[1][52, 73].tolist() == colorize(np.array(1.0)).tolist()
    assert tiles[1][5, 5].tolist() == colorize(np.array(0.0)).tolist()
    assert np.array_equal(tiles[2], overlay(image, heatmap, mask, scale=21))
    assert np.array_equal(tiles[3], overlay(image, 0 * heatmap, mask, mask, scale=21))
    bar = picture[line + height + line // 2]
    assert (bar == colorize(np.array(0.0))).all(-1).any()
    assert (bar == colorize(np.array(1.0))).all(-1).any()


def test_empty_map_is_shown_as_words_not_colors(image):
    picture = panel(image, heat(0, 0, 0.0), scale=30)
    tile = picture[overlays.LINE : overlays.LINE + 120, 180 + overlays.GAP :][:, :180]
    assert (tile == tile[..., :1]).all()  # gray: no color at all
    assert (tile < 100).any()  # the words
    assert np.median(tile) == 238
    over = picture[overlays.LINE : overlays.LINE + 120, 2 * (180 + overlays.GAP) :][:, :180]
    assert (over == over[..., :1]).all()
    assert not np.array_equal(over, gray_image(image, 30))


def test_long_caption_does_not_run_into_the_color_bar(image):
    short, long = (panel(image, heat(3, 2), scale=20, caption=c) for c in ("case", "word " * 60))
    bar = short.shape[1] - 120 - 14 - 20
    assert np.array_equal(short[:, bar:], long[:, bar:])
    assert not np.array_equal(short[:, :bar], long[:, :bar])
    with pytest.raises(ValueError, match="titles: expected 4"):
        panel(image, heat(3, 2), titles=("a",))


def test_saved_picture_reads_back(tmp_path, image):
    picture = overlay(image, heat(3, 2))
    path = save(picture, tmp_path / "new" / "a.png")
    assert np.array_equal(np.asarray(Image.open(path)), picture)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def test_color_map_is_a_part_of_inferno():
    inferno = np.rint(matplotlib.colormaps["inferno"](np.linspace(0.1, 0.7, 256))[:, :3] * 255)
    assert np.array_equal(colorize(np.linspace(0, 1, 256)), inferno)
