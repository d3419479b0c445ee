"""Does a map say what the network does? Deletion and insertion, swapped air, randomized weights, small noise.

A map may lie in the tumor and still not be what the network looked at. These tests ask the network. The last two, which
compare maps with maps, are those of `sanity`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scripts.explain.baselines import Baseline, baseline_image, check_foreground
from scripts.explain.maps import check_maps, is_empty, upsample
from scripts.explain.sanity import cascading_randomization, map_similarity, stability
from scripts.explain.scores import Scorer, plain
from scripts.explain.targets import Target

__all__ = [
    "BackgroundSwap",
    "Curves",
    "background_swap",
    "cascading_randomization",
    "deletion_insertion",
    "map_similarity",
    "stability",
]


@dataclass
class Curves:
    """Scores while the foreground is taken away, or put back, from the strongest pixel of a map to the weakest.

    Attributes:
        share: (S,), share of the foreground that is replaced (deletion) or restored (insertion), 0 to 1.
        deletion: (B, S), scores; falls fast for a faithful map.
        insertion: (B, S), scores; rises fast for a faithful map.
        random_deletion: (R, B, S), the same in the order of R random maps.
        random_insertion: (R, B, S).
        empty: (B,), bool: the map has no positive value, so that its order is a random one.
    """

    share: Tensor
    deletion: Tensor
    insertion: Tensor
    random_deletion: Tensor
    random_insertion: Tensor
    empty: Tensor

    def auc(self) -> dict[str, Tensor]:
        """Areas under the curves by the trapezoidal rule, each (B,), in units of the score.

        `deletion` (lower is better), `insertion` (higher is better), the means `random_deletion` and
        `random_insertion`, and the gains over them, of which both are positive for a map better than chance:
        `deletion_gain` = random_deletion - deletion, `insertion_gain` = insertion - random_insertion.
        """
        area = {
            "deletion": torch.trapezoid(self.deletion, self.share),
            "insertion": torch.trapezoid(self.insertion, self.share),
            "random_deletion": torch.trapezoid(self.random_deletion, self.share).mean(0),
            "random_insertion": torch.trapezoid(self.random_insertion, self.share).mean(0),
        }
        area["deletion_gain"] = area["random_deletion"] - area["deletion"]
        area["insertion_gain"] = area["insertion"] - area["random_insertion"]
        return area


def deletion_insertion(
    model: nn.Module,
    x: Tensor,
    maps: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground: Tensor | None = None,
    foreground_kwarg: str | None = None,
    steps: int = 16,
    baseline: Baseline = "blur",
    sigma_pixels: float | None = None,
    n_random: int = 3,
    seed: int = 0,
    batch_size: int | None = None,
) -> Curves:
    """Deletion and insertion curves of a map, and those of random maps as coarse as it.

    Source: Petsiuk et al., RISE, BMVC 2018, arXiv:1806.07421, section 4.3. Departs from the paper: only foreground is
    replaced, while the network's foreground is held fixed; the score may be any target, not a probability; both curves
    use one baseline; and ties (a map that is 0 in most places) are broken at random, not by position.

    Args:
        model, x, target, forward_kwargs, foreground, foreground_kwarg: see `scores.Scorer`.
        maps: (B, 1, *layer grid), brought to the image by linear interpolation.
        steps: equal steps from none to all of the foreground.
        baseline: what stands in place of deleted tissue, see `baselines.baseline_image`.
        sigma_pixels: of the blur.
        n_random: random maps per sample; independent values on the map's own grid.
        seed: of random maps and ties, the same for every sample.
        batch_size: changed copies in one forward pass; None: what suits the device.
    """
    if steps < 1 or n_random < 1:
        raise ValueError(f"expected steps >= 1 and n_random >= 1, got {steps} and {n_random}")
    scorer = Scorer(model, x, target, forward_kwargs, foreground, foreground_kwarg)
    x, inside, size = scorer.x, scorer.foreground, tuple(x.shape[2:])
    maps = check_maps(maps).to(x.device)
    if len(maps) != len(x):
        raise ValueError(f"{len(maps)} maps for a batch of {len(x)}")
    replaced = baseline_image(x, inside, baseline, sigma_pixels)
    generator = torch.Generator().manual_seed(seed)
    ties = torch.randperm(inside[0].numel(), generator=generator).to(x.device)
    random_maps = torch.rand(n_random, 1, 1, *maps.shape[2:], generator=generator).to(x.device)
    orders = [maps, *random_maps.expand(n_random, len(x), *maps.shape[1:])]
    ranks = torch.stack([_ranks(upsample(m, size), inside, ties) for m in orders])  # (1 + R, B, *spatial)
    share = torch.linspace(0, 1, steps + 1, dtype=torch.double, device=x.device)
    counts = (share * inside.flatten(1).sum(1, keepdim=True)).round().long()  # (B, S)
    cells = torch.cartesian_prod(*[torch.arange(n, device=x.device) for n in (2, 1 + n_random, len(x), steps + 1)])

    def changed(positions: Tensor) -> Tensor:
        insertion, order, sample, step = cells[positions].unbind(1)
        limit = counts[sample, step].reshape(-1, *[1] * (x.dim() - 1))
        first = ranks[order, sample][:, None] < limit
        keep = torch.where(insertion.reshape(limit.shape).bool(), first, ~first)
        return torch.where(keep, x[sample], replaced[sample])

    scores = scorer.of_many(cells[:, 2], changed, batch_size).double().reshape(2, 1 + n_random, len(x), steps + 1)
    return Curves(share, scores[0, 0], scores[1, 0], scores[0, 1:], scores[1, 1:], is_empty(maps))


def _ranks(maps: Tensor, inside: Tensor, ties: Tensor) -> Tensor:
    """Position of each pixel, from 0 for the strongest of the foreground; air comes last. (B, *spatial), int64."""
    flat = maps.double().clamp(min=0).flatten(1).masked_fill(~inside.flatten(1), -1.0)
    order = ties[flat[:, ties].sort(dim=1, descending=True, stable=True).indices]
    ranks = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return ranks.reshape(len(maps), *maps.shape[2:])


@dataclass
class BackgroundSwap:
    """Scores after the air was replaced by something else.

    Attributes:
        before_masking: name of the air: change of the score (B,) when the air is masked to 0 again afterwards. Not 0:
            the masking does not work.
        after_masking: name of the air: change of the score (B,) when the network is fed the new air as it is. Not 0:
            the network looks at air where it finds some.
        score: (B,), the score with the air as given.
    """

    before_masking: dict[str, Tensor]
    after_masking: dict[str, Tensor]
    score: Tensor


def background_swap(
    model: nn.Module,
    x: Tensor,
    foreground: Tensor,
    target: Target,
    forward_kwargs: Mapping[str, Any] | None = None,
    foreground_kwarg: str | None = None,
    mask: Callable[[Tensor, Tensor], Tensor] | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> BackgroundSwap:
    """Replace the air by the foreground's darkest, mean and brightest value, and by noise, and see the score move.

    Args:
        model, x, target, forward_kwargs: see `scores.Scorer`.
        foreground: (B, 1, *spatial), non-zero inside.
        foreground_kwarg: name of the argument by which `forward` takes the foreground. With it the question is whether
            the network keeps to the foreground that it is given; without, what it makes of the air itself.
        mask: the pipeline's masking, a function of image and foreground (both (B, ...)); None: air := 0.
        seed: of the noise, which has the mean and standard deviation of each sample's foreground.
        batch_size: images in one forward pass; None: what suits the device.
    """
    # Without the name of an argument the network is to find its foreground itself, in air that is none.
    scorer = Scorer(model, x, target, forward_kwargs, foreground if foreground_kwarg else None, foreground_kwarg)
    x, inside = scorer.x, check_foreground(foreground, scorer.x)
    if bool(inside.flatten(1).all(1).any()):
        raise ValueError("foreground: a sample has no air that could be replaced")
    swaps = _airs(x, inside, seed)
    every = torch.arange(len(x), device=x.device)
    masked = mask or (lambda image, head: image * head.to(image.dtype))

    def change(image: Tensor) -> Tensor:
        return scorer.of_many(every, lambda i: image[i], batch_size) - scorer.score

    return BackgroundSwap(
        {name: change(plain(masked(image, inside))) for name, image in swaps.items()},
        {name: change(image) for name, image in swaps.items()},
        scorer.score,
    )


def _airs(x: Tensor, inside: Tensor, seed: int) -> dict[str, Tensor]:
    flat, mask = x.float().flatten(2), inside.flatten(2)
    shape = (*x.shape[:2], *[1] * (x.dim() - 2))
    count = mask.sum(2)
    mean = (flat * mask).sum(2) / count
    std = ((flat - mean[..., None]).square() * mask).sum(2).div(count).sqrt()
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)).to(x.device)
    fills = {
        "darkest": flat.masked_fill(~mask, torch.inf).amin(2).reshape(shape),
        "mean": mean.reshape(shape),
        "brightest": flat.masked_fill(~mask, -torch.inf).amax(2).reshape(shape),
        "noise": mean.reshape(shape) + std.reshape(shape) * noise,
    }
    return {name: torch.where(inside, x, fill.to(x.dtype).expand_as(x)) for name, fill in fills.items()}
