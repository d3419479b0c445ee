"""An infill that learned how healthy tissue goes on: a small U-Net adds what a smooth surface lacks.

The network sees a head's plane in a square, the hole filled by the harmonic surface, and where the hole is; it gives
the difference to healthy tissue. `python -m scripts infill` fits it to healthy tissue that is hidden from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNet
from torch.nn.functional import interpolate, pad

from scripts.interventions.blend import blend
from scripts.interventions.infill import MUCH, Hole, matching_shift, odd, surface, texture
from scripts.interventions.regions import Box, Image, Mask, Search, box_of, moved, shifted

WEIGHTS = Path(__file__).with_name("learned.pt")
# Side of the square, in pixels.
SIZE = 160
# Places among which the one is drawn whose residue is taken: those whose surroundings are most like the hole's.
_ALIKE = 40


def make_network() -> UNet:
    """The network: (B, 2, SIZE, SIZE), the filled plane and the hole, to (B, 1, SIZE, SIZE); weights are random."""
    return UNet(2, 2, 1, channels=(16, 32, 48, 64, 96), strides=(2, 2, 2, 2), num_res_units=1, norm="batch")


@cache
def trained_network(path: Path = WEIGHTS) -> UNet:
    """The network with weights that `python -m scripts infill` wrote, in evaluation mode."""
    network = make_network()
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict({name: value.float() for name, value in state.items()})
    return network.eval().requires_grad_(False)


class Square:
    """Takes the box of a head into the network's square, and gives it back.

    Args:
        foreground: (H, W), of the head.
    """

    def __init__(self, foreground: Mask) -> None:
        self.box: Box = box_of(foreground)
        height, width = (side.stop - side.start for side in self.box)
        scale = SIZE / max(height, width)
        self.shape, self.inside = (height, width), (max(1, round(height * scale)), max(1, round(width * scale)))
        self.corner = [(SIZE - n) // 2 for n in self.inside]

    def take(self, values: Image) -> torch.Tensor:
        """(C, H, W) of the picture to (C, SIZE, SIZE); 0 around it."""
        part = torch.from_numpy(np.ascontiguousarray(values[(slice(None), *self.box)], np.float32))
        resized = interpolate(part[None], self.inside, mode="bilinear", antialias=True)[0]
        (top, left), (height, width) = self.corner, self.inside
        return pad(resized, (left, SIZE - width - left, top, SIZE - height - top))

    def give(self, values: torch.Tensor, shape: tuple[int, int]) -> Image:
        """(C, SIZE, SIZE) to (C, *shape) of the picture; 0 around the head."""
        (top, left), (height, width) = self.corner, self.inside
        part = values[None, :, top : top + height, left : left + width]
        result = np.zeros((len(values), *shape), np.float32)
        result[(slice(None), *self.box)] = interpolate(part, self.shape, mode="bilinear", antialias=True)[0].numpy()
        return result


@dataclass(frozen=True)
class Plane:
    """One plane of a picture with a hole, as the network takes it.

    Args:
        filled: (C, H, W), the hole filled by the surface.
        inputs: (C, 2, SIZE, SIZE): each channel so, in spreads of its tissue about its mean, and the hole.
        spread: (C, 1, 1), of the tissue outside of the hole.
        square: the way there and back.
    """

    filled: Image
    inputs: torch.Tensor
    spread: Image
    square: Square

    @classmethod
    def of(cls, filled: Image, region: Mask, foreground: Mask) -> Plane:
        """Of a plane (C, H, W) whose region is filled by the surface."""
        tissue = foreground & ~region if (foreground & ~region).any() else foreground
        middle, spread = (f(filled[:, tissue], axis=1).reshape(-1, 1, 1).astype(np.float32) for f in (np.mean, np.std))
        spread = np.maximum(spread, np.float32(1e-6))
        square = Square(foreground)
        values = square.take((filled - middle) / spread * foreground)
        hole = square.take(region[None].astype(np.float32)).expand_as(values)
        return cls(filled, torch.stack([values, hole], dim=1), spread, square)

    def difference(self, image: Image) -> torch.Tensor:
        """What the network should answer, (C, 1, SIZE, SIZE), if ``image`` (C, H, W) is the plane without a hole."""
        return self.square.take((image - self.filled) / self.spread)[:, None]


def planes(hole: Hole, smooth: Image) -> Iterator[tuple[int, Plane]]:
    """The planes of a picture that its region lies in, filled by its `surface`; of one (C, H, W) plane 0 alone."""
    filled = hole.placed(smooth)
    flat = hole.whole_region.ndim == 2
    for k in [0] if flat else np.flatnonzero(hole.whole_region.any(axis=(0, 1))).tolist():
        arrays = (filled, hole.whole_region, hole.foreground)
        yield k, Plane.of(*(arrays if flat else (array[..., k] for array in arrays)))


def expected(hole: Hole, network: UNet) -> Image:
    """What a network expects in the box of a hole (slice by slice in 3D): smooth where it cannot know.

    Its part sets in over the width of the seam, so that at the rim what is there goes on.
    """
    change, smooth = np.zeros_like(hole.whole), surface(hole)
    for k, plane in planes(hole, smooth):
        with torch.no_grad():
            answer = network(plane.inputs)[:, 0]
        values = plane.square.give(answer, hole.whole.shape[1:3]) * plane.spread
        change[... if hole.region.ndim == 2 else (..., k)] = values
    changed = smooth + change[(slice(None), *hole.box)]
    return blend("alpha", smooth, changed, hole.region, hole.tissue, hole.seam)


def like_healthy(hole: Hole, rng: np.random.Generator, network: UNet, grain: bool = True) -> Image:
    """What is expected, and what tissue adds to that: what the network left out at a healthy place of the same head.

    Args:
        hole: to fill.
        rng: draws the place among those whose surroundings are most like the hole's; where the shape fits nowhere else
            in healthy tissue that is like the tissue around it, the head's fine texture is added instead.
        network: of `make_network`.
        grain: add it; without it the hole is smooth where the network cannot know.
    """
    piece = expected(hole, network)
    if grain:
        piece = piece + _grain(hole, rng, network)
    return blend("alpha", hole.image, piece, hole.region, hole.tissue, hole.seam)


def _grain(hole: Hole, rng: np.random.Generator, network: UNet) -> Image:
    search = Search(hole.whole_region, hole.healthy)
    oddness = odd(search, hole, hole.whole) if len(search.shifts) else np.ones(1, np.float32)
    if oddness.min() > MUCH:
        return texture(hole, rng)
    shift = matching_shift(search, hole.whole, hole, hole.whole_rim, oddness, rng, _ALIKE)
    place = moved(hole.whole_region, shift)
    other = Hole(hole.whole, place, hole.healthy & ~place, hole.foreground, hole.seam)
    return shifted(hole.whole - other.placed(expected(other, network)), shift, hole.box)


def learned(hole: Hole, rng: np.random.Generator) -> Image:
    """`like_healthy` by the weights that lie beside this module."""
    return like_healthy(hole, rng, trained_network())
