"""Causes of a heatmap in the background that lie in how it is shown: the scaling and the colors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from scripts.explain.findings import CANNOT_TELL, Finding, verdict

__all__ = ["inverted_normalizer", "swapped_colors", "swapped_pictures", "warmth"]

NORMALIZER, COLORS = "inverted normalizer", "swapped colors"
RGB_ADVICE = "cv2.applyColorMap returns BGR: convert with cv2.cvtColor(..., cv2.COLOR_BGR2RGB) before showing it as RGB"
# Color maps that ready pictures are compared with.
KNOWN_MAPS = ("jet", "turbo", "inferno", "magma", "plasma", "viridis", "hot", "rainbow", "coolwarm")


def inverted_normalizer(postprocessing: Callable[[Tensor], Any]) -> Finding:
    """Whether a postprocessing of maps turns the strongest place into the weakest.

    Args:
        postprocessing: function of a map (1, 1, H, W), as MONAI's CAM classes take it.
    """
    ramp = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    result, nothing = (torch.as_tensor(np.asarray(postprocessing(m.clone()))) for m in (ramp, torch.zeros(1, 1, 8, 8)))
    flat = result.double().flatten()
    figures = {
        "strongest_becomes": float(flat[-1]),
        "weakest_becomes": float(flat[0]),
        "empty_map_becomes": float(nothing.double().flatten()[0]),
    }
    if float(flat.max() - flat.min()) == 0:
        return Finding(NORMALIZER, CANNOT_TELL, figures, "the postprocessing makes every map constant")
    return Finding(
        NORMALIZER,
        verdict(bool(flat[-1] < flat[0])),
        figures,
        f"the strongest place becomes {float(flat[-1]):.2f} and the weakest {float(flat[0]):.2f} (limit: the strongest "
        "has to be the larger)",
        "pass postprocessing=scripts.explain.maps.max_scaling: monai.visualize's default_normalizer maps (min, max) to "
        "(1, 0), so that the weakest places are painted as the strongest, air first",
    )


def warmth(colors: np.ndarray) -> np.ndarray:
    """Red minus blue of RGB colors (..., 3 or 4), float. What a gray image under an overlay adds to both cancels."""
    colors = np.asarray(colors, dtype=float)
    return colors[..., 0] - colors[..., 2]


def swapped_colors(colorize: Callable[[np.ndarray], Any]) -> Finding:
    """Whether the strongest value is painted colder than the weakest, as by OpenCV's BGR shown as RGB.

    Args:
        colorize: function of values in [0, 1], (H, W) float32, to RGB (H, W, 3 or 4), of any scale.
    """
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    colors = np.asarray(colorize(ramp), dtype=float)
    if colors.ndim != 3 or colors.shape[:2] != (8, 8) or colors.shape[2] not in (3, 4):
        raise ValueError(f"colorize: expected RGB (H, W, 3) for a map (8, 8), got {colors.shape}")
    warm = warmth(colors) / (float(colors[..., :3].max()) or 1.0)
    figures = {"warmth_of_strongest": float(warm[-1, -1]), "warmth_of_weakest": float(warm[0, 0])}
    difference = figures["warmth_of_strongest"] - figures["warmth_of_weakest"]
    if abs(difference) < 0.1:
        return Finding(COLORS, CANNOT_TELL, figures, "the color map has no warm and cold end")
    return Finding(
        COLORS,
        verdict(difference < 0),
        figures,
        f"red minus blue is {figures['warmth_of_strongest']:+.2f} at the strongest and "
        f"{figures['warmth_of_weakest']:+.2f} at the weakest value (limit: it has to rise)",
        RGB_ADVICE,
    )


def swapped_pictures(pictures: Sequence[np.ndarray], maps: Sequence[np.ndarray] | None = None) -> Finding:
    """Whether ready pictures of heatmaps, or overlays, have red and blue swapped.

    With the maps that the pictures show: known color maps, as they are and with red and blue exchanged, are laid over
    the map and compared with the picture by their chroma (R - G, G - B), to which a gray image underneath adds nothing.
    Without: the colors must be those of a known map read backwards. A jet read backwards is a jet again with its ends
    exchanged: such pictures cannot be recognized without the map, and with it an inverted scale looks the same, which
    the reason then says.

    Args:
        pictures: RGB (H, W, 3), uint8.
        maps: the map that each picture shows, (H, W) in [0, 1], larger = stronger; None where that is not known.
    """
    pixels = np.concatenate([np.asarray(p)[..., :3].reshape(-1, 3) for p in pictures]).astype(float) / 255
    values = None if maps is None else np.concatenate([np.asarray(m, float).ravel() for m in maps])
    if values is not None and len(values) != len(pixels):
        raise ValueError("swapped_pictures: expected one map of the picture's size for each picture")
    subset = np.random.default_rng(0).permutation(len(pixels))[:20000]
    pixels, values = pixels[subset], None if values is None else values[subset]
    colored = pixels[np.ptp(pixels, axis=1) > 0.15]
    share = len(colored) / len(pixels)
    figures: dict[str, float] = {"pictures": float(len(pictures)), "share_of_colored_pixels": share}
    if len(colored) < 100:
        return Finding(COLORS, CANNOT_TELL, figures, "the pictures are gray: there is no color to be swapped")
    if values is not None and np.ptp(values) > 0:
        right, backwards = _explained(pixels, values)
        figures |= {"variance_explained": right, "variance_explained_swapped": backwards}
        reason = (
            f"the best known color map explains {right:.0%} of the colors, with red and blue exchanged {backwards:.0%}"
        )
        if max(right, backwards) > 0.3 and abs(right - backwards) > 0.1:
            if backwards > right:
                reason += (
                    "; in a map such as jet an inverted scale looks the same: see 'inverted normalizer' before mending"
                )
            return Finding(COLORS, verdict(backwards > right), figures, reason + " (limit: 10 points more)", RGB_ADVICE)
    else:
        right, backwards = _distance_to_known(colored)
        figures |= {"distance_to_known_map": right, "distance_to_known_map_swapped": backwards}
        reason = (
            f"the colors lie {right:.3f} from the nearest known color map, and {backwards:.3f} from the nearest with "
            "red and blue exchanged"
        )
        if min(right, backwards) < 0.05 and abs(right - backwards) > 0.02:
            return Finding(COLORS, verdict(backwards < right), figures, reason + " (limit 0.02 apart)", RGB_ADVICE)
    return Finding(
        COLORS,
        CANNOT_TELL,
        figures,
        reason + ": that decides nothing",
        "name each picture as its image, so that it can be compared with the map",
    )


def _tables() -> list[np.ndarray]:
    """Known color maps, (128, 3) RGB in [0, 1]."""
    return [np.asarray(matplotlib.colormaps[name](np.linspace(0, 1, 128)))[:, :3] for name in KNOWN_MAPS]


def _chroma(colors: np.ndarray) -> np.ndarray:
    """(R - G, G - B) of colors (N, 3)."""
    return colors[:, :2] - colors[:, 1:]


def _explained(pixels: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Share of the pictures' chroma that the best known map explains, as it is and with red and blue exchanged.

    Opacity may be one for the whole picture, or grow with the value.
    """
    seen = _chroma(pixels)
    index = np.rint(np.clip(values, 0, 1) * 127).astype(int)

    def share(table: np.ndarray, opacity: Any) -> float:
        expected = _chroma(table[index]) * opacity
        size = float((expected**2).sum())
        scale = max(0.0, float((seen * expected).sum()) / size) if size else 0.0
        return 1 - float(((seen - scale * expected) ** 2).sum() / (seen**2).sum())

    opacities = (1.0, np.clip(values, 0, 1)[:, None])
    right, backwards = (
        max(share(table[:, ::step], opacity) for table in _tables() for opacity in opacities) for step in (1, -1)
    )
    return right, backwards


def _distance_to_known(colors: np.ndarray) -> tuple[float, float]:
    """Mean distance of RGB colors (N, 3) in [0, 1] to the nearest known map, and to the nearest read as BGR."""
    some = colors[:1000, None]

    def distance(table: np.ndarray) -> float:
        return float(np.sqrt(((table[None] - some) ** 2).sum(2)).min(1).mean())

    return min(map(distance, _tables())), min(distance(table[:, ::-1]) for table in _tables())
