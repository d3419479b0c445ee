"""Is an image like those that the network was trained on? Two distances in features of picture and first layers.

A network answers every image. This says which ones it should not be asked about: another sequence, CT, a picture of
something else. It can not see a hospital or disease that looks like the training images.

Features: `scripts.inference.scope_features`. From them, two distances, which are added: the logarithm of Mahalanobis'
from the training images, with Ledoit and Wolf's covariance, and the log-odds of a logistic regression that knows the
training images from foreign ones, drawn or made of them (`scripts.evaluation.scope_fit`). The first sees what was not
thought of, the second other contrasts of the same heads. `python -m benchmarks.scope` measures both on kinds that the
regression did not see. Weight, penalty and level of the encoder were chosen on one run (300 contrast-enhanced T1
images), by the AUROC against contrasts left out of the fit and against slices of real FLAIR volumes.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from scripts.command.files import whole
from scripts.inference.inferers import Encoded
from scripts.inference.scope_features import features, probe
from scripts.runs.checkpoint_files import written_state
from scripts.runs.folder import last_stage

__all__ = ["FILE", "Scope", "ScopeScorer", "TooFewImages", "fit", "in_words", "load"]

logger = logging.getLogger(__name__)

FILE = "scope.npz"
QUANTILE = 0.95  # of the validation images that count as like the training images
VOTE = 0.25  # share of a volume's slices above which it is flagged: five times that of images like the training's
WEIGHT = 0.5  # of the log-odds beside the logarithm of the distance, both in deviations of the validation images
PENALTY = 0.01  # C of the logistic regression: the smaller, the less it believes the kinds that it saw
FARTHEST = 8.0  # standard deviations at which a feature of the regression is cut
MIN_HEAD = 0.1  # share of a slice that is head, for the slice to vote
COUNTS = ("training", "validation", "foreign")
AGAIN = "fit it again with python -m scripts scope"


class TooFewImages(ValueError):
    """Too few images to fit a scope."""


class OldScope(ValueError):
    """A file of an earlier format."""


@dataclass
class Scope:
    """What the training images look like.

    Attributes:
        mean, scale: (F,) of their features.
        whiten: (F, F), so that the length of ``(x - mean) / scale @ whiten`` is the Mahalanobis distance.
        direction: (F,) of the logistic regression, over ``(x - mean) / scale``.
        center, spread: (2,) mean and deviation of both distances over the validation images.
        slice_limit: of their weighted sum, that 95 % of the validation images do not exceed: of a slice's vote.
        limit: of a single picture: as high as it can be with 95 % of foreign images above it, ``slice_limit`` at least.
        training, validation, foreign: number of images fitted on.
        probe: (F,) features of a fixed image, see `probe`: by them a network is known to be the one it was fitted with.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    whiten: NDArray[np.float64]
    direction: NDArray[np.float64]
    center: NDArray[np.float64]
    spread: NDArray[np.float64]
    slice_limit: float
    limit: float
    training: int
    validation: int
    foreign: int
    probe: NDArray[np.float64]

    def fits(self, network: Any) -> bool:
        """Whether it was fitted with this network: its first features of a fixed image are the same."""
        now = probe(network)
        return now.shape == self.probe.shape and bool(np.allclose(now, self.probe, rtol=1e-2, atol=1e-2))

    def distances(self, values: NDArray) -> NDArray[np.float64]:
        """Logarithm of the Mahalanobis distance and log-odds of being foreign (B, 2), in deviations of validation."""
        if values.shape[1] != len(self.mean):
            raise ValueError(
                f"the scope was fitted on {len(self.mean)} features, this network and image give {values.shape[1]}: "
                f"{AGAIN}"
            )
        standard = (values - self.mean) / self.scale
        # Not BLAS: see `scope_features`.
        length = np.log(np.maximum((np.einsum("bf,fg->bg", standard, self.whiten) ** 2).sum(axis=1), 1e-12)) / 2
        odds = np.einsum("bf,f->b", np.clip(standard, -FARTHEST, FARTHEST), self.direction)
        return (np.stack([length, odds], axis=1) - self.center) / self.spread

    def summed(self, values: NDArray) -> NDArray[np.float64]:
        """Weighted sum (B,) of both distances."""
        return (self.distances(values) * [1.0, WEIGHT]).sum(axis=1)

    def score(self, values: NDArray) -> NDArray[np.float64]:
        """How unlike the training images features (B, F) are, (B,): above 1 is unlike; a deviation more is e-fold."""
        return np.exp(np.minimum(self.summed(values) - self.limit, 50.0))

    @property
    def slice_factor(self) -> float:
        """Factor from the score of a picture to that of a slice that votes on its volume, by `slice_limit`."""
        return math.exp(self.limit - self.slice_limit)

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file."""
        arrays: dict[str, Any] = {key: np.asarray(value) for key, value in vars(self).items()}
        with whole(path) as place, open(place, "wb") as file:
            np.savez(file, **arrays)


def check_enough(name: str, count: int) -> None:
    """Refuse a fit of so many images.

    Raises:
        TooFewImages: when there are fewer than 20.
    """
    if count < 20:
        raise TooFewImages(f"a scope takes 20 {name} images or more, got {count}")


def fit(
    training: NDArray, validation: NDArray, foreign: NDArray, known: NDArray, held_out: NDArray | None = None
) -> Scope:
    """Scope from features of training images (N, F), validation images (M, F) and foreign images (L, F).

    The regression and the covariance are of the training images; the limits come from images that neither has seen,
    whose distances are not flattered.

    Args:
        training, validation, foreign: features.
        known: (F,), of `probe`, of the network that they are of.
        held_out: features (A, F) of foreign images that are not among ``foreign``: a picture's limit lies where 95 % of
            them are above it, if that flags fewer validation images. None: both limits are that of validation.

    Raises:
        TooFewImages: with fewer than 20 images of any.
    """
    for name, values in (("training", training), ("validation", validation), ("foreign", foreign)):
        check_enough(name, len(values))
    mean, scale = training.mean(axis=0), training.std(axis=0)
    scale[scale == 0] = 1.0
    standard = (training - mean) / scale
    whiten = np.linalg.cholesky(LedoitWolf().fit(standard).precision_)
    both = np.clip(np.concatenate([standard, (foreign - mean) / scale]), -FARTHEST, FARTHEST)
    regression = LogisticRegression(C=PENALTY, max_iter=2000, class_weight="balanced")
    regression.fit(both, np.repeat([0, 1], [len(training), len(foreign)]))
    plain = (np.zeros(2), np.ones(2))
    count = (len(training), len(validation), len(foreign))
    scope = Scope(mean, scale, whiten, regression.coef_[0].astype(np.float64), *plain, 0.0, 0.0, *count, known)
    distances = scope.distances(validation)
    scope.center, scope.spread = distances.mean(axis=0), np.maximum(distances.std(axis=0), 1e-9)
    scope.slice_limit = scope.limit = float(np.quantile(scope.summed(validation), QUANTILE))
    if held_out is not None and len(held_out):
        scope.limit = max(scope.limit, float(np.quantile(scope.summed(held_out), 1 - QUANTILE)))
    return scope


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
        raise FileNotFoundError(f"{file.name} is missing: python -m scripts scope fits it on the run's own datalist")
    names = list(Scope.__dataclass_fields__)
    try:
        with np.load(file, allow_pickle=False) as content:
            values: dict[str, Any] = {key: content[key] for key in names if key in content}
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not a scope: {error}") from error
    if missing := [key for key in names if key not in values]:
        if "mean" not in values:
            raise ValueError(f"{file} is not a scope: {missing[0]!r}")
        raise OldScope(f"{file} has an older format, without {missing[0]}; {AGAIN}")
    numbers = {
        key: kind(values[key]) for key, kind in (("limit", float), ("slice_limit", float), *((k, int) for k in COUNTS))
    }
    return Scope(**{**values, **numbers})


def is_current(stage_dir: str | Path, network: Any) -> bool:
    """Whether a stage has a scope that was fitted with this network, in today's format."""
    file = Path(stage_dir) / FILE
    try:
        return file.is_file() and load(file).fits(network)
    except OldScope:
        logger.info("%s has an older format: fitted again", file)
        return False


class ScopeScorer:
    """Scores every slice where scope.npz lies beside the weights: the ``scorer`` of an `inferers.MultiTaskInferer`.

    Without one, or with one of other weights (a network trained further, for instance) or of an older version, nothing
    is scored; the latter two are logged.

    Args:
        weights: file of the network's weights; None, a network of random ones: nothing is scored.
    """

    def __init__(self, weights: str | Path | None) -> None:
        file = None if weights is None else Path(weights).parent / FILE
        self.scope = None
        self._fitting: tuple[weakref.ref[Any] | None, list[tuple[int, int]]] = (None, [])
        try:
            self.scope = load(file) if file is not None and file.is_file() else None
        except OldScope as error:
            logger.warning("images are not scored: %s", error)

    def __call__(self, images: Tensor, network: Any, encoded: Encoded | None = None) -> dict[str, Tensor]:
        """Scores (N,) of slices (N, C, *size), which the network has encoded already or not, float32.

        Returns:
            "scope", of each as a picture of its own, and "scope_slice", of each as a slice that votes.
        """
        if self.scope is None:
            return {}
        if not self._fits(getattr(network, "in_torch", network)):
            logger.warning("%s was fitted with other weights: images are not scored", FILE)
            self.scope = None
            return {}
        values = self.scope.score(features(network, images, None, encoded))
        scores = torch.from_numpy(values).float().to(images.device)
        return {"scope": scores, "scope_slice": scores * self.scope.slice_factor}

    def _fits(self, network: Any) -> bool:
        """`Scope.fits`, asked again only where a weight was written to since."""
        assert self.scope is not None
        written = written_state(network)
        known, then = self._fitting
        if (known is None or known() is not network or then != written) and not self.scope.fits(network):
            return False
        self._fitting = (weakref.ref(network), written)
        return True


def votes_of(scan: Any) -> list[bool]:
    """Which slices of a scan have enough head to vote."""
    return [placement.share >= MIN_HEAD for placement in scan.placements]


def voting(scores: NDArray | Tensor, votes: Sequence[bool] | None = None) -> NDArray[np.float64]:
    """Scores of the slices that count; all of them where none does, or it is not said."""
    values = np.asarray(scores, dtype=np.float64)
    return values[np.asarray(votes, dtype=bool)] if votes is not None and any(votes) else values


def vote(scores: NDArray | Tensor, votes: Sequence[bool] | None = None) -> float:
    """Score of a whole image from those of its slices: above 1 exactly where more than `VOTE` of them are.

    Args:
        scores: (S,).
        votes: (S,) bool, slices that count, of enough head; None, or where none does: all.
    """
    counting = voting(scores, votes)
    return float(np.sort(counting)[math.ceil(round((1 - VOTE) * len(counting), 9)) - 1])


def in_words(stack: Tensor, output: Mapping[str, Tensor], scan: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Score of a whole image by `vote`, and a flag above 1; for `postprocessing.RestoreScand`."""
    if "scope" not in output:
        return {}, []
    scores = output["scope_slice" if len(output["scope"]) > 1 else "scope"]
    score = vote(scores, votes_of(scan))
    if score <= 1:
        return {"scope": score}, []
    share = f"; {float((np.asarray(scores) > 1).mean()):.0%} of its {len(scores)} slices are" if len(scores) > 1 else ""
    message = (
        f"the image is unlike those that the network was trained on (score {score:.2f}{share}; {QUANTILE:.0%} of the "
        "validation images or more score at most 1): the result may mean nothing"
    )
    return {"scope": score}, [{"code": "outside_scope", "message": message}]
