"""Fingerprints of pictures: hashes by frequencies, thumbnails by gray values."""

from __future__ import annotations

import numpy as np
from PIL import Image

from scripts.data import datalists
from scripts.data.datalists.fingerprints import (
    SIZE,
    fingerprint,
    gray_image,
    packed,
    perceptual_hash,
    standardized,
    thumbnails,
    turn_head,
    unlikeness,
    unpacked,
)
from tests.scans import head
from tests.transforms.images import disc


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_a_hash_has_the_bits_of_the_frequencies_in_the_picture():
    x = np.pi * (2 * np.arange(64) + 1) / 128
    waves = 128 + sum(20 * np.cos(down * x)[:, None] * np.cos(along * x)[None] for down, along in ((1, 2), (7, 0)))
    bits = perceptual_hash(picture(waves - 40 * np.cos(3 * x)[None])).reshape(16, 16)
    assert bits[0, 0]
    assert bits[1, 2]
    assert bits[7, 0]
    assert not bits[0, 3]


def test_hashes_and_thumbnails_come_back_from_a_fingerprint():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2, (3, 5, 256)).astype(bool)
    fingerprints = packed(hashes, rng.integers(0, 256, (3, 2, 16, 16)))
    assert fingerprints.shape == (3, SIZE)
    assert fingerprints.dtype == np.uint8
    np.testing.assert_array_equal(unpacked(fingerprints), hashes)


def test_mirrored_pictures_have_mirrored_views_and_copies_like_thumbnails():
    plane = head((96, 110, 9))[:, :, 4].T
    original, mirrored = (fingerprint(picture(pixels)) for pixels in (plane, plane[:, ::-1]))
    other = fingerprint(picture(head((96, 110, 9), seed=3)[:, ::-1, 6].T))
    darker = fingerprint(picture(plane * 0.6 + 5))
    prints = np.stack([original, mirrored, other, darker])
    hashes = unpacked(prints)
    assert min((hashes[0, 1] != hashes[1, view]).sum() for view in range(1, 5)) <= 8
    alike = unlikeness(prints, np.array([0, 0, 0]), np.array([1, 2, 3]))
    assert alike[0, 1] < 0.01 < alike[0, 0]
    assert (alike[1] > 2e-3).all()
    assert alike[2, 0] < 1e-4


def test_unlikeness_is_one_less_the_correlation_and_says_nothing_of_one_gray_value():
    rng = np.random.default_rng(1)
    one = rng.integers(0, 256, (16, 16)).astype(np.uint8)
    flat = np.full((16, 16), 90, np.uint8)
    thumbnails = np.stack([[one, one], [255 - one, one[::-1]], [flat, one[:, ::-1]]])
    prints = packed(np.zeros((3, 5, 256), bool), thumbnails)
    found = unlikeness(prints, np.array([0, 0, 0]), np.array([0, 1, 2]))
    np.testing.assert_allclose(found[:, 0], [0, 2, np.inf], atol=1e-6)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-6)


def test_hash_ignores_mode_and_depth(pool):
    expected = datalists.perceptual_hash(pool[0])
    for mode in ("RGB", "RGBA", "P"):
        np.testing.assert_array_equal(datalists.perceptual_hash(pool[0].convert(mode)), expected)
    deep = Image.fromarray(np.asarray(pool[0]).astype(np.uint16) * 257)
    assert (datalists.perceptual_hash(deep) != expected).sum() <= 6
    assert (datalists.perceptual_hash(pool[1]) != expected).sum() > 40


def test_gray_values_of_more_than_8_bits_are_stretched_and_others_kept():
    deep = Image.fromarray(np.array([[-5.0, 0.0], [5.0, 95.0]], np.float32))
    assert np.asarray(gray_image(deep)).tolist() == [[0, 13], [26, 255]]
    assert np.asarray(gray_image(Image.fromarray(np.full((2, 2), 7, np.uint16)))).tolist() == [[0, 0], [0, 0]]
    gray = np.array([[3, 90], [17, 200]], np.uint8)
    for mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        assert np.abs(np.asarray(gray_image(Image.fromarray(gray).convert(mode))).astype(int) - gray).max() <= 1
    assert gray_image(Image.fromarray(gray)).mode == gray_image(deep).mode == "L"


def test_a_thumbnail_is_the_means_of_squares_from_darkest_to_brightest():
    rng = np.random.default_rng(0)
    squares = rng.integers(20, 201, (16, 16))
    squares[0, 0], squares[5, 7] = 0, 255
    image = picture(np.kron(squares, np.ones((4, 4))))  # 64 x 64 already: nothing is interpolated
    assert np.array_equal(thumbnails(fingerprint(image)[None])[0, 0], squares)
    steps = np.kron(squares // 2 + 10, np.ones((4, 4)))
    found = thumbnails(fingerprint(picture(steps))[None])[0, 0].astype(int)
    assert (found.min(), found.max()) == (0, 255), "stretched"


def ellipse(angle: float, shift: tuple[float, float] = (0, 0), size: int = 120) -> np.ndarray:
    """A bright ellipse twice as long as wide with a brighter spot towards one end, turned by an angle."""
    x, y = np.meshgrid(*[np.arange(size) - size / 2] * 2, indexing="ij")
    x, y = x - shift[0], y - shift[1]
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    inside = (along / 40) ** 2 + (across / 20) ** 2 < 1
    spot = ((along - 20) ** 2 + (across - 6) ** 2) < 30
    return (inside * 100.0 + spot * 100.0).astype(np.float32)


def test_a_turned_moved_or_cropped_head_stands_upright():
    upright = turn_head(ellipse(np.pi / 2))
    for angle in (np.pi / 2 + 0.4, np.pi / 2 - 0.6):
        assert np.corrcoef(turn_head(ellipse(angle)).ravel(), upright.ravel())[0, 1] > 0.98
    assert np.corrcoef(turn_head(ellipse(np.pi / 2, (9, -7))).ravel(), upright.ravel())[0, 1] > 0.98
    cropped = turn_head(ellipse(np.pi / 2)[20:105, 10:115])
    assert np.corrcoef(cropped.ravel(), upright.ravel())[0, 1] > 0.98
    mirrored = turn_head(ellipse(np.pi / 2)[::-1])
    views = [mirrored[::a, ::b] for a in (1, -1) for b in (1, -1)]
    assert max(np.corrcoef(view.ravel(), upright.ravel())[0, 1] for view in views) > 0.98
    assert upright.shape == (64, 64)
    assert turn_head(ellipse(0.3), size=32).shape == (32, 32)
    bright = upright > 50
    wide, high = (np.flatnonzero(bright.any(axis=axis)) for axis in (1, 0))
    assert 1.6 < (np.ptp(high) + 1) / (np.ptp(wide) + 1) < 2.4, "its longest axis is the second"
    assert 56 <= np.ptp(high) + 1 <= 63, "which nearly fills it"


def test_a_picture_without_a_head_stands_for_its_head():
    flat = picture(np.full((40, 60), 90.0))
    prints = fingerprint(flat)[None]
    assert np.isinf(unlikeness(prints, np.array([0]), np.array([0]))).all()
    assert fingerprint(flat).shape == (SIZE,)


def test_standardized_gray_values_have_mean_0_and_length_1():
    gray = np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)
    gray[2] = 9
    found = standardized(gray)
    np.testing.assert_allclose(found[:2].mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose((found[:2] ** 2).sum(axis=(1, 2)), 1, rtol=1e-5)
    assert np.isnan(found[2]).all()
    assert found.dtype == np.float32


def test_views_are_those_of_the_mirrored_head():
    """The hash of the turned head in a mirroring is that of its mirrored frequencies."""
    plane = disc((96, 96), 30, (50, 44)).astype(float) * 90 + disc((96, 96), 9, (60, 50)) * 100.0
    hashes = unpacked(fingerprint(picture(plane))[None])[0].reshape(5, 16, 16)
    sign = (-1) ** np.arange(16)
    assert len({view.tobytes() for view in hashes[1:]}) == 4
    even = (sign[:, None] > 0) & (sign[None] > 0)
    agree = [(hashes[1] == view)[even].mean() for view in hashes[2:]]
    assert min(agree) > 0.9, "even frequencies are the same in all mirrorings"
    odd_along = (sign[:, None] > 0) & (sign[None] < 0)
    assert (hashes[1] == hashes[2])[odd_along].mean() < 0.2
    assert (hashes[1] == hashes[3])[odd_along].mean() > 0.9
