"""Metrics and pictures of a validation, over cases and over all processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice
from monai.visualize import blend_images
from sklearn.metrics import roc_auc_score

from scripts.measures.metrics import balanced_accuracy, tumor_probability
from scripts.runs import parallel
from scripts.training.handlers.monitoring import StageWriter

KEY_METRICS = ("dice", "balanced_accuracy", "auc", "combined")  # what a validation measures and weights are selected by


class ValidationMetrics:
    """Dice over tumor cases, balanced accuracy and AUC of a validation run, per case and not per batch.

    Written to ``engine.state.metrics``: ``dice`` (mean over cases with tumor in the mask), ``balanced_accuracy`` (of
    the most probable class), ``auc`` (tumor against none, if both are there) and ``combined``, the mean of the first
    two. The same by source, as far as defined, is kept in ``by_source``; the logits are kept for threshold and
    temperature. With several processes each brings its cases, and all compute the same over all of them.
    """

    def __init__(self) -> None:
        self.logits: np.ndarray = np.empty(0)
        self.diagnosis: np.ndarray = np.empty(0, dtype=int)
        self.by_source: dict[str, dict[str, float]] = {}
        self._cases: list[tuple[str, float, int, np.ndarray]] = []

    def attach(self, engine: Engine) -> None:
        """Collect batches and compute at the end."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compute)

    def start(self, engine: Any) -> None:
        """Forget the run before."""
        self._cases = []

    def collect(self, engine: Any) -> None:
        """Add a batch."""
        pred, target = engine.state.output["pred"], engine.state.output["label"]
        chosen = target["has_mask"] & (target["label"].flatten(1).amax(dim=1) > 0)
        dice = np.full(len(chosen), np.nan)
        if "seg" in pred and bool(chosen.any()):
            segmented = pred["seg"][chosen].argmax(dim=1, keepdim=True) > 0
            values = compute_dice(segmented.float(), target["label"][chosen].float())
            dice[chosen.cpu().numpy()] = values.flatten().cpu().numpy()
        sources = engine.state.batch.get("source", ["unknown"] * len(dice))
        logits = pred["cls"].float().cpu().numpy()
        diagnosis = target["diagnosis"].cpu().tolist()
        self._cases += list(zip(sources, dice.tolist(), diagnosis, logits, strict=True))

    def compute(self, engine: Any) -> None:
        """Write the metrics; what has no case is NaN."""
        cases = parallel.gathered(self._cases)
        source = np.asarray([case[0] for case in cases])
        dice = np.asarray([case[1] for case in cases])
        diagnosis = np.asarray([case[2] for case in cases], dtype=int)
        logits = np.stack([case[3] for case in cases])
        self.logits, self.diagnosis = logits[diagnosis >= 0], diagnosis[diagnosis >= 0]
        engine.state.metrics.update(_metrics(dice, diagnosis, logits))
        self.by_source = {
            str(name): {
                metric: value
                for metric, value in _metrics(*(part[source == name] for part in (dice, diagnosis, logits))).items()
                if not np.isnan(value)
            }
            for name in np.unique(source)
        }


def _metrics(dice: np.ndarray, diagnosis: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    measured = dice[~np.isnan(dice)]
    mean = float(np.mean(measured)) if len(measured) else float("nan")
    known = diagnosis >= 0
    balanced, auc = float("nan"), float("nan")
    if known.any():
        balanced = balanced_accuracy(diagnosis[known], logits[known].argmax(axis=1))
        tumor = diagnosis[known] > 0
        if 0 < tumor.sum() < len(tumor):
            auc = float(roc_auc_score(tumor, tumor_probability(logits[known])))
    return {"dice": mean, "balanced_accuracy": balanced, "auc": auc, "combined": (mean + balanced) / 2}


class ValidationImages:
    """Shows mask, prediction and evidence over the first images of a validation in TensorBoard.

    Args:
        writer: of the stage.
        images: how many.
        every: write at each n-th epoch, and at the start; 0 or None: never.
    """

    def __init__(self, writer: StageWriter, images: int = 4, every: int | None = 5):
        self.writer, self.images, self.every = writer, images, every

    def attach(self, engine: Engine) -> None:
        """Look at the first batch of the first process."""
        if parallel.first() and self.every:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Write the images of the first batch."""
        epoch = engine.state.trainer_epoch
        if not self.every or (engine.state.iteration - 1) % engine.state.epoch_length or epoch % self.every:
            return
        image, target = engine.state.output["image"].cpu().float(), engine.state.output["label"]
        pred = engine.state.output["pred"]
        if image.ndim != 4:
            return
        layers = {"mask": target["label"].cpu().float()}
        if "seg" in pred:
            layers["prediction"] = torch.softmax(pred["seg"], 1)[:, 1:].sum(1, True)
        if "evidence" in pred:
            layers["evidence"] = evidence_strength(pred["evidence"].float())
        order = torch.argsort(target["has_mask"].cpu().float(), descending=True, stable=True)[: self.images]
        gray = image[order, :1]
        gray = ((gray - gray.amin()) / (gray.amax() - gray.amin())).clamp(0, 1) * (image[order, :1] != 0)
        for name, layer in layers.items():
            layer = torch.nn.functional.interpolate(layer[order].cpu().float(), size=gray.shape[2:], mode="bilinear")
            # As opaque as the map is strong: what is nearly nothing must not darken the image.
            shown = [
                blend_images(g, m, alpha=0.7 * m, cmap="inferno", rescale_arrays=False, transparent_background=True)
                for g, m in zip(gray, layer.clamp(0, 1), strict=True)
            ]
            # Arrays are (X, Y): pictures have Y down and X to the right.
            row = torch.cat([torch.as_tensor(s) for s in shown], dim=1).transpose(1, 2)
            self.writer.add_image(f"validation/{name}", row, epoch)


def evidence_strength(evidence: torch.Tensor) -> torch.Tensor:
    """Evidence (B, K, h, w) as the probability of a tumor in each cell, (B, 1, h, w) in [0, 1]; no evidence is 0.

    ``2 p - 1`` for p above one half: a map of nothing stays dark, whatever its maximum.
    """
    odds = torch.logsumexp(evidence[:, 1:], dim=1, keepdim=True) - evidence[:, :1]
    return (2 * torch.sigmoid(odds) - 1).clamp(min=0)


def describe(metrics: dict[str, Any]) -> str:
    """Metrics as one line of text."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
