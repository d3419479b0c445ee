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
from scripts.training.engines import check_outputs
from scripts.training.handlers.monitoring import StageWriter

# What a validation measures and weights are selected by; the last where it has changed items.
KEY_METRICS = ("dice", "balanced_accuracy", "auc", "combined", "because")


class ValidationMetrics:
    """Dice over tumor cases, balanced accuracy and AUC of a validation run, per case and not per batch.

    Written to ``engine.state.metrics``: ``dice`` (mean over cases with tumor in the mask), ``balanced_accuracy`` (of
    the most probable class), ``auc`` (tumor against none, if both are there) and ``combined``, the mean of the first
    two. ``false_masks`` is the share of cases of class 0 with a mask. Where some items are changed (see
    `scripts.training.counterfactuals`), all of these are of the others; ``removed`` is then the share of heads without
    their tumor that are said to have none, ``moved`` that of heads with another's tumor whose kind is said, and
    ``because`` the mean of these two and ``combined``: what to select by where the verdict has to follow the tumor. The
    same by source, as far as defined, is kept in ``by_source``; the logits are kept for threshold and
    temperature. With several processes each brings its cases, and all compute the same over all of them.
    """

    def __init__(self) -> None:
        self.logits: np.ndarray = np.empty(0)
        self.diagnosis: np.ndarray = np.empty(0, dtype=int)
        self.by_source: dict[str, dict[str, float]] = {}
        self._cases: list[tuple[str, float, int, np.ndarray, float, str]] = []

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
        check_outputs(pred, engine.state.batch.get("name"))
        chosen = target["has_mask"] & (target["label"].flatten(1).amax(dim=1) > 0)
        dice, marked = np.full((2, len(chosen)), np.nan)
        if "seg" in pred:
            segmented = pred["seg"].argmax(dim=1, keepdim=True) > 0
            marked = segmented.flatten(1).any(dim=1).cpu().numpy().astype(float)
            if bool(chosen.any()):
                values = compute_dice(segmented[chosen].float(), target["label"][chosen].float())
                dice[chosen.cpu().numpy()] = values.flatten().cpu().numpy()
        sources = engine.state.batch.get("source", ["unknown"] * len(dice))
        changes = engine.state.batch.get("intervention", [""] * len(dice))
        logits = pred["cls"].float().cpu().numpy()
        diagnosis = target["diagnosis"].cpu().tolist()
        self._cases += list(zip(sources, dice.tolist(), diagnosis, logits, marked.tolist(), changes, strict=True))

    def compute(self, engine: Any) -> None:
        """Write the metrics; what has no case is NaN."""
        every = parallel.gathered(self._cases)
        cases = [case for case in every if not case[5]]
        source = np.asarray([case[0] for case in cases])
        dice = np.asarray([case[1] for case in cases])
        diagnosis = np.asarray([case[2] for case in cases], dtype=int)
        logits = np.stack([case[3] for case in cases])
        self.logits, self.diagnosis = logits[diagnosis >= 0], diagnosis[diagnosis >= 0]
        metrics = _metrics(dice, diagnosis, logits)
        marked = np.asarray([case[4] for case in cases if case[2] == 0])
        if len(marked) and not np.isnan(marked).any():
            metrics["false_masks"] = float(marked.mean())
        for kind in ("removed", "moved"):
            right = [case[3].argmax() == case[2] for case in every if case[5] == kind]
            if right:
                metrics[kind] = float(np.mean(right))
        if "removed" in metrics and "moved" in metrics:
            metrics["because"] = (metrics["removed"] + metrics["moved"] + metrics["combined"]) / 3
        engine.state.metrics.update(metrics)
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
