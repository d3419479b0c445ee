"""A results folder of nnU-Net v2 is explained as it lies on disk, and nothing in it is run."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from scripts.explain.nnunet import NNUNet, load_nnunet
from scripts.explain.nnunet_images import prepare
from scripts.explain.targets import SegmentationRegion
from tests.explain.nnunet_results import KWARGS, make_results, plans

pytest.importorskip("dynamic_network_architectures.architectures.unet")


@pytest.fixture
def results(tmp_path):
    return make_results(tmp_path)


def test_the_folder_is_explained_as_the_network_that_was_saved(results):
    folder, network, _ = results
    found = load_nnunet(folder)
    assert (found.patch_size, found.spacing_mm, found.mirror_axes) == ((16, 16), (1.0, 1.0), (0, 1))
    assert found.regions == {"background": (0, (0,)), "edema": (1, (1,)), "tumor": (2, (2,))}
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    network.decoder.deep_supervision = False
    with torch.no_grad():
        expected = network.eval()(x)
        flips = [(), (2,), (3,), (2, 3)]
        mirrored = torch.stack([network(x.flip(axes)).flip(axes) for axes in flips]).mean(0)
    plain = found.explain(x, "tumor", ["gradient", "hirescam"], mirrored=False)
    torch.testing.assert_close(plain.output, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.explain(x, "tumor").output, mirrored, rtol=0, atol=1e-6)
    image = x.clone().requires_grad_()
    output = network(image)
    score = SegmentationRegion(channel=2, reduction="sum").bind(output.detach())(output)
    (gradient,) = torch.autograd.grad(score.sum(), image)
    torch.testing.assert_close(plain.gradient, gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))
    ((_, layer),) = [key for key in plain.maps if key[0] == "hirescam"]
    assert layer.startswith("decoder.stages.1")
    large = found.explain(torch.randn(1, 1, 40, 24), "edema", "gradient")
    assert large.maps["gradient", "input"].shape == (1, 1, 40, 24)


def test_regions_have_their_own_channels(results):
    folder, _, _ = results
    labels = {"background": 0, "whole": [1, 2], "core": 2, "rest": 3}
    dataset = {"channel_names": {"0": "FLAIR"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    found = load_nnunet(folder, 0)
    assert found.regions == {"whole": (0, (1, 2)), "core": (1, (2,)), "rest": (2, (3,))}
    with pytest.raises(ValueError, match="no region 'cor'; there are whole, core, rest"):
        found.explain(torch.zeros(1, 1, 16, 16), "cor")
    with pytest.raises(
        ValueError, match=r"expected \(B, 1, 2 spatial axes\) with the channels FLAIR, got \(1, 2, 16, 16\)"
    ):
        found.explain(torch.zeros(1, 2, 16, 16), "core")


DEFAULT = {"order": 3, "order_z": 0, "force_separate_z": None, "is_seg": False}


def plan(patch=(4, 4, 4), spacing=(1.0, 1.0, 1.0), **changed):
    """What a results folder says about images, without a network."""
    given = {
        "network": torch.nn.Identity(), "folder": "results", "configuration": "3d_fullres", "patch_size": patch,
        "spacing_mm": spacing, "mirror_axes": (), "channels": ("FLAIR",), "regions": {"background": (0, (0,))},
        "schemes": ("ZScoreNormalization",), "masked": (True,), "intensities": {},
        "resampling": dict.fromkeys(("data", "probabilities"), ("resample_data_or_seg_to_shape", DEFAULT)),
    }  # fmt: skip
    return NNUNet(**{**given, **changed})


def test_images_are_cropped_and_normalized_by_hand():
    image = np.zeros((1, 3, 5, 4), np.float32)
    image[0, 1, 1:4, 1:4] = [[1.0, 3.0, 1.0], [3.0, 0.0, 3.0], [1.0, 3.0, 1.0]]
    ready = prepare(plan(), image, (1, 1, 1))
    assert ready.box == (slice(1, 2), slice(1, 4), slice(1, 4))
    # One plane has no holes for nnU-Net, which fills them in three axes: the 0 in the middle is outside, and stays.
    expected = torch.tensor([[-1.0, 1.0, -1.0], [1.0, 0.0, 1.0], [-1.0, 1.0, -1.0]])
    assert torch.equal(ready.image, expected[None, None, None])
    back = ready.restored(ready.image)
    assert back.shape == image.shape
    assert back[0, 1, 1:4, 1:4].tolist() == expected.tolist()
    assert back.sum() == pytest.approx(float(expected.sum()))
    all_of_it = prepare(plan(masked=(False,)), image, (1, 1, 1)).image  # (value - 16/9) / its deviation
    assert float(all_of_it.mean()) == pytest.approx(0, abs=1e-6)
    assert float(all_of_it.std(unbiased=False)) == pytest.approx(1)
    bounds = {"0": {"percentile_00_5": 0.5, "percentile_99_5": 2.0, "mean": 1.0, "std": 0.5}}
    ct = prepare(plan(schemes=("CTNormalization",), intensities=bounds), image, (1, 1, 1)).image[0, 0, 0]
    assert ct.tolist() == [[0.0, 2.0, 0.0], [2.0, -1.0, 2.0], [0.0, 2.0, 0.0]]


def test_axes_are_those_of_the_plans_and_go_back():
    image = np.random.default_rng(0).uniform(1, 2, (1, 2, 3, 4)).astype(np.float32)
    turned = plan(transpose=(2, 0, 1), schemes=("NoNormalization",))
    ready = prepare(turned, image, (1, 1, 1))
    assert torch.equal(ready.image[0], torch.from_numpy(image.transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(ready.restored(ready.image), image)


def test_a_network_of_slices_sees_them_one_by_one_at_its_own_spacing():
    image = np.random.default_rng(0).uniform(1, 2, (1, 5, 8, 6)).astype(np.float32)
    ready = prepare(plan((4, 4), (2.0, 1.0), schemes=("NoNormalization",)), image, (7.0, 1.0, 1.0))
    assert (tuple(ready.image.shape), ready.grid) == ((5, 1, 4, 6), (5, 4, 6))
    assert ready.restored(ready.image).shape == image.shape
    constant = prepare(plan((4, 4), (2.0, 1.0), schemes=("NoNormalization",)), np.full_like(image, 3.0), (7, 1, 1))
    np.testing.assert_allclose(constant.restored(constant.image), 3.0)


@pytest.mark.parametrize(
    ("changed", "image", "message"),
    [
        ({}, np.ones((2, 2, 2, 2)), r"expected \(1, Z, Y, X\) with the channels FLAIR, got \(2, 2, 2, 2\)"),
        ({}, np.zeros((1, 2, 2, 2)), "0 everywhere"),
        ({}, np.full((1, 2, 2, 2), np.nan), "NaN"),
        ({"schemes": ("MyNormalization",)}, np.ones((1, 2, 2, 2)), "'MyNormalization' is none of nnU-Net's own"),
        (
            {"resampling": {"data": ("resample_torch_fornnunet", {})}, "spacing_mm": (2.0, 1.0, 1.0)},
            np.ones((1, 4, 4, 4)),
            "resampled by 'resample_torch_fornnunet'",
        ),
    ],
)
def test_images_that_cannot_be_prepared_are_refused_in_one_sentence(changed, image, message):
    with pytest.raises(ValueError, match=message) as error:
        prepare(plan(**changed), image, (1, 1, 1))
    assert "\n" not in str(error.value)


def test_regions_that_overlap_are_predicted_by_their_own_logits():
    nested = plan(regions={"whole": (0, (1, 2)), "core": (1, (2,))}, by_region=True)
    logits = torch.tensor([[[1.0, 2.0, -1.0]], [[3.0, -1.0, -2.0]]])[None]  # (1, 2, 1, 3)
    assert nested.target("whole").region(logits).tolist() == [[[True, True, False]]]
    assert nested.target("core").region(logits).tolist() == [[[True, False, False]]]
    labels = plan(regions={"background": (0, (0,)), "tumor": (1, (1,))})
    assert labels.target("tumor").region(logits).tolist() == [[[True, False, False]]]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("run-by-a-pickle",)


def test_nothing_of_the_folder_is_run(results, tmp_path, monkeypatch):
    folder, _, checkpoint = results
    monkeypatch.chdir(tmp_path)
    torch.save({**checkpoint, "logging": Evil()}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        load_nnunet(folder)
    assert not (tmp_path / "run-by-a-pickle").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network_class_name": "os.system"}, "'os.system' is none of PlainConvUNet"),
        ({"network_class_name": "subprocess.PlainConvUNet"}, "nothing else is loaded"),
        ({"arch_kwargs": {**KWARGS, "nonlin": "os.system"}}, r"'os\.system' is no layer of torch\.nn"),
        ({"arch_kwargs": {**KWARGS, "nonlin": "torch.nn.init.ones_"}}, "is no layer of torch.nn"),
        ({"arch_kwargs": {**KWARGS, "n_stages": 2}}, "PlainConvUNet cannot be built"),
        ({"arch_kwargs": {**KWARGS, "features_per_stage": [4, 6, 10]}}, "does not fit"),
    ],
)
def test_plans_that_name_anything_else_are_refused_in_one_sentence(results, changed, message):
    folder, _, _ = results
    (folder / "plans.json").write_text(json.dumps(plans(**changed)), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_nnunet(folder)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(results, tmp_path):
    folder, _, checkpoint = results
    with pytest.raises(FileNotFoundError, match=r"has no plans\.json"):
        load_nnunet(tmp_path)
    with pytest.raises(FileNotFoundError, match="fold_3"):
        load_nnunet(folder, 3)
    torch.save({"state_dict": {}}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="holds no 'network_weights'"):
        load_nnunet(folder)
    torch.save({**checkpoint, "init_args": {"configuration": "3d"}}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="no configuration '3d'; there are base, 2d"):
        load_nnunet(folder)
    (folder / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="is no JSON"):
        load_nnunet(folder)
