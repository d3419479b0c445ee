"""What happens to images outside of the training set: corruptions of the raw image at stated strengths.

They are applied to the file's values before the bundle's pipeline sees them, as in reality: noise also fills the air,
and scaling, foreground mask and normalization work on the corrupted image. MONAI's transforms where it has them.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    AdjustContrast,
    GaussianSmooth,
    GibbsNoise,
    RandBiasField,
    RandRicianNoise,
    Rotate,
)
from PIL import Image
from torch import Tensor

__all__ = ["CORRUPTIONS", "Corruption", "corrupt"]

GHOSTS = 4  # lines of k-space from one disturbed line to the next


@dataclass(frozen=True)
class Corruption:
    """A way of spoiling an image.

    Attributes:
        change: of (image (C, X, Y) float32 scaled to 0..1, strength, seed), returns the same.
        strengths: from weak to strong.
        unit: of the strength, in words.
        geometric: whether masks move along.
    """

    change: Callable[[Tensor, float, int], Tensor]
    strengths: tuple[float, ...]
    unit: str
    geometric: bool = False


def _noise(image: Tensor, strength: float, seed: int) -> Tensor:
    transform = RandRicianNoise(prob=1.0, mean=0.0, std=strength, sample_std=False)
    transform.set_random_state(seed)
    return transform(image)


def _blur(image: Tensor, strength: float, seed: int) -> Tensor:
    return GaussianSmooth(sigma=strength)(image)


def _contrast(image: Tensor, strength: float, seed: int) -> Tensor:
    return AdjustContrast(gamma=strength)(image)


def _bias(image: Tensor, strength: float, seed: int) -> Tensor:
    transform = RandBiasField(degree=3, coeff_range=(-strength, strength), prob=1.0)
    transform.set_random_state(seed)
    return transform(image)


def _rotate(image: Tensor, strength: float, seed: int) -> Tensor:
    sign = 1 if seed % 2 else -1
    return Rotate(angle=sign * np.deg2rad(strength), keep_size=True, padding_mode="zeros")(image)


def _ghost(image: Tensor, strength: float, seed: int) -> Tensor:
    """Every fourth line of k-space weakened, as by a head that moves with a rhythm: ghosts along the second axis.

    The middle of k-space is left as it is, so that the image keeps its brightness. MONAI has no ghosting.

    Source: Shaw et al., "MRI k-Space Motion Artefact Augmentation", MIDL 2019; TorchIO's RandomGhosting.
    """
    spectrum = torch.fft.fft(image, dim=-1)
    lines = spectrum.shape[-1]
    weight = torch.ones(lines)
    weight[::GHOSTS] = 1 - strength
    middle = torch.fft.fftfreq(lines).abs() <= 0.01
    weight[middle] = 1.0
    return torch.fft.ifft(spectrum * weight, dim=-1).abs()  # a magnitude, as scanners show it


def _gibbs(image: Tensor, strength: float, seed: int) -> Tensor:
    return GibbsNoise(alpha=strength)(image)


def _jpeg(image: Tensor, strength: float, seed: int) -> Tensor:
    channels = []
    for plane in image.numpy():
        buffer = io.BytesIO()
        pixels = np.rint(np.clip(plane.T, 0, 1) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=int(strength))
        buffer.seek(0)
        channels.append(np.asarray(Image.open(buffer), dtype=np.float32).T / 255)
    return torch.from_numpy(np.ascontiguousarray(np.stack(channels)))


CORRUPTIONS: dict[str, Corruption] = {
    "noise": Corruption(_noise, (0.03, 0.07, 0.15), "Rician, deviation as a share of the range"),
    "blur": Corruption(_blur, (1.0, 2.0, 3.0), "Gaussian width, pixels of the image"),
    "contrast": Corruption(_contrast, (0.7, 1.5, 2.5), "gamma; 1 leaves it as it is"),
    "bias field": Corruption(_bias, (0.2, 0.4, 0.7), "coefficients of a polynomial of degree 3"),
    "rotation": Corruption(_rotate, (5.0, 15.0, 30.0), "degrees, to either side", geometric=True),
    "motion ghosting": Corruption(_ghost, (0.3, 0.6, 0.9), f"every {GHOSTS}th line of k-space weakened by this share"),
    "ringing": Corruption(_gibbs, (0.7, 0.8, 0.9), "share of k-space cut off (Gibbs)"),
    "JPEG": Corruption(_jpeg, (50.0, 20.0, 5.0), "quality; lower is worse"),
}


def corrupt(item: Mapping[str, Any], name: str, strength: float) -> dict[str, Any]:
    """Corrupt a loaded item.

    Args:
        item: image (C, X, Y) as its file has it, any range; label and foreground (1, X, Y) or none.
        name: of `CORRUPTIONS`.
        strength: see there.

    Returns:
        a new item; each channel has the range that it had, masks moved by nearest neighbor if the image was.

    Raises:
        ValueError: when the corruption is unknown or the image is not 2D.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption is one of {', '.join(CORRUPTIONS)}, got {name!r}")
    image = item["image"]
    if image.ndim != 3:
        raise ValueError(f"corruptions are for 2D images (C, X, Y), got {tuple(image.shape)}")
    kind = CORRUPTIONS[name]
    # The seed is the case's, so that every run and every network meets the same corrupted images.
    seed = zlib.crc32(f"{item.get('name', '')} {name} {strength}".encode()) % 2**31
    plain = image.as_tensor().to(torch.float32) if isinstance(image, MetaTensor) else image.to(torch.float32)
    low, span = _ranges(plain)
    changed = torch.as_tensor(kind.change((plain - low) / span, strength, seed)).as_subclass(Tensor)
    result = dict(item)
    result["image"] = _like(changed * span + low, image)
    if kind.geometric:
        for key in ("label", "foreground"):
            if key in item:
                moved = _rotate_mask(item[key], strength, seed)
                result[key] = _like(moved.to(item[key].dtype), item[key])
    return result


def _ranges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Least value and range of each channel (C, 1, 1), so that none is drowned in the noise of a louder one."""
    values = image.flatten(1)
    low, high = values.amin(dim=1), torch.quantile(values[:, :: max(1, values.shape[1] // 2**20)], 0.999, dim=1)
    span = torch.where(high > low, high - low, torch.ones(()))
    return low[:, None, None], span[:, None, None]


def _rotate_mask(mask: Tensor, strength: float, seed: int) -> Tensor:
    sign = 1 if seed % 2 else -1
    plain = mask.as_tensor() if isinstance(mask, MetaTensor) else mask
    rotate = Rotate(angle=sign * np.deg2rad(strength), keep_size=True, mode="nearest", padding_mode="zeros")
    return torch.as_tensor(rotate(plain.to(torch.float32))).as_subclass(Tensor)


def _like(value: Tensor, source: Tensor) -> Tensor:
    return MetaTensor(value, meta=dict(source.meta)) if isinstance(source, MetaTensor) else value
