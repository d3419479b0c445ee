"""Small scans in any orientation, and a bundle with untrained weights, for tests of inference."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NETWORK = {
    "_target_": "scripts.networks.MultiTaskDynUNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 2,
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [4, 8, 16],
    "num_classes": "@num_classes",
    "evidence_channels": 8,
}


def head(shape: tuple[int, int, int] = (40, 46, 9), seed: int = 0) -> np.ndarray:
    """A textured ellipsoid in air, float32 (X, Y, Z); its first slice shows nothing."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (axes[0] / 0.75) ** 2 + (axes[1] / 0.85) ** 2 + ((axes[2] - 0.2) / 1.1) ** 2 < 1
    value = 100 + 40 * axes[0] + 25 * axes[1] * axes[2] + 10 * rng.standard_normal(shape)
    value[np.hypot(axes[0] - 0.3, axes[1]) < 0.2] += 60
    volume = np.where(inside, value, 2 * rng.random(shape)).astype(np.float32)
    volume[:, :, 0] = 0
    return volume


def oblique(spacing: tuple[float, float, float] = (1.0, 1.1, 5.0), degrees: float = 12.0) -> np.ndarray:
    """Affine of a tilted LPS volume."""
    angle = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(spacing)
    affine[:3, 3] = [31.0, -12.5, 7.0]
    return affine


def save(path: Path, volume: np.ndarray, affine: np.ndarray, axcodes: str = "LPS") -> Path:
    """Write a volume whose axes are LPS in another order and direction of axes: the same anatomy."""
    image = nib.Nifti1Image(volume, affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axcodes))
    )
    nib.save(image.as_reoriented(turn), path)
    return path


def save_picture(path: Path, plane: np.ndarray) -> Path:
    """Write a slice (X, Y) as an 8-bit picture."""
    Image.fromarray(np.clip(plane.T, 0, 255).astype(np.uint8)).save(path)
    return path


def write_overlay(folder: Path, spatial_size: tuple[int, ...] = (32, 32), **changes: object) -> Path:
    """Overlay of ``configs/inference.yaml`` with a small network and random weights that find something."""
    definition = {**NETWORK, **changes}
    config = {
        "spatial_size": list(spatial_size),
        "num_classes": 3,
        "network_def": definition,
        "classes": {"0": "no_tumor", "1": "glioma", "2": "meningioma"},
        "weights": str(folder / "model.pt"),
        "device": "cpu",
        "slice_batch_size": 4,
    }
    torch.manual_seed(1)
    network = ConfigParser({**config}).get_parsed_content("network_def")
    with torch.no_grad():
        if hasattr(network.head, "evidence"):
            network.head.evidence.conv.weight.mul_(60)
        network.output_block.conv.conv.weight.mul_(8)
        network.temperature.fill_(1.5)
        network.threshold.fill_(0.4)
    torch.save(network.state_dict(), folder / "model.pt")
    path = folder / "network.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path
