"""How sure a prediction is: test-time augmentation and MC dropout, for the diagnosis, the mask and every pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from monai.metrics import compute_dice
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from scripts.inference.inferers import VIEWS
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.regions import is_nested, mask_threshold, region_probability
from scripts.runs.tasks import is_trained

__all__ = ["PredictiveUncertainty", "has_dropout", "mc_dropout", "test_time_augmentation"]


@dataclass
class PredictiveUncertainty:
    """What several predictions of the same images say together.

    Attributes:
        probability: (B, K) mean probability by class, calibrated.
        probability_std: (B,) standard deviation of the tumor probability.
        entropy: (B,) of the mean probabilities, in nats.
        seg: (B, 1, H, W[, D]) mean tumor probability of each pixel; None of a network that does not segment.
        seg_std: (B, 1, H, W[, D]) its standard deviation, at most 0.5; None of such a network.
        mask_disagreement: (B,) in [0, 1], 1 - mean Dice of each prediction's mask with the mask of the mean; 0 where no
            prediction has any tumor; NaN of such a network.
        count: predictions compared.

    Source of the last: Roy et al., "Bayesian QuickNAT", NeuroImage 2019, section 3.3, against the mean mask in place of
    all pairs.
    """

    probability: Tensor
    probability_std: Tensor
    entropy: Tensor
    seg: Tensor | None
    seg_std: Tensor | None
    mask_disagreement: Tensor
    count: int

    @classmethod
    def of(
        cls, probabilities: Sequence[Tensor], segs: Sequence[Tensor | None], threshold: float = 0.5
    ) -> PredictiveUncertainty:
        """From predictions (B, K) and tumor probabilities of pixels (B, 1, H, W[, D]) or None, two or more of each.

        Masks begin above the threshold.
        """
        if len(probabilities) < 2:
            raise ValueError(f"a spread takes two predictions or more, got {len(probabilities)}")
        classes = torch.stack(list(probabilities))
        mean = classes.mean(dim=0)
        masks = [seg for seg in segs if seg is not None]
        pixels = torch.stack(masks) if masks else None
        seg = None if pixels is None else pixels.mean(dim=0)
        agreement = torch.full((1, mean.shape[0]), torch.nan)
        if pixels is not None and seg is not None:
            middle = (seg > threshold).float()
            # Two empty masks agree: MONAI's Dice is 1 there with `ignore_empty=False`.
            agreement = torch.stack(
                [compute_dice((p > threshold).float(), middle, ignore_empty=False)[:, 0] for p in pixels]
            )
        return cls(
            probability=mean,
            probability_std=_deviation(classes[..., 0]),
            entropy=torch.special.entr(mean).sum(dim=1),
            seg=seg,
            seg_std=None if pixels is None else _deviation(pixels),
            mask_disagreement=1 - agreement.mean(dim=0),
            count=len(classes),
        )


def _deviation(values: Tensor) -> Tensor:
    """Standard deviation over the first axis; exactly 0 where all are the same, which rounding would hide."""
    return (values - values[:1]).std(dim=0, correction=0)


def tumor_threshold(network: Any) -> float:
    """The probability above which a pixel is in the mask of the tumor."""
    least = mask_threshold(network)
    return 0.5 if least is None else float(least[0])


@torch.no_grad()
def predict(network: MultiTaskDynUNet, image: Tensor, foreground: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Calibrated class probabilities (B, K) and tumor probability of each pixel (B, 1, H, W[, D]), float32.

    The latter is None of a network that was not trained to segment.
    """
    segments = is_trained(network, "segmentation")
    output = network.multitask(image, foreground, segmentation=segments)
    probability = torch.softmax(output["cls"].float() / network.temperature, dim=1)
    return probability, region_probability(output["seg"], is_nested(network))[:, :1] if segments else None


def test_time_augmentation(
    network: MultiTaskDynUNet,
    image: Tensor,
    foreground: Tensor | None = None,  # noqa: PT028  (not a test, for all its name)
) -> PredictiveUncertainty:
    """Predictions of the image mirrored, shifted and with bent contrast, as `scripts.inference.inferers.VIEWS` does
    for users.

    Args:
        network: in evaluation mode.
        image: (B, C, H, W[, D]) from the bundle's pipeline, air exactly 0.
        foreground: (B, 1, H, W[, D]), 0 or 1, moved along with the image; None: where the image is not 0, which no view
            changes.
    """
    predictions = []
    for change, undo in VIEWS.values():
        probability, seg = predict(network, change(image), None if foreground is None else change(foreground.float()))
        predictions.append((probability, None if seg is None else undo(seg)))
    classes, segs = zip(*predictions, strict=True)
    return PredictiveUncertainty.of(classes, segs, tumor_threshold(network))


test_time_augmentation.__test__ = False  # type: ignore[attr-defined]  # pytest takes it for a test where it is imported


def has_dropout(network: nn.Module) -> bool:
    """Whether a network has a dropout layer that drops anything."""
    return any(isinstance(module, _DropoutNd) and module.p > 0 for module in network.modules())


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Dropout layers in training mode, everything else as it is; restored also after an error."""
    layers = [module for module in network.modules() if isinstance(module, _DropoutNd)]
    before = [module.training for module in layers]
    try:
        for module in layers:
            module.train()
        yield
    finally:
        for module, mode in zip(layers, before, strict=True):
            module.train(mode)


def mc_dropout(
    network: MultiTaskDynUNet, image: Tensor, foreground: Tensor | None = None, samples: int = 16, seed: int = 0
) -> PredictiveUncertainty:
    """Predictions with dropout left on; the generator of the caller is not touched.

    Args:
        network: in evaluation mode, built and trained with ``dropout``.
        image: (B, C, H, W[, D]) from the bundle's pipeline.
        foreground: as in `test_time_augmentation`; never dropped.
        samples: predictions.
        seed: of the dropout.

    Raises:
        ValueError: when the network has no dropout: its predictions would all be the same.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016.
    """
    if not has_dropout(network):
        raise ValueError(
            "MC dropout needs a network trained with dropout, this one has none, so that every sample would be the "
            "same: train with network_def#dropout, e.g. 0.1, or use test-time augmentation"
        )
    devices = [image.device] if image.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), dropout_on(network):
        torch.manual_seed(seed)
        classes, segs = zip(*(predict(network, image, foreground) for _ in range(samples)), strict=True)
        return PredictiveUncertainty.of(classes, segs, tumor_threshold(network))
