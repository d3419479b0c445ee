"""Is an image like those that the network was trained on? A distance in features of the input and the first layers.

A network answers every image. This says which ones it should not be asked about: another sequence, CT, a picture of
something else. It can not see a hospital or disease that looks like the training images.

Features: quantiles, skewness and steps between neighbors of the normalized gray values, and mean and deviation over
the foreground of every channel of the encoder's second level; distance: Mahalanobis with Ledoit and Wolf's covariance.
Chosen on one run (400 contrast-enhanced T1 images) by the AUROC against FLAIR and skull-stripped T1 from elsewhere:
0.97 to 1.00 with these features, 0.86 to 0.94 with those of the bottleneck, below 0.7 with the outline of the head; one
FLAIR volume of a healthy head stayed at 0.85 and below the limit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from torch import Tensor

from scripts.command.files import whole
from scripts.inference.inferers import spatial_dims
from scripts.measures.shortcuts import histogram_features
from scripts.runs.folder import last_stage

__all__ = ["FILE", "Scope", "ScopeScorer", "TooFewImages", "features", "fit", "in_words", "load", "probe", "score"]

logger = logging.getLogger(__name__)

FILE = "scope.npz"
LEVEL = 1  # of the encoder, 0 is the finest
QUANTILE = 0.95  # of the validation images that count as like the training images


class TooFewImages(ValueError):
    """There are not enough images to say what they look like."""


class OldScope(ValueError):
    """A file of an older version."""


@dataclass
class Scope:
    """What the training images look like.

    Attributes:
        mean: (F,) of their features.
        whiten: (F, F), so that the squared length of ``(x - mean) @ whiten`` is the Mahalanobis distance.
        limit: distance that 95 % of the validation images do not exceed.
        training, validation: number of images fitted on.
        probe: (F,) features of a fixed image, see `probe`: by them a network is known to be the one it was fitted with.
    """

    mean: NDArray[np.float64]
    whiten: NDArray[np.float64]
    limit: float
    training: int
    validation: int
    probe: NDArray[np.float64]

    def fits(self, network: Any) -> bool:
        """Whether it was fitted with this network: its first features of a fixed image are the same."""
        now = probe(network)
        return now.shape == self.probe.shape and bool(np.allclose(now, self.probe, rtol=1e-2, atol=1e-2))

    def score(self, values: NDArray) -> NDArray[np.float64]:
        """Distance (B,) of features (B, F) as a multiple of the limit: above 1 is unlike the training images."""
        if values.shape[1] != len(self.mean):
            raise ValueError(
                f"the scope was fitted on {len(self.mean)} features, this network and image give {values.shape[1]}: "
                "fit it again with configs/evaluate.yaml"
            )
        return (((values - self.mean) @ self.whiten) ** 2).sum(axis=1) / self.limit

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file."""
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in vars(self).items()}
        with whole(path) as place, open(place, "wb") as file:
            np.savez(file, **arrays)


@torch.no_grad()
def features(
    network: Any,
    image: Tensor,
    foreground: Tensor | None = None,
    encoded: tuple[list[Tensor], list[Tensor]] | None = None,
) -> NDArray[np.float64]:
    """Features (B, F) of images (B, C, H, W[, D]) from the bundle's pipeline.

    Args:
        network: a `MultiTaskDynUNet` in evaluation mode; one without masked levels gives the gray values' alone.
        image: air exactly 0.
        foreground: (B, 1, H, W[, D]); None: where the image is not 0.
        encoded: of `network.encode`, where it ran already.
    """
    mask = (image != 0).any(dim=1, keepdim=True) if foreground is None else foreground != 0
    gray = np.array([_gray(x.cpu().numpy(), m[0].cpu().numpy()) for x, m in zip(image, mask, strict=True)])
    if encoded is None and hasattr(network, "encode"):
        encoded = network.encode(image, foreground)
    levels, masks = encoded or ([], [])
    if not masks:
        return gray
    layer, inside = levels[LEVEL].flatten(2).double(), masks[LEVEL].flatten(2).double()
    weight = inside / inside.sum(dim=2, keepdim=True)
    mean = (layer * weight).sum(dim=2)
    deviation = ((layer - mean[..., None]) ** 2 * weight).sum(dim=2).sqrt()
    return np.concatenate([gray, mean.cpu().numpy(), deviation.cpu().numpy()], axis=1)


def probe(network: Any) -> NDArray[np.float64]:
    """Features (F,) of an image of noise with a border of air, the same for every network."""
    first = next(p for p in network.parameters() if p.ndim > 2)
    size = [32] * spatial_dims(network)
    image = torch.zeros(1, first.shape[1], *size)
    inner = (slice(None), slice(None), *[slice(4, 28)] * len(size))
    image[inner] = torch.randn(image[inner].shape, generator=torch.Generator().manual_seed(0))
    return features(network, image.to(first.device))[0]


def _gray(image: NDArray, inside: NDArray) -> list[float]:
    named = histogram_features(image, inside)
    values = [value for name, value in named.items() if "quantile" in name or name.endswith("skewness")]
    pairs = inside[1:] & inside[:-1]
    return [*values, float(np.abs(image[:, 1:] - image[:, :-1])[:, pairs].mean())]


def fit(training: NDArray, validation: NDArray, known: NDArray) -> Scope:
    """Scope from features of training images (N, F) and validation images (M, F).

    The covariance is that of the training images; the limit comes from validation, whose distances are not flattered.

    Args:
        training, validation: features.
        known: (F,), of `probe`, of the network that they are of.

    Raises:
        TooFewImages: with fewer than 20 images of either.
    """
    for name, values in (("training", training), ("validation", validation)):
        if len(values) < 20:
            raise TooFewImages(f"a scope takes 20 {name} images or more, got {len(values)}")
    scale = training.std(axis=0)
    scale[scale == 0] = 1.0
    standard = LedoitWolf().fit((training - training.mean(axis=0)) / scale)
    whiten = np.linalg.cholesky(standard.precision_) / scale[:, None]
    found = Scope(training.mean(axis=0), whiten, 1.0, len(training), len(validation), known)
    found.limit = float(np.quantile(found.score(validation), QUANTILE))
    return found


def load(path: str | Path) -> Scope:
    """Read `Scope.save`: a file, or the run (or stage) folder in whose last stage it lies.

    Raises:
        FileNotFoundError: when there is none.
        OldScope: when it was written by an older version.
        ValueError: when it can not be read.
    """
    file = Path(path)
    if file.is_dir():
        file = last_stage(file) / FILE if not (file / FILE).is_file() else file / FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file.name} is missing: configs/evaluate.yaml fits it on the run's own datalist")
    try:
        with np.load(file, allow_pickle=False) as content:
            if "probe" not in content:
                raise OldScope(
                    f"{file} has an older format, without the features by which its network is known; evaluate the run "
                    "again on its own datalist with configs/evaluate.yaml, which writes it again"
                )
            values = {key: content[key] for key in ("mean", "whiten", "limit", "training", "validation", "probe")}
    except OldScope:
        raise
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{file} is not a scope: {error}") from error
    return Scope(
        values["mean"],
        values["whiten"],
        float(values["limit"]),
        int(values["training"]),
        int(values["validation"]),
        values["probe"],
    )


def is_current(stage_dir: str | Path, network: Any) -> bool:
    """Whether a stage has a scope that was fitted with this network, in today's format."""
    file = Path(stage_dir) / FILE
    try:
        return file.is_file() and load(file).fits(network)
    except OldScope:
        logger.info("%s has an older format: fitted again", file)
        return False


def score(
    scope: Scope,
    network: Any,
    image: Tensor,
    foreground: Tensor | None = None,
    encoded: tuple[list[Tensor], list[Tensor]] | None = None,
) -> NDArray[np.float64]:
    """How unlike the training images (B, C, H, W[, D]) are, (B,): at most 1 for 95 % of validation, larger outside."""
    return scope.score(features(network, image, foreground, encoded))


class ScopeScorer:
    """Scores every slice where scope.npz lies beside the weights; see `scripts.inference.inferers.SliceScorer`.

    Without one, or with one of other weights (a network trained further, for instance) or of an older version, nothing
    is scored; the latter two are logged.

    Args:
        weights: file of the network's weights; None, a network of random ones: nothing is scored.
    """

    def __init__(self, weights: str | Path | None) -> None:
        file = None if weights is None else Path(weights).parent / FILE
        self.scope = None
        try:
            self.scope = load(file) if file is not None and file.is_file() else None
        except OldScope as error:
            logger.warning("images are not scored: %s", error)

    def __call__(
        self, units: Tensor, network: Any, encoded: tuple[list[Tensor], list[Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """{"scope": (N,)} of slices (N, C, *size), which the network has encoded already or not, float32."""
        if self.scope is None:
            return {}
        if not self.scope.fits(network):
            logger.warning("%s was fitted with other weights: images are not scored", FILE)
            self.scope = None
            return {}
        return {"scope": torch.from_numpy(score(self.scope, network, units, None, encoded)).float().to(units.device)}


def in_words(stack: Tensor, output: Mapping[str, Tensor], study: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Score of a whole image, the median over its slices, and a flag above 1; for `postprocessing.RestoreStudyd`."""
    if "scope" not in output:
        return {}, []
    found = float(output["scope"].median())
    if found <= 1:
        return {"scope": found}, []
    message = (
        f"the image is unlike those that the network was trained on (score {found:.2f}; {QUANTILE:.0%} of the "
        "validation images score at most 1): the result may mean nothing"
    )
    return {"scope": found}, [{"code": "outside_scope", "message": message}]
