"""Do maps depend on what the network learned, and not on noise? Cascading randomization of weights, and stability."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from scripts.explain.baselines import check_foreground
from scripts.explain.layers import evaluating
from scripts.explain.maps import check_maps, is_empty, scale_maps, upsample
from scripts.explain.scores import plain
from scripts.explain.windows import answers_in_windows, window_around

__all__ = ["Explainer", "RandomizationStage", "Stability", "cascading_randomization", "map_similarity", "stability"]

# Function of a network and an input (B, C, *spatial) that returns maps (B, 1, *any grid).
Explainer = Callable[[nn.Module, Tensor], Tensor]


def map_similarity(a: Tensor, b: Tensor, size: Sequence[int], foreground: Tensor | None = None) -> dict[str, Tensor]:
    """How alike two batches of maps are, inside the foreground of the image grid.

    Args:
        a: (B, 1, *grid), signed or not.
        b: (B, 1, *grid), another grid allowed.
        size: image grid on which they are compared.
        foreground: (B, 1, *size), non-zero inside; None: everywhere.

    Returns:
        rank_correlation: (B,), Spearman's, -1 to 1; NaN where a map is constant in the foreground.
        ssim: (B,), structural similarity of the maps divided by their largest values, 1 = the same; windows of 7
            pixels or, on smaller grids, the largest odd number that fits. NaN where one of the maps is empty.
    """
    a, b = upsample(a, size).double(), upsample(b, size).double()
    inside = check_foreground(foreground, a).cpu().numpy()
    (scaled_a, empty_a), (scaled_b, empty_b) = scale_maps(a), scale_maps(b)
    nothing = (empty_a | empty_b).tolist()
    window = min(7, *[n - (n + 1) % 2 for n in size])
    correlations, similarities = [], []
    for i in range(len(a)):
        mask = inside[i, 0]
        correlations.append(_spearman(a[i, 0].cpu().numpy()[mask], b[i, 0].cpu().numpy()[mask]))
        if nothing[i] or window < 3:
            similarities.append(float("nan"))
            continue
        pair = (scaled_a[i, 0].cpu().numpy().astype(float), scaled_b[i, 0].cpu().numpy().astype(float))
        _, local = structural_similarity(*pair, win_size=window, data_range=1.0, full=True)
        similarities.append(float(local[mask].mean()))
    return {
        "rank_correlation": torch.tensor(correlations, dtype=torch.double),
        "ssim": torch.tensor(similarities, dtype=torch.double),
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    a, b = rankdata(a), rankdata(b)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / scale) if scale > 0 else float("nan")


@dataclass
class RandomizationStage:
    """Maps after the weights of a network were replaced from its output down to some layer.

    Attributes:
        layers: dotted names of the layers randomized at this stage, on top of those of the stages before.
        rank_correlation: (B,), with the maps of the trained network, see `map_similarity`.
        ssim: (B,).
        empty: (B,), bool.
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    ssim: Tensor
    empty: Tensor


def cascading_randomization(
    model: nn.Module,
    x: Tensor,
    explainer: Explainer,
    stages: int | Sequence[str] = 6,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    seed: int = 0,
) -> list[RandomizationStage]:
    """Replace the weights layer by layer, from the output to the input, and compare the maps with the first ones.

    A map that stays the same does not depend on what the network learned. `model` itself is not changed: a copy is.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, arXiv:1810.03292, section 3.1. A layer's
    weights are drawn again by its own `reset_parameters`, or, without one, from a normal distribution with the mean and
    standard deviation that they have. Buffers (running statistics, thresholds) are kept.

    Args:
        model: the trained network.
        x: input (B, C, *spatial).
        explainer: maps of a network and an input. It should give an empty map where there is none
            (`cancelled="empty"`): random weights may well have none.
        stages: number of stages, into which the layers with weights are split in the order in which they run; or the
            names of modules, the one next to the output first.
        forward_kwargs: arguments of `forward`, for the pass that finds the order.
        foreground: (B, 1, *spatial), where maps are compared; None: everywhere.
        seed: of the weights; torch's global random state is left alone.

    Returns:
        one entry a stage. The first randomizes nothing and compares two runs of the explainer: 1, 1 if it repeats.
    """
    groups = _stages(model, x, stages, forward_kwargs or {})
    network = copy.deepcopy(model)
    reference = check_maps(explainer(network, x)).detach()
    result = []
    for i, layers in enumerate([(), *groups]):
        for j, name in enumerate(layers):
            _randomize(network.get_submodule(name), hash((seed, i, j)) % 2**31)
        maps = check_maps(explainer(network, x)).detach()
        similarity = map_similarity(reference, maps, x.shape[2:], foreground)
        result.append(RandomizationStage(layers, **similarity, empty=is_empty(maps)))
    return result


def _stages(
    model: nn.Module, x: Tensor, stages: int | Sequence[str], forward_kwargs: Mapping[str, Any]
) -> list[tuple[str, ...]]:
    modules = dict(model.named_modules())
    if not isinstance(stages, int):
        unknown = [name for name in stages if name not in modules]
        if unknown:
            raise ValueError(f"stages: no module {unknown} in {type(model).__name__}")
        return [(name,) for name in stages]
    if answers_in_windows(model, x):  # the order is that of one window, and hooks are refused on several
        x = x[(slice(0, 1), slice(None), *window_around((x[0] != 0).any(dim=0), model.window))]  # type: ignore[arg-type]
    order: list[str] = []
    handles = []
    try:
        for name, module in modules.items():
            if next(module.parameters(recurse=False), None) is not None:
                hook = lambda _m, _a, _o, name=name: order.append(name)  # noqa: E731
                handles.append(module.register_forward_hook(hook))
        with torch.no_grad(), evaluating(model):
            model(x.clone(), **forward_kwargs)
    finally:
        for handle in handles:
            handle.remove()
    layers = list(dict.fromkeys(reversed(order)))
    if not layers or stages < 1:
        raise ValueError(f"stages: expected 1 or more of {type(model).__name__}'s {len(layers)} layers, got {stages}")
    return [tuple(part) for part in np.array_split(np.array(layers, dtype=object), min(stages, len(layers)))]


def _randomize(module: nn.Module, seed: int) -> None:
    """Draw the weights of a module and of all inside it again, leaving buffers and the global random state alone."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(seed)
        for part in module.modules():
            parameters = dict(part.named_parameters(recurse=False))
            if not parameters:
                continue
            buffers = {name: value.clone() for name, value in part.named_buffers(recurse=False)}
            if callable(getattr(part, "reset_parameters", None)):
                part.reset_parameters()  # type: ignore[operator]
            else:
                for parameter in parameters.values():
                    std = float(parameter.float().std()) if parameter.numel() > 1 else 0.0
                    parameter.copy_(torch.randn(parameter.shape) * std + float(parameter.float().mean()))
            for name, value in buffers.items():
                getattr(part, name).copy_(value)


@dataclass
class Stability:
    """How much maps change under noise that hardly changes the image.

    Attributes:
        rank_correlation: (N, B), of the maps of N noisy copies with those of the clean input, see `map_similarity`.
        ssim: (N, B).
        largest_change: (B,), largest ||scaled map - scaled noisy map|| / ||scaled map|| over the copies; NaN for an
            empty map.
    """

    rank_correlation: Tensor
    ssim: Tensor
    largest_change: Tensor


def stability(
    model: nn.Module,
    x: Tensor,
    explainer: Explainer,
    foreground: Tensor | None = None,
    noise_std: float = 0.05,
    n_copies: int = 4,
    seed: int = 0,
) -> Stability:
    """Compare the maps of an input with those of slightly noisy copies; the air stays as it is.

    Source: Yeh et al., On the (In)fidelity and Sensitivity of Explanations, NeurIPS 2019, arXiv:1901.09392, definition
    3.1 (max-sensitivity). Departs from it: Gaussian noise of a given strength, and maps divided by their largest value.

    Args:
        model: the network.
        x: input (B, C, *spatial).
        explainer: maps of a network and an input.
        foreground: (B, 1, *spatial), where noise is added and maps are compared; None: everywhere.
        noise_std: standard deviation of the noise as a share of that of each sample's foreground.
        n_copies: N, noisy copies.
        seed: of the noise, the same for every sample.
    """
    if noise_std <= 0 or n_copies < 1:
        raise ValueError(f"expected noise_std > 0 and n_copies >= 1, got {noise_std} and {n_copies}")
    x = plain(x)
    inside = check_foreground(foreground, x)
    mask = inside.expand_as(x).flatten(1)
    flat = x.float().flatten(1)
    mean = (flat * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    std = ((flat - mean).square() * mask).sum(1).div(mask.sum(1)).sqrt().reshape(-1, *[1] * (x.dim() - 1))
    reference = check_maps(explainer(model, x)).detach()
    scaled, empty = scale_maps(reference)
    norm = scaled.flatten(1).double().norm(dim=1).masked_fill(empty, torch.nan)
    generator = torch.Generator().manual_seed(seed)
    parts, changes = [], []
    for _ in range(n_copies):
        noise = torch.randn(x.shape[1:], generator=generator).to(x.device)
        maps = check_maps(explainer(model, x + (noise_std * std * noise * inside).to(x.dtype))).detach()
        parts.append(map_similarity(reference, maps, x.shape[2:], foreground))
        changes.append((scale_maps(maps)[0] - scaled).flatten(1).double().norm(dim=1) / norm)
    return Stability(
        torch.stack([p["rank_correlation"] for p in parts]),
        torch.stack([p["ssim"] for p in parts]),
        torch.stack(changes).amax(0),
    )
