"""The verb explain-nnunet: images as they lie on disk, maps and regions on the grids of their files."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from scripts.__main__ import main
from scripts.evaluation.nnunet_folders import find_cases, read_case
from scripts.explain.nnunet import load_nnunet
from tests.explain.nnunet_results import make_results, plans

unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")

AFFINE = np.array([[-1.5, 0, 0, 30], [0, 1.0, 0, -20], [0, 0, 4.0, 7], [0, 0, 0, 1]])


@pytest.fixture
def results(tmp_path):
    folder, _, _ = make_results(tmp_path)
    content = plans()
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    for kind, order in (("data", 3), ("probabilities", 1)):
        content["configurations"]["base"][f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        content["configurations"]["base"][f"resampling_fn_{kind}_kwargs"] = {**resampling, "order": order}
    (folder / "plans.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def volume(tmp_path):
    """A file of 20 x 16 x 3 voxels of 1.5 x 1 x 4 mm, whose head begins at (4, 3, 1)."""
    array = np.zeros((20, 16, 3), np.float32)
    array[4:18, 3:14, 1:] = np.random.default_rng(0).uniform(50, 100, (14, 11, 2))
    path = tmp_path / "images" / "head_0000.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def run(*arguments) -> int:
    return main(["explain-nnunet", *map(str, arguments)])


@pytest.mark.parametrize("method", ["hirescam", "gradient"])
def test_a_volume_is_explained_on_its_own_grid(results, volume, tmp_path, capsys, method):
    out = tmp_path / "out"
    assert run(volume.parent, "--results", results, "--out", out, "--region", "tumor", "--method", method) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == f"written: {out}"
    assert {path.name for path in out.iterdir()} == {
        "head.png", "head_map.nii.gz", "head_region.nii.gz", "summary.json"
    }  # fmt: skip
    map_, region = (nib.load(out / f"head_{part}.nii.gz") for part in ("map", "region"))
    for image in (map_, region):
        assert image.shape == (20, 16, 3)
        np.testing.assert_allclose(image.affine, AFFINE)
    heat, mask = map_.get_fdata(), region.get_fdata()
    assert heat.max() == pytest.approx(1)
    assert heat.min() == 0
    outside = np.ones(heat.shape, bool)
    outside[4:18, 3:14, 1:] = False
    assert not heat[outside].any()  # what nnU-Net cuts off has no part in the logits
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    (case,) = summary["cases"]
    assert (summary["region"], summary["method"], summary["mirrored"]) == ("tumor", method, True)
    assert case["predicted_voxels"] == int(mask.sum()) > 0
    assert case["predicted_ml"] == pytest.approx(mask.sum() * 6 / 1000)
    assert case["network_grid"] == [2, 11, 21]  # 14 columns of 1.5 mm at the plans' 1 mm
    assert case["energy_in_region"] == pytest.approx(float((heat * mask).sum() / heat.sum()), abs=1e-5)
    assert f"head: tumor of {case['predicted_ml']:.2f} ml" in said
    picture = np.asarray(Image.open(out / "head.png"))
    assert picture.ndim == 3
    assert (picture != picture[..., :1]).any()  # a map in color


def test_the_region_is_where_the_network_predicts_it(results, volume, tmp_path):
    """At the plans' own spacing nothing is resampled: the mask is that of the logits of one pass."""
    given = load_nnunet(results)
    array = nib.load(volume).get_fdata().astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 4.0, 1.0])), volume)
    assert run(volume, "--results", results, "--out", tmp_path / "out", "--no_mirroring") == 0
    crop = torch.from_numpy(array[4:18, 3:14, 1:].transpose(2, 1, 0)[:, None].copy())  # (2 slices, 1, 11, 14)
    crop = (crop - crop.mean()) / crop.std(unbiased=False)
    with torch.no_grad():
        padded = torch.nn.functional.pad(crop, (1, 1, 2, 3))
        edema = given.network(padded).argmax(1)[:, 2:13, 1:15] == 1  # the default: the first that is no background
    mask = nib.load(tmp_path / "out" / "head_region.nii.gz").get_fdata()
    assert 0 < edema.sum() < edema.numel()
    assert (mask[4:18, 3:14, 1:].transpose(2, 1, 0) == edema.numpy()).all()


@pytest.fixture
def results_3d(results):
    """The folder with a network of volumes at 4 x 1 x 1 mm instead."""
    content = json.loads((results / "plans.json").read_text(encoding="utf-8"))
    base = content["configurations"]["base"]
    changed = {"conv_op": "torch.nn.Conv3d", "norm_op": "torch.nn.InstanceNorm3d"}
    changed |= {"kernel_sizes": [[3] * 3] * 3, "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}
    base |= {"patch_size": [4, 16, 16], "spacing": [4.0, 1.0, 1.0]}
    base["architecture"]["arch_kwargs"] |= changed
    (results / "plans.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(1)
    types = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    network = unet.PlainConvUNet(1, num_classes=3, **{**base["architecture"]["arch_kwargs"], **types})
    file = results / "fold_0" / "checkpoint_final.pth"
    saved = torch.load(file, weights_only=False)
    changes = {"network_weights": network.state_dict(), "inference_allowed_mirroring_axes": (0, 1, 2)}
    torch.save({**saved, **changes}, file)
    return results


def test_a_network_of_volumes_explains_them_whole(results_3d, volume, tmp_path):
    assert run(volume, "--results", results_3d, "--out", tmp_path / "out", "--region", "tumor") == 0
    (case,) = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["cases"]
    assert case["network_grid"] == [2, 11, 21]  # slices of 4 mm stay, columns of 1.5 mm do not
    array = nib.load(volume).get_fdata().astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 4.0, 1.0])), volume)
    assert run(volume, "--results", results_3d, "--out", tmp_path / "same", "--no_mirroring", "--region", "tumor") == 0
    given = load_nnunet(results_3d)
    crop = torch.from_numpy(array[4:18, 3:14, 1:].transpose(2, 1, 0)[None, None].copy())
    crop = (crop - crop.mean()) / crop.std(unbiased=False)
    with torch.no_grad():
        labels = given.network(torch.nn.functional.pad(crop, (1, 1, 2, 3, 1, 1))).argmax(1)
    tumor = labels[0, 1:3, 2:13, 1:15] == 2
    mask = nib.load(tmp_path / "same" / "head_region.nii.gz").get_fdata()
    assert 0 < tumor.sum() < tumor.numel()
    assert (mask[4:18, 3:14, 1:].transpose(2, 1, 0) == tumor.numpy()).all()


def test_a_picture_is_explained_as_well(results, tmp_path):
    dataset = json.loads((results / "dataset.json").read_text(encoding="utf-8"))
    (results / "dataset.json").write_text(json.dumps({**dataset, "file_ending": ".png"}), encoding="utf-8")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(1, 255, (24, 32), dtype=np.uint8)).save(tmp_path / "any name.png")
    assert run(tmp_path / "any name.png", "--results", results, "--out", tmp_path / "out", "--region", "tumor") == 0
    assert nib.load(tmp_path / "out" / "any name_map.nii.gz").shape == (32, 24, 1)  # columns, rows
    (case,) = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["cases"]
    assert case["predicted_ml"] is None


def test_channels_are_found_by_nnunets_names(results, tmp_path):
    dataset = json.loads((results / "dataset.json").read_text(encoding="utf-8"))
    names = {"channel_names": {"0": "T1", "1": "FLAIR"}}
    given = load_nnunet(results)
    given = type(given)(**{**vars(given), "channels": ("T1", "FLAIR")})
    assert dataset["channel_names"] != names
    for k, value in ((0, 1.0), (1, 2.0)):
        nib.save(nib.Nifti1Image(np.full((4, 3, 2), value, np.float32), AFFINE), tmp_path / f"a_b_{k:04d}.nii.gz")
    found = find_cases(given, tmp_path / "a_b_0001.nii.gz")
    assert found == find_cases(given, tmp_path) == {"a_b": [tmp_path / f"a_b_{k:04d}.nii.gz" for k in (0, 1)]}
    case = read_case(given, "a_b", found["a_b"])
    assert case.image.shape == (2, 2, 3, 4)
    assert case.image[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert case.spacing_mm == (4.0, 1.0, 1.5)
    nib.save(nib.Nifti1Image(np.ones((4, 3, 2), np.float32), np.eye(4)), tmp_path / "a_b_0001.nii.gz")
    with pytest.raises(ValueError, match=r"a_b_0001\.nii\.gz has another place than a_b_0000"):
        read_case(given, "a_b", found["a_b"])
    (tmp_path / "a_b_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"case a_b has 1 file\(s\), expected 2, one a channel: T1, FLAIR"):
        find_cases(given, tmp_path)


def test_what_cannot_be_done_is_one_sentence(results, volume, tmp_path):
    common = ("--results", results, "--out", tmp_path / "out")
    for arguments, message in (
        ((volume, *common, "--region", "tumour"), "no region 'tumour'; there are background, edema, tumor"),
        ((tmp_path / "nothing", *common), "does not exist"),
        ((tmp_path, *common), r"has no images named as nnU-Net names them, CASE_0000\.nii\.gz"),
        ((results / "plans.json", *common), r"trained on files that end with \.nii\.gz"),
        ((volume, *common, "--layer", "decoder.stage"), "nearest: 'decoder.stages"),
        ((volume, *common, "--device", "cuda:99"), "device cuda:99 cannot be used"),
    ):
        with pytest.raises((ValueError, OSError), match=message) as error:
            run(*arguments)
        assert "\n" not in str(error.value)
    content = json.loads((results / "plans.json").read_text(encoding="utf-8"))
    changed = {**content, "image_reader_writer": "NibabelIOWithReorient"}
    (results / "plans.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(ValueError, match="images are read by 'NibabelIOWithReorient'"):
        run(volume, *common)
    content["configurations"]["base"]["previous_stage"] = "3d_lowres"
    (results / "plans.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="second stage of a cascade"):
        run(volume, *common)
