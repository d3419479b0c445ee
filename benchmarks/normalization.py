"""What foreground-aware normalization costs as a layer, against torch's, and the digits that it keeps."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rows import Row
from benchmarks.timing import CLOCKS, timed
from scripts.networks import normalization
from scripts.networks.normalization import ForegroundInstanceNorm
from scripts.runs import folder as runs
from scripts.training.precision import native_bfloat16


def lost_digits(x: Tensor, mask: Tensor, closed_form: bool = False) -> float:
    """Largest error of a normalized (B, C, H, W) tensor against float64; in closed form, as ``E[x^2] - E[x]^2``."""
    exact = ForegroundInstanceNorm(x.shape[1], affine=False)(x.double(), mask.double())
    if not closed_form:
        return float((ForegroundInstanceNorm(x.shape[1], affine=False)(x, mask) - exact).abs().max())
    n = mask.sum((2, 3), keepdim=True)
    mean = (x * mask).sum((2, 3), keepdim=True) / n
    variance = (x.square() * mask).sum((2, 3), keepdim=True) / n - mean.square()
    return float(((x - mean) * torch.rsqrt(variance.clamp(min=0) + 1e-5) * mask - exact).abs().max())


def digits(image: Tensor, run: Path | None = None) -> list[Row]:
    """Rows on the precision of the normalization.

    Args:
        image: (B, 1, H, W): its size is that of the values at mean/std = 100, and a trained run reads it.
        run: folder of a trained run.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, *image.shape[2:], generator=generator) + 100
    mask = (torch.rand(2, 1, *image.shape[2:], generator=generator) < 0.6).float()
    result = [
        Row("normalization at mean/std = 100, error", lost_digits(x, mask), "", 1e-4),
        Row("the same by closed-form sums", lost_digits(x, mask, closed_form=True), ""),
    ]
    if run is None:
        return result
    network, _, _ = runs.load_run(run)
    worst, ratios = [], []

    def look(layer: ForegroundInstanceNorm, pair: tuple[Tensor, Tensor]) -> None:
        x, m = pair
        n = m.sum((2, 3))
        mean = (x * m).sum((2, 3)) / n
        deviation = (((x - mean[..., None, None]) * m).square().sum((2, 3)) / n).sqrt()
        ratios.append(float((mean.abs() / deviation.clamp(min=1e-3)).max()))
        worst.append(lost_digits(x, m))

    layers = [m for m in network.modules() if isinstance(m, ForegroundInstanceNorm)]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    with torch.no_grad():
        network.multitask(image)
    for handle in handles:
        handle.remove()
    return [
        *result,
        Row("trained features, largest mean/std", max(ratios), ""),
        Row("trained features, error of the normalization", max(worst), "", 1e-4),
    ]


def _nowhere(x: Tensor) -> bool:
    return False


def layer_rows(size: int, rounds: int, channels: int = 32) -> list[Row]:
    """Rows on one normalization layer with its activation, forward and backward: ours against torch's.

    Args:
        size: side of the image.
        rounds: counted ones, after one that is thrown away.
        channels: of the layer.
    """
    weight, bias = torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    mask = (torch.rand(2, 1, size, size) < 0.6).float()
    layer = ForegroundInstanceNorm(channels)
    result = []
    for dtype in (torch.float32, *([torch.bfloat16] if native_bfloat16(torch.device("cpu")) else [])):
        x = torch.randn(2, channels, size, size).to(dtype).requires_grad_()
        upstream = torch.randn_like(x)

        def ours(plain: bool, x: Tensor = x) -> Tensor:
            chosen = normalization.in_blocks
            if plain:
                normalization.in_blocks = _nowhere
            try:
                return layer(x, mask)
            finally:
                normalization.in_blocks = chosen

        jobs: dict[str, Callable[[], Tensor]] = {
            "in blocks": lambda: ours(False),
            "in plain operations": lambda: ours(True),
            "torch": partial(torch.nn.functional.instance_norm, x, weight=weight, bias=bias),
        }

        def both_ways(job: Callable[[], Tensor], upstream: Tensor = upstream) -> None:
            torch.nn.functional.leaky_relu(job(), 0.01, inplace=True).backward(upstream)

        taken = timed({name: partial(both_ways, job) for name, job in jobs.items()}, rounds, CLOCKS["cpu"])
        for name in ("in blocks", "in plain operations"):
            ratios = [a / b for a, b in zip(taken[name], taken["torch"], strict=True)]
            kind = str(dtype).removeprefix("torch.")
            result.append(Row(f"normalization layer {name} / torch's, {kind}", statistics.median(ratios)))
    return result
