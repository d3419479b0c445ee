"""A results folder of nnU-Net v2 is explained as it lies on disk, and nothing in it is run."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from scripts.explain.nnunet import load_nnunet, normalized
from scripts.explain.targets import SegmentationRegion

unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")

KWARGS = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": "torch.nn.modules.conv.Conv2d",
    "kernel_sizes": [[3, 3]] * 3,
    "strides": [[1, 1], [2, 2], [2, 2]],
    "n_conv_per_stage": [1, 1, 1],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def plans(**changed):
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": KWARGS,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        **changed,
    }
    base = {
        "patch_size": [16, 16],
        "spacing": [1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [True],
        "architecture": architecture,
    }
    return {"configurations": {"base": base, "2d": {"inherits_from": "base", "batch_size": 2}}}


@pytest.fixture
def results(tmp_path):
    """A folder as nnU-Net's trainer leaves it; the weights of a network with deep supervision, which has the same."""
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans()), encoding="utf-8")
    labels = {"background": 0, "edema": 1, "tumor": 2}
    dataset = {"channel_names": {"0": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")
    torch.manual_seed(0)
    kwargs = {**KWARGS, "conv_op": torch.nn.Conv2d, "norm_op": torch.nn.InstanceNorm2d, "nonlin": torch.nn.LeakyReLU}
    network = unet.PlainConvUNet(1, num_classes=3, deep_supervision=True, **kwargs)
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": torch.optim.SGD(network.parameters(), 0.01).state_dict(),
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "dice_per_class": [np.ones(2)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 3,
        "init_args": {"plans": plans(), "configuration": "2d", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return folder, network, checkpoint


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
    score = SegmentationRegion(channel=2).bind(output.detach())(output)
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


def test_images_are_normalized_as_nnunet_does_by_hand(results):
    found = load_nnunet(results[0])
    image = torch.tensor([[[0.0, 1.0], [3.0, 0.0]]])
    assert torch.equal(normalized(found, image), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))


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
