from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import distance_transform_edt, gaussian_filter
from skimage.filters import threshold_otsu

from tests.transforms.images import disc, head, overlap
from transforms.foreground import ForegroundMaskd, air_level, foreground_mask, foreground_warnings, mask_depth, otsu


def rice(image, sigma, seed=1):
    rng = np.random.default_rng(seed)
    return np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape)).astype(np.float32)


def check(mask, outline, least=0.97):
    assert mask.dtype == bool
    assert mask.shape == outline.shape
    assert overlap(mask, outline) > least
    assert (outline & ~mask).sum() <= 0.002 * outline.sum()  # nothing of the head is lost


@pytest.mark.parametrize("seed", range(5))
def test_otsu_is_that_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    counts = np.bincount(np.r_[rng.poisson(30, 900), rng.poisson(60 + 20 * seed, 400)], minlength=256)
    assert otsu(counts) == threshold_otsu(hist=(counts, np.arange(len(counts)))) + 0.5


def test_otsu_of_one_bin_is_refused():
    with pytest.raises(ValueError, match="one bin of the histogram"):
        otsu(np.array([0, 9, 0]))


@pytest.mark.parametrize("shape", [(40, 30), (12, 15, 9)])
def test_depth_is_that_of_scipy(shape):
    rng = np.random.default_rng(0)
    for threshold in (-1.0, 0.3, 1.0):
        mask = gaussian_filter(rng.normal(size=shape), 2) * 5 > threshold
        assert (mask_depth(mask) == distance_transform_edt(mask)).all()
    assert not mask_depth(np.zeros(shape, bool)).any()


def test_head_on_exact_zero_air_with_bone_and_ventricles_filled():
    image, outline = head()
    mask = foreground_mask(image[None])
    check(mask, outline)
    assert mask[80, 80]
    assert not mask[0, 0]


@pytest.mark.parametrize("sigma", [4, 12])
def test_noisy_air_stays_outside(sigma):
    image, outline = head()
    check(foreground_mask(rice(image, sigma)[None]), outline)


def test_white_background_directly_around_the_head():
    image, outline = head()
    image[~outline] = 255
    check(foreground_mask(image[None]), outline, 0.95)


def test_white_page_around_a_black_frame():
    image, outline = head()
    check(
        foreground_mask(np.pad(image, 20, constant_values=255)[None]),
        np.pad(outline, 20),
        0.95,
    )


def test_air_in_the_middle_of_the_range_as_after_z_scoring_a_stripped_brain():
    image, outline = head()
    inside = image[outline]
    z = np.where(outline, (image - inside.mean()) / inside.std(), 0)
    check(foreground_mask(z[None]), outline)


def test_air_below_all_tissue_as_in_subtracted_volumes():
    image, outline = head()
    check(foreground_mask((np.where(outline, image + 50, 0) / 40 - 3.2)[None]), outline)


def test_noise_inside_a_round_field_of_view_is_not_head():
    image, outline = head(radius=45)
    view = disc(image.shape, 78)
    mask = foreground_mask(np.where(view, rice(image, 14), 0)[None])
    check(mask, outline, 0.95)


def test_burnt_in_text_is_dropped():
    image, outline = head()
    for x in range(4, 60, 6):
        image[x : x + 3, 6:12] = 255
    mask = foreground_mask(image[None])
    check(mask, outline)
    assert not mask[:60, :14].any()


def test_a_frame_line_at_the_edge_does_not_fill_the_image():
    image, outline = head()
    image[:, [0, -1]] = image[[0, -1]] = 200
    check(foreground_mask(image[None]), outline)


def test_cut_field_of_view_keeps_dark_bone_that_touches_the_edge():
    image, outline = head()
    cut, cut_outline = image[:, 60:], outline[:, 60:]
    mask = foreground_mask(cut[None])
    check(mask, cut_outline)
    assert mask[:, 0][cut_outline[:, 0]].all()


def test_head_that_fills_the_image_loses_nothing():
    image, outline = head(radius=200, shape=(160, 160))
    bright = disc(image.shape, 30)
    image = np.where(bright, 200, image + 20).astype(np.float32)
    assert foreground_mask(image[None])[outline].mean() > 0.99


def test_volume():
    image, outline = head((64, 64, 40), 18)
    check(foreground_mask(rice(image, 4)[None]), outline, 0.87)


def test_foreground_of_any_channel_counts():
    first, second = head(radius=30)[0], head(radius=50)[0]
    check(foreground_mask(np.stack([first, second])), head(radius=50)[1])


def test_scale_offset_dtype_and_strides_change_nothing():
    image, _ = head()
    image = np.clip(rice(image, 4), 0, 255).round()
    reference = foreground_mask(image[None])
    assert np.array_equal(foreground_mask(image), reference)
    assert np.array_equal(foreground_mask(torch.from_numpy(image)[None] * 64 + 512), reference)
    assert np.array_equal(foreground_mask(image.astype(">u2")[None]), reference)
    assert np.array_equal(foreground_mask(image[::-1][None])[::-1], reference)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.full((1, 64, 64), 7.0), "constant"),
        (np.random.default_rng(0).normal(100, 10, (1, 200, 200)), "noise"),
        (np.abs(np.random.default_rng(0).normal(0, 10, (1, 64, 64))), "noise"),
        (np.full((1, 64, 64), np.nan), "not finite"),
        (np.zeros((2, 2, 2, 2, 2)), "expected an image of shape"),
    ],
)
def test_image_without_foreground_is_refused(image, reason):
    with pytest.raises(ValueError, match=reason):
        foreground_mask(image)


def test_dictionary_form_keeps_metadata_and_names_the_file():
    image, outline = head()
    tensor = MetaTensor(torch.from_numpy(image)[None], meta={"filename_or_obj": "p/scan7.png"})
    item = ForegroundMaskd()({"image": tensor})
    assert item["foreground"].dtype == torch.uint8
    assert item["foreground"].meta["filename_or_obj"] == "p/scan7.png"
    check(item["foreground"][0].numpy() == 1, outline)
    blank = MetaTensor(torch.zeros(1, 32, 32), meta={"filename_or_obj": "p/blank.png"})
    with pytest.raises(ValueError, match=r"p/blank.png: no foreground found: the image is constant"):
        ForegroundMaskd()({"image": blank})


def test_a_given_mask_is_used_as_it_is_and_checked():
    image = torch.from_numpy(head()[0])[None]
    mine = torch.zeros(1, 160, 160)
    mine[0, 10:20, 30:50] = 4
    item = ForegroundMaskd()({"image": image, "foreground": mine})
    assert torch.equal(item["foreground"], (mine > 0).to(torch.uint8))
    with pytest.raises(ValueError, match=r"size \(8, 8\), the image \(160, 160\)"):
        ForegroundMaskd()({"image": image, "foreground": torch.ones(1, 8, 8)})
    with pytest.raises(ValueError, match="is empty"):
        ForegroundMaskd()({"image": image, "foreground": torch.zeros(1, 160, 160)})


def test_air_level_tells_files_that_were_normalized():
    image, outline = head()
    z = (image - image[outline].mean()) / image[outline].std()
    assert air_level(np.where(outline, z, -3.2)) == pytest.approx(-3.2)
    assert air_level(image) is None  # a magnitude image
    assert air_level(image + 10) is None  # bright air, not normalized: nothing below 0
    assert air_level(np.where(outline, z, 0)) is None  # air was set to 0 after normalization
    ringing = image - 2 * np.eye(160, dtype=np.float32)  # overshoot of a resampling
    assert air_level(ringing) is None
    assert air_level(np.zeros((8, 8))) is None


def test_doubts_name_what_is_unlike_a_head():
    assert foreground_warnings(disc((100, 100), 40)) == []
    assert "above 97%" in foreground_warnings(np.ones((100, 100), bool))[0]
    assert "holds 4 of 4 corners" in foreground_warnings(np.ones((100, 100), bool))[1]
    assert foreground_warnings(disc((100, 100), 10)) == ["covers 3.2% of the image, below 5%"]
    two = disc((100, 100), 20, (25, 50)) | disc((100, 100), 15, (75, 50))
    assert foreground_warnings(two) == ["is in 2 pieces, 36% outside the largest"]
    small = disc((100, 100), 30, (40, 50)) | disc((100, 100), 4, (90, 50))
    assert foreground_warnings(small) == []


def test_no_tumor_is_cut_off_on_real_images():
    root = os.environ.get("TUMORLENS_DATA")
    if not root:
        pytest.skip("real images: set TUMORLENS_DATA")
    from transforms.pictures import read_picture

    worst = {}
    for mask in sorted((Path(root) / "brisc2025" / "masks").glob("*.png"))[::40]:
        image = next((Path(root) / "brisc2025" / "images").glob(f"*/{mask.stem}.jpg"))
        tumor = read_picture(mask) > 0
        worst[mask.stem] = foreground_mask(read_picture(image)[None])[tumor].mean()
    assert len(worst) > 90
    assert min(worst.values()) >= 0.99, min(worst, key=worst.__getitem__)
