"""Fingerprints of pictures: hashes by frequencies, thumbnails by gray values."""

from __future__ import annotations

import numpy as np
from PIL import Image

from scripts.data import datalists
from scripts.data.datalists.fingerprints import SIZE, fingerprint, packed, perceptual_hash, unlikeness, unpacked
from tests.scans import head


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
