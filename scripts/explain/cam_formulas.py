"""Formulas of the class activation maps: activations and gradients in, signed maps out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "METHODS",
    "MIN_COHERENCE",
    "gradcam",
    "gradcam_plus_plus",
    "gradient_coherence",
    "hirescam",
    "layercam",
]

# Below this coherence a float32 mean gradient is rounding noise: 1e-8 to 2e-5 was measured in front of normalizations
# (DynUNet, SegResNet, 32 to 128 pixels), 1e-3 and more elsewhere.
MIN_COHERENCE = 5e-5


def _over_space(t: Tensor) -> Tensor:
    return t.flatten(2).sum(2).reshape(*t.shape[:2], *[1] * (t.dim() - 2))


def gradcam(activations: Tensor, gradients: Tensor, inside: Tensor | None = None) -> Tensor:
    """Grad-CAM before the ReLU: activations weighted by each channel's mean gradient.

    Source: Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391, equations 1 and 2. Departs from the paper where
    `inside` is given: the mean runs over these cells.

    Args:
        activations: (B, C, *spatial).
        gradients: the same shape, of a score per sample.
        inside: (B, 1, *spatial), 1 in the cells that the mean runs over, 0 elsewhere; None for all.

    Returns:
        (B, 1, *spatial), signed.
    """
    if inside is None:
        weights = _over_space(gradients) / gradients.shape[2:].numel()
    else:
        weights = _over_space(gradients * inside) / _over_space(inside)
    return (weights * activations).sum(1, keepdim=True)


def hirescam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM before the ReLU: activations times their own gradients, so that places without gradient stay dark.

    Source: Draelos and Carin, Use HiResCAM instead of Grad-CAM, 2020, arXiv:2011.08891, equation 4.

    Args and return value as for `gradcam`.
    """
    return (gradients * activations).sum(1, keepdim=True)


def gradcam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ before the ReLU, in the form for a score that is linear in the activations.

    Source: Chattopadhyay et al., Grad-CAM++, WACV 2018, arXiv:1710.11063, equations 5, 12 and 19. The paper explains
    Y = exp(S), S linear in the activations A (as it is, piecewise, for ReLU networks). With g = dS/dA, the second and
    third derivatives of Y are exp(S) g^2 and exp(S) g^3, so that exp(S) cancels in alpha:

        alpha = g^2 / (2 g^2 + g^3 sum(A)) = 1 / (2 + g sum(A))    where g > 0; elsewhere relu(g) = 0 discards it
        w = sum(alpha relu(exp(S) g)) = exp(S) sum(alpha relu(g))

    Departs from the paper: the factor exp(S) of w, one number per sample, is left out. It changes no map after scaling,
    and overflows for logits above 88. Where a layer also puts out negative values (no ReLU before it), sum(A) runs over
    the positive ones: the derivation assumes activations >= 0, and 2 + g sum(A) could vanish otherwise.

    Args and return value as for `gradcam`.
    """
    positive = gradients.clamp(min=0)
    alpha = 1.0 / (2.0 + positive * _over_space(activations.clamp(min=0)))
    return (_over_space(alpha * positive) * activations).sum(1, keepdim=True)


def layercam(activations: Tensor, gradients: Tensor) -> Tensor:
    """Layer-CAM before the ReLU: activations times the positive part of their own gradients.

    Source: Jiang et al., LayerCAM, IEEE TIP 30, 2021, doi:10.1109/TIP.2021.3089943, equations 6 and 7.

    Args and return value as for `gradcam`.
    """
    return (gradients.clamp(min=0) * activations).sum(1, keepdim=True)


METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": gradcam,
    "hirescam": hirescam,
    "gradcam++": gradcam_plus_plus,
    "layercam": layercam,
}


def gradient_coherence(gradients: Tensor) -> Tensor:
    """How much of the gradient survives Grad-CAM's mean over space, in each sample's best channel.

    |sum over space| / sum over space of |.|, 1 = all of one sign, 0 = all cancels. A normalization (instance, group,
    layer) takes constants out of a channel, so the gradients in front of it add up to exactly 0, and behind a further
    convolution to no more than what its padded border leaves: Grad-CAM there is made of rounding, or of the border.

    Args:
        gradients: (B, C, *spatial).

    Returns:
        (B,), in [0, 1]; NaN for a sample whose gradients are all 0.
    """
    flat = gradients.flatten(2)
    total = flat.abs().sum(2)
    ratio = torch.where(total > 0, flat.sum(2).abs() / total, torch.full_like(total, -1.0)).amax(1)
    return torch.where(ratio < 0, torch.full_like(ratio, torch.nan), ratio)
