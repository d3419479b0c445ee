from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from scripts.__main__ import main as command
from scripts.data.datalists.volumes import load_oriented
from scripts.phantoms.dataset import AREA_RANGE, FORMATS, VERSION, make_phantoms, phantom_slice, phantom_volume
from scripts.phantoms.head import SmoothField, draw_head, render, with_tumor

GRID = (np.arange(110) - 54.5) * 2.0
LEVELS = np.array([-30.0, 0.0, 20.0, 45.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("phantoms") / "set"
    make_phantoms(path, seed=3, patients=5, singles=14, progress=False)
    return path


def test_same_seed_gives_the_same_bits_and_another_seed_does_not():
    first, second = (phantom_volume([3, 1, 0], tumor=True, slices=16) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label, second.label)
    assert first.spacing_mm == second.spacing_mm
    assert (phantom_volume([4, 1, 0], tumor=True, slices=16).image != first.image).mean() > 0.5


def test_a_smooth_field_does_not_depend_on_the_grid_and_has_unit_spread():
    field = SmoothField(np.random.default_rng(0), scale_mm=10)
    fine = np.arange(-100, 100.5, 1.0, dtype=np.float32)
    full = field(fine, fine, fine[::20])
    np.testing.assert_allclose(field(fine[::5], fine[::7], fine[::20]), full[::5, ::7], atol=1e-5)
    assert abs(full.mean()) < 0.15
    assert 0.85 < full.std() < 1.15


def test_the_head_of_a_patient_does_not_depend_on_the_diagnosis():
    head = draw_head(np.random.default_rng(5))
    sick = with_tumor(head, np.random.default_rng(6), level_mm=20)
    healthy_picture, sick_picture = render(head, GRID, GRID, LEVELS), render(sick, GRID, GRID, LEVELS)
    np.testing.assert_array_equal(healthy_picture.head, sick_picture.head)
    np.testing.assert_array_equal(healthy_picture.brain, sick_picture.brain)
    outside = ~healthy_picture.brain
    near = np.abs(healthy_picture.signal - sick_picture.signal)[outside]
    assert np.quantile(near, 0.98) == 0  # but for the blurred rim of the brain, nothing outside it changes
    assert not healthy_picture.tumor.any()
    assert sick_picture.tumor.any()


@pytest.mark.parametrize("seed", range(6))
def test_masks_lie_in_the_brain_the_brain_in_the_head_and_air_is_zero(seed):
    head = with_tumor(draw_head(np.random.default_rng(seed)), np.random.default_rng(100 + seed), level_mm=10)
    picture = render(head, GRID, GRID, LEVELS)
    assert not (picture.tumor & ~picture.brain).any()
    assert not (picture.brain & ~picture.head).any()
    assert picture.signal[0].max() == 0
    assert picture.signal[:, 0].max() == 0
    assert (picture.signal >= 0).all()
    assert 0.3 < 1 - picture.head[..., 1].mean() < 0.75  # a big share of air
    # Tissue order of FLAIR: CSF darker than white matter, gray matter brighter.
    assert head.csf < 0.5 < 1 < head.gray


def test_air_carries_rician_noise():
    image, _ = phantom_slice([0, 9, 1], tumor=False, size=(256, 256), level_mm=60)
    corner = image[:24, :24]
    assert corner.min() >= 0
    assert 0 < corner.mean() < 0.1
    # Magnitude noise without signal is Rayleigh: mean over standard deviation is sqrt(pi / (4 - pi)) = 1.913.
    assert corner.mean() / corner.std() == pytest.approx(1.913, rel=0.15)


@pytest.mark.parametrize("index", range(8))
def test_tumor_area_is_in_range(index):
    _, mask = phantom_slice([1, 2, index], tumor=True, size=(240, 256), level_mm=-15 + 8 * index)
    assert AREA_RANGE[0] <= mask.mean() <= AREA_RANGE[1]
    assert set(np.unique(mask)) == {0, 1}
    _, empty = phantom_slice([1, 2, index], tumor=False, size=(240, 256), level_mm=-15 + 8 * index)
    assert empty.sum() == 0


def test_brightness_alone_does_not_find_the_tumor():
    best = []
    for index in range(16):
        image, mask = phantom_slice([2, 2, index], tumor=True, size=(160, 160), level_mm=-10 + 3 * index)
        smooth = gaussian_filter(image, 1)
        best.append(
            [2 * ((smooth > t) & (mask > 0)).sum() / ((smooth > t).sum() + mask.sum()) for t in np.arange(0.2, 1, 0.05)]
        )
    assert np.mean(best, axis=0).max() < 0.6


def test_folder_holds_volumes_with_masks_on_one_grid_and_varied_axes(folder):
    made = json.loads((folder / "phantoms.json").read_text(encoding="utf-8"))
    assert made["arguments"] == {"version": VERSION, "seed": 3, "patients": 5, "singles": 14}
    assert [case["diagnosis"] for case in made["contents"]["patients"]] == [1, 0, 1, 0, 1]
    for case in made["contents"]["patients"]:
        name = case["patient"]
        scan = nib.load(folder / "patients" / name / f"{name}_flair.nii.gz")
        mask = nib.load(folder / "patients" / name / f"{name}_seg.nii.gz")
        np.testing.assert_array_equal(scan.affine, mask.affine)
        assert "".join(nib.aff2axcodes(scan.affine)) == case["axis_codes"]
        assert int(np.asarray(mask.dataobj).sum()) == case["tumor_voxels"]
        assert (case["tumor_voxels"] > 0) == (case["diagnosis"] == 1)
        oriented, _ = load_oriented(folder / "patients" / name / f"{name}_flair.nii.gz")
        assert oriented.shape[:2] in {(160, 160), (152, 168), (168, 160)}
        assert 16 <= oriented.shape[2] <= 24
        # The top of the head is the last slice: less head there than in the middle, in every orientation.
        bright = (oriented > 0.25 * np.percentile(oriented, 99)).mean(axis=(0, 1))
        assert bright[-1] < 0.8 * bright[len(bright) // 3]
    assert len({case["axis_codes"] for case in made["contents"]["patients"]}) == 3


def test_volume_on_disk_is_the_volume_of_the_seed(folder):
    array, affine = load_oriented(folder / "patients" / "p000" / "p000_flair.nii.gz")
    rng = np.random.default_rng([3, 1, 0, 3])
    expected = phantom_volume([3, 1, 0], True, (160, 160), 16, level_mm=rng.uniform(-20, 48))
    np.testing.assert_array_equal(array, expected.image)
    assert np.linalg.norm(affine[:3, :3], axis=0) == pytest.approx(expected.spacing_mm, abs=1e-4)


def test_class_predicts_neither_size_nor_type_nor_mode_of_single_images(folder):
    geometry = {}
    for kind in ("no_tumor", "tumor"):
        opened = [(path.suffix, Image.open(path)) for path in sorted((folder / "singles" / "images" / kind).iterdir())]
        geometry[kind] = Counter((suffix, image.mode, image.size) for suffix, image in opened)
    assert geometry["no_tumor"] == geometry["tumor"]
    assert sum(geometry["tumor"].values()) == 7
    assert {(suffix, mode) for suffix, mode, _ in geometry["tumor"]} == set(FORMATS)
    sizes = {size for _, _, size in geometry["tumor"]}
    assert len(sizes) == 7
    assert all(160 <= side <= 360 for size in sizes for side in size)
    assert any(width != height for width, height in sizes)


def test_same_arguments_keep_the_folder_and_others_are_refused(folder):
    stamp = (folder / "phantoms.json").stat().st_mtime_ns
    make_phantoms(folder, seed=3, patients=5, singles=14, progress=False)
    assert (folder / "phantoms.json").stat().st_mtime_ns == stamp
    with pytest.raises(ValueError, match=r"'seed': 3.*asked for.*'seed': 4"):
        make_phantoms(folder, seed=4, patients=5, singles=14, progress=False)


def test_patient_k_is_the_same_whatever_the_counts(folder, tmp_path):
    make_phantoms(tmp_path / "few", seed=3, patients=1, singles=0, progress=False)
    one, other = (nib.load(root / "patients/p000/p000_flair.nii.gz") for root in (folder, tmp_path / "few"))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


def test_an_interrupted_run_is_not_taken_for_whole(tmp_path, monkeypatch):
    target = tmp_path / "set"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scripts.phantoms.dataset._write_single", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_phantoms(target, seed=0, patients=0, singles=2, progress=False)
    assert not target.exists()
    make_phantoms(target, seed=0, patients=0, singles=2, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]
    assert len(list(target.glob("singles/images/*/*"))) == 2


def test_overwrite_replaces_phantoms_but_never_other_files(tmp_path):
    make_phantoms(tmp_path / "set", seed=0, patients=0, singles=2, progress=False)
    make_phantoms(tmp_path / "set", seed=1, patients=0, singles=4, overwrite=True, progress=False)
    assert len(list((tmp_path / "set").glob("singles/images/*/*"))) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(FileExistsError, match=r"mine exists and holds no phantoms\.json"):
        make_phantoms(tmp_path / "mine", seed=0, patients=0, singles=2, overwrite=True, progress=False)
    assert (tmp_path / "mine" / "thesis.txt").read_text(encoding="utf-8") == "keep"


def test_command_line_says_one_sentence_and_fails(tmp_path):
    with pytest.raises(ValueError, match="singles even"):
        command(["phantoms", "--out", str(tmp_path / "x"), "--n_patients", "0", "--n_singles", "3"])
    assert not (tmp_path / "x").exists()


def test_render_refuses_a_line():
    with pytest.raises(ValueError, match="at least 2 x 2 positions, got 1 x 110"):
        render(draw_head(np.random.default_rng(0)), GRID[:1], GRID, LEVELS)
