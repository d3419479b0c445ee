"""Maps from gradients by the input: saliency, SmoothGrad and integrated gradients, with captum's gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor, nn

from scripts.explain.baselines import Baseline, baseline_image
from scripts.explain.cam import CamPass
from scripts.explain.scores import Scorer, copies_at_once
from scripts.explain.statistics import FOLLOWED, named
from scripts.explain.targets import Target

__all__ = ["INPUT", "IntegratedGradientsPass", "integrated_gradients", "saliency", "smoothgrad"]

INPUT = "input"  # the "layer" of a method that explains the input itself


def _gradient(scorer: Scorer, inputs: Tensor, index: Tensor) -> Tensor:
    """Gradient of each sample's score by its input, (N, C, *spatial), float32."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs = inputs.detach().clone().requires_grad_()
        scaled = Saliency(lambda x, i: scorer(x, i) * scorer.scale).attribute(
            inputs, abs=False, additional_forward_args=(index,)
        )
    return _finite(scaled.detach().float() / scorer.scale, "gradient by the input")


def _finite(values: Tensor, what: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(f"{what}: values that are not finite; run the network in float32")
    return values


def _magnitude(gradient: Tensor, signed: bool) -> Tensor:
    return gradient.sum(1, keepdim=True) if signed else gradient.abs().amax(1, keepdim=True)


def saliency(
    model: nn.Module,
    x: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    signed: bool = False,
    batch_size: int | None = None,
    statistics: str = FOLLOWED,
) -> CamPass:
    """Gradient of the score by the input: how much a small change of each pixel would change it.

    Source: Simonyan et al., Deep Inside Convolutional Networks, 2013, arXiv:1312.6034, section 3: the largest magnitude
    over the input channels.

    Args:
        model, x, target, forward_kwargs, foreground, foreground_kwarg: see `scores.Scorer`.
        signed: the sum over the input channels instead of the largest magnitude.
        batch_size: samples in one backward pass; None: what suits the device.
        statistics: see `scores.Scorer`.

    Returns:
        maps: ("saliency", "input"): (B, 1, *spatial), float32, >= 0 unless signed.
    """
    scorer = Scorer(model, x, target, forward_kwargs, foreground, foreground_kwarg, statistics=statistics)
    every, batch_size = torch.arange(len(scorer.x), device=scorer.x.device), copies_at_once(scorer.x, batch_size)
    gradient = torch.cat([_gradient(scorer, scorer.x[i], i) for i in every.split(batch_size)])
    return CamPass(scorer.output, scorer.score, {(named("saliency", statistics), INPUT): _magnitude(gradient, signed)})


def smoothgrad(
    model: nn.Module,
    x: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    signed: bool = False,
    n_samples: int = 16,
    noise_share: float = 0.1,
    seed: int = 0,
    batch_size: int | None = None,
    statistics: str = FOLLOWED,
) -> CamPass:
    """Mean gradient over noisy copies of the input; the noise lies in the foreground, the air stays as it is.

    Source: Smilkov et al., SmoothGrad, 2017, arXiv:1706.03825. Each copy's gradient is captum's; its NoiseTunnel is not
    used, because it draws from the global random state and so makes a sample's map depend on its batch.

    Args:
        model, x, target, forward_kwargs, foreground, foreground_kwarg: see `scores.Scorer`.
        signed: the sum over the input channels instead of the largest magnitude.
        n_samples: noisy copies.
        noise_share: standard deviation of the noise as a share of the range (largest minus smallest value) of each
            sample's foreground; the paper advises 0.1 to 0.2.
        seed: of the noise, which is the same for every sample.
        batch_size: noisy copies in one backward pass; None: what suits the device.
        statistics: see `scores.Scorer`.

    Returns:
        maps: ("smoothgrad", "input"): (B, 1, *spatial), float32, >= 0 unless signed.
    """
    if n_samples < 1 or noise_share < 0:
        raise ValueError(f"expected n_samples >= 1 and noise_share >= 0, got {n_samples} and {noise_share}")
    scorer = Scorer(model, x, target, forward_kwargs, foreground, foreground_kwarg, statistics=statistics)
    x, inside = scorer.x, scorer.foreground
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_samples, *x.shape[1:], generator=generator).to(x.device)
    std = noise_share * _range(x, inside)
    copies, batch_size = torch.arange(len(x) * n_samples, device=x.device), copies_at_once(x, batch_size)
    total = torch.zeros(x.shape, device=x.device)
    for part in copies.split(batch_size):
        sample, draw = part // n_samples, part % n_samples
        noisy = x[sample] + (noise[draw] * inside[sample] * std[sample]).to(x.dtype)
        total.index_add_(0, sample, _gradient(scorer, noisy, sample))
    maps = {(named("smoothgrad", statistics), INPUT): _magnitude(total / n_samples, signed)}
    return CamPass(scorer.output, scorer.score, maps)


def _range(x: Tensor, inside: Tensor) -> Tensor:
    """Largest minus smallest foreground value of each sample, (B, 1, ...)."""
    inside = inside.expand_as(x).flatten(1)
    flat = x.float().flatten(1)
    high = flat.masked_fill(~inside, -torch.inf).amax(1)
    low = flat.masked_fill(~inside, torch.inf).amin(1)
    return (high - low).reshape(-1, *[1] * (x.dim() - 1))


@dataclass
class IntegratedGradientsPass(CamPass):
    """Integrated gradients and how far they are from adding up.

    Attributes:
        attributions: (B, C, *spatial), float32, signed: each input value's share of the score.
        baseline: (B, C, *spatial), the image that the path starts from.
        score_difference: (B,), score of the input minus score of the baseline: what the attributions should sum to.
        completeness_error: (B,), sum of the attributions minus `score_difference`.
        relative_error: (B,), |completeness_error| / |score_difference|, infinite where the latter is 0 but not the
            former. Above about 0.05, take more steps; where `score_difference` is near 0, the baseline says nothing.
    """

    attributions: Tensor = field(default_factory=lambda: torch.empty(0))
    baseline: Tensor = field(default_factory=lambda: torch.empty(0))
    score_difference: Tensor = field(default_factory=lambda: torch.empty(0))
    completeness_error: Tensor = field(default_factory=lambda: torch.empty(0))
    relative_error: Tensor = field(default_factory=lambda: torch.empty(0))


def integrated_gradients(
    model: nn.Module,
    x: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    signed: bool = False,
    baseline: Baseline = "blur",
    sigma_pixels: float | None = None,
    n_steps: int = 64,
    batch_size: int | None = None,
    statistics: str = FOLLOWED,
) -> IntegratedGradientsPass:
    """Integrated gradients from a head without details to the image; the foreground does not change on the way.

    Source: Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017, arXiv:1703.01365, by
    captum.attr.IntegratedGradients with Gauss-Legendre quadrature. Departs from the paper's black baseline: an instance
    normalization divides brightness out, f(a x) = f(x) for all a > 0, so that the way from black to the image carries
    no gradient but at its first, infinitely small step, and completeness fails. The default is a blur of the foreground
    with itself.

    Args:
        model, x, target, forward_kwargs, foreground, foreground_kwarg: see `scores.Scorer`.
        signed: keep what speaks against the target; else a pixel's sum over the input channels below 0 becomes 0.
        baseline: see `baselines.baseline_image`; the air is that of the image in any case.
        sigma_pixels: of the blur.
        n_steps: points on the path.
        batch_size: points in one backward pass; None: what suits the device.
        statistics: see `scores.Scorer`; frozen ones are not the derivative along the path, so that the attributions do
            not add up, which the completeness error says.

    Returns:
        maps: ("integrated_gradients", "input"): (B, 1, *spatial), float32; and the completeness error.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps: expected 1 or more, got {n_steps}")
    scorer = Scorer(model, x, target, forward_kwargs, foreground, foreground_kwarg, statistics=statistics)
    start = baseline_image(scorer.x, scorer.foreground, baseline, sigma_pixels)
    parts, every = [], torch.arange(len(scorer.x), device=scorer.x.device)
    batch_size = copies_at_once(scorer.x, batch_size)
    engine = IntegratedGradients(lambda inputs, i: scorer(inputs, i) * scorer.scale)
    for index in every.split(batch_size):
        with torch.inference_mode(False), torch.enable_grad():
            part = engine.attribute(
                scorer.x[index].clone().requires_grad_(),
                baselines=start[index],
                additional_forward_args=(index,),
                n_steps=n_steps,
                internal_batch_size=max(batch_size, len(index)),
            )
        parts.append(part.detach().float() / scorer.scale)
    attributions = _finite(torch.cat(parts), "integrated gradients")
    difference = (scorer.score - scorer.of_many(every, lambda i: start[i], batch_size)).double()
    error = attributions.double().flatten(1).sum(1) - difference
    relative = torch.where(error == 0, error, error.abs() / difference.abs())
    total = attributions.sum(1, keepdim=True)
    maps = {(named("integrated_gradients", statistics), INPUT): total if signed else total.clamp(min=0)}
    return IntegratedGradientsPass(scorer.output, scorer.score, maps, attributions, start, difference, error, relative)
