"""A results folder as nnU-Net v2 leaves it, small and untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.explain.nnunet import NNUNet

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


def make_results(parent: Path) -> tuple[Path, Any, dict[str, Any]]:
    """Folder, network and checkpoint; the weights of a network with deep supervision, which has the same."""
    from dynamic_network_architectures.architectures import unet

    folder = parent / "nnUNetTrainer__nnUNetPlans__2d"
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
