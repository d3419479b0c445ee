"""Metrics and pictures of a validation, over cases and over all processes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.metrics import compute_dice
from monai.visualize import blend_images
from PIL import Image

from scripts.measures.intervals import auc
from scripts.measures.metrics import balanced_accuracy, calibration_bins, tumor_probability
from scripts.measures.thresholds import THRESHOLDS, choose_mask_threshold, mask_curve
from scripts.networks.regions import region_log_odds, region_masks, region_probability
from scripts.pictures.evaluation_figures import reliability
from scripts.runs import parallel
from scripts.training.engines import check_outputs
from scripts.training.handlers.monitoring import StageWriter

_WHO = ("patient", "group", "name")  # what a case is counted by, the first that is known
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
    same by source, as far as defined, is kept in ``by_source``; the logits are kept for the temperature, and with those
    of the changed items for the threshold (``threshold_logits``). With several processes each brings its cases, and all
    compute the same over all of them.

    Of several regions the Dice of a case is the mean over those that its mask has; ``dice_<region>`` stands beside. All
    of these are of masks at probability one half, whatever threshold is chosen later, so that epochs can be compared.

    Args:
        regions: names, the tumor first; None: the tumor alone.

    Attached as an Ignite metric, ``key_val_metric={name: ValidationMetrics()}``, its name is the metric that selects.
    """

    def __init__(self, regions: Sequence[str] | None = None) -> None:
        self.regions = list(regions or ["tumor"])
        self.key_metric: str | None = None
        self.logits: np.ndarray = np.empty(0)
        self.diagnosis: np.ndarray = np.empty(0, dtype=int)
        self.threshold_logits, self.threshold_diagnosis = self.logits, self.diagnosis
        self.by_source: dict[str, dict[str, float]] = {}
        self._cases: list[tuple[str, list[float], int, np.ndarray, float, str]] = []
        self._curves: list[list[tuple[str, bool, np.ndarray]]] = [[] for _ in self.regions]

    def attach(self, engine: Engine, name: str | None = None) -> None:
        """Collect batches and compute at the end; the metric ``name`` has to be among what is computed."""
        self.key_metric = name
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compute)

    def start(self, engine: Any) -> None:
        """Forget the run before."""
        self._cases, self._curves = [], [[] for _ in self.regions]

    def collect(self, engine: Any) -> None:
        """Add a batch."""
        pred, target = engine.state.output["pred"], engine.state.output["label"]
        check_outputs(pred, engine.state.batch.get("name"))
        chosen = target["has_mask"] & (target["label"].flatten(1).amax(dim=1) > 0)
        nested = len(self.regions) > 1
        dice, marked = np.full((len(chosen), len(self.regions)), np.nan), np.full(len(chosen), np.nan)
        if "seg" in pred:
            segmented = region_masks(pred["seg"], nested)
            marked = segmented[:, :1].flatten(1).any(dim=1).cpu().numpy().astype(float)
            if bool(chosen.any()):
                masks = target["region_masks" if nested else "label"]
                values = compute_dice(segmented[chosen].float(), masks[chosen].float())
                dice[chosen.cpu().numpy()] = values.cpu().numpy()
            self._add_curves(engine.state.batch, pred["seg"], target)
        sources = engine.state.batch.get("source", ["unknown"] * len(dice))
        changes = engine.state.batch.get("intervention", [""] * len(dice))
        logits = pred["cls"].float().cpu().numpy()
        diagnosis = target["diagnosis"].cpu().tolist()
        self._cases += list(zip(sources, dice.tolist(), diagnosis, logits, marked.tolist(), changes, strict=True))

    def _add_curves(self, batch: Mapping[str, Any], seg: torch.Tensor, target: Mapping[str, Any]) -> None:
        """Keep what each case with a mask, not a changed one, says of the thresholds of the masks."""
        nested = len(self.regions) > 1
        odds, masks = region_log_odds(seg, nested), target["region_masks" if nested else "label"]
        for i in torch.nonzero(target["has_mask"]).flatten().tolist():
            if not batch.get("intervention", [""] * len(masks))[i]:
                words = {key: str(batch[key][i]) if key in batch else "" for key in ("source", *_WHO)}
                patient = next((f"{words['source']} {words[key]}" for key in _WHO if words[key]), str(i))
                for k, curves in enumerate(self._curves):
                    curves.append((patient, bool(masks[i, k].any()), mask_curve(odds[i, k], masks[i, k])))

    def mask_thresholds(self) -> list[tuple[float, str]] | None:
        """Threshold of each region's mask with the best Dice, and why; None where no mask was predicted."""
        chosen = []
        for by_region in self._curves:
            curves = parallel.gathered(by_region)
            there = [(patient, curve) for patient, has, curve in curves if has]
            free = [curve for _, has, curve in curves if not has]
            if not curves:
                return None
            dice = np.asarray([curve for _, curve in there]).reshape(len(there), len(THRESHOLDS))
            chosen.append(choose_mask_threshold(dice, [patient for patient, _ in there], np.asarray(free)))
        return chosen

    def compute(self, engine: Any) -> None:
        """Write the metrics; what has no case is NaN.

        Raises:
            ValueError: when the metric that selects is not among them.
        """
        every = parallel.gathered(self._cases)
        cases = [case for case in every if not case[5]]
        source = np.asarray([case[0] for case in cases])
        by_region = np.asarray([case[1] for case in cases], dtype=float).reshape(len(cases), len(self.regions))
        dice = _mean_of_known(by_region)
        diagnosis = np.asarray([case[2] for case in cases], dtype=int)
        logits = np.stack([case[3] for case in cases])
        self.logits, self.diagnosis = logits[diagnosis >= 0], diagnosis[diagnosis >= 0]
        changed = [case for case in every if case[5] and case[2] >= 0]
        self.threshold_logits = np.concatenate([self.logits, *(case[3][None] for case in changed)])
        self.threshold_diagnosis = np.concatenate(
            [self.diagnosis, np.asarray([case[2] for case in changed], dtype=int)]
        )
        metrics = _metrics(dice, diagnosis, logits)
        if len(self.regions) > 1:
            metrics |= {
                f"dice_{name}": float(v) for name, v in zip(self.regions, _mean_of_known(by_region.T), strict=True)
            }
        marked = np.asarray([case[4] for case in cases if case[2] == 0])
        if len(marked) and not np.isnan(marked).any():
            metrics["false_masks"] = float(marked.mean())
        for kind in ("removed", "moved"):
            right = [case[3].argmax() == case[2] for case in every if case[5] == kind]
            if right:
                metrics[kind] = float(np.mean(right))
        if "removed" in metrics and "moved" in metrics:
            metrics["because"] = (metrics["removed"] + metrics["moved"] + metrics["combined"]) / 3
        if self.key_metric is not None and self.key_metric not in metrics:
            raise ValueError(f"key_metric is one of {', '.join(metrics)}, got {self.key_metric!r}")
        engine.state.metrics.update(metrics)
        self.by_source = {
            str(name): {
                metric: value
                for metric, value in _metrics(*(part[source == name] for part in (dice, diagnosis, logits))).items()
                if not np.isnan(value)
            }
            for name in np.unique(source)
        }


def _mean_of_known(rows: np.ndarray) -> np.ndarray:
    """Mean of each row over what is no NaN; NaN where nothing is."""
    return np.asarray([row[~np.isnan(row)].mean() if not np.isnan(row).all() else np.nan for row in rows])


def _metrics(dice: np.ndarray, diagnosis: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    measured = dice[~np.isnan(dice)]
    mean = float(np.mean(measured)) if len(measured) else float("nan")
    known = diagnosis >= 0
    balanced, area = float("nan"), float("nan")
    if known.any():
        balanced = balanced_accuracy(diagnosis[known], logits[known].argmax(axis=1))
        area = auc(diagnosis[known] > 0, tumor_probability(logits[known]))
    return {"dice": mean, "balanced_accuracy": balanced, "auc": area, "combined": (mean + balanced) / 2}


class ValidationScalars:
    """Writes metrics, those of each source, and two curves of tumor against none to TensorBoard.

    The ``epoch_event_writer`` of MONAI's TensorBoardStatsHandler; the step is the trainer's epoch. The curves are
    precision against recall, and reliability: what was said before any temperature against what happened.

    Args:
        metrics: of the evaluator.
        every: draw the reliability at each n-th epoch, and at the start; 0 or None: never.
    """

    def __init__(self, metrics: ValidationMetrics, every: int | None = None):
        self.metrics, self.every = metrics, every

    def __call__(self, engine: Any, writer: StageWriter) -> None:
        """Write what the validation found."""
        epoch = engine.state.trainer_epoch
        for name, value in engine.state.metrics.items():
            writer.add_scalar(f"validation/{name}", value, epoch)
        for source, values in self.metrics.by_source.items():
            for name, value in values.items():
                writer.add_scalar(f"validation_by_source/{source}/{name}", value, epoch)
        tumor = self.metrics.diagnosis > 0
        if 0 < tumor.sum() < len(tumor):
            said = tumor_probability(self.metrics.logits)
            writer.add_pr_curve("validation/tumor", tumor, said, epoch)
            if self.every and epoch % self.every == 0:
                drawn = Image.open(io.BytesIO(reliability({"validation": calibration_bins(said, tumor)})))
                picture = torch.from_numpy(np.array(drawn.convert("RGB"))).permute(2, 0, 1).float() / 255
                writer.add_image("validation/reliability", picture, epoch)


class ValidationImages:
    """Shows mask, prediction and evidence over a few images of a validation in TensorBoard, tumors first.

    Evidence has a fixed scale, see `evidence_strength`, and is shown in the head alone.

    Args:
        writer: of the stage.
        images: how many.
        every: write at each n-th epoch, and at the start; 0 or None: never.
    """

    def __init__(self, writer: StageWriter, images: int = 4, every: int | None = 5):
        self.writer, self.images, self.every = writer, images, every
        self._cases: list[tuple[int, dict[str, torch.Tensor]]] = []

    def attach(self, engine: Engine) -> None:
        """Look at every batch of the first process."""
        if parallel.first() and self.every:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Keep the images of a batch that are to be shown; write them after the last one."""
        state = engine.state
        if not self.every or state.trainer_epoch % self.every or state.output["image"].ndim != 4:
            return
        if (state.iteration - 1) % state.epoch_length == 0:
            self._cases = []
        self._cases = sorted([*self._cases, *_shown_cases(state.output)], key=lambda case: case[0])[: self.images]
        if state.iteration % state.epoch_length == 0:
            self.write([case for _, case in self._cases], state.trainer_epoch)

    def write(self, cases: Sequence[Mapping[str, torch.Tensor]], epoch: int) -> None:
        """Write one picture a layer: the cases beside each other."""
        image = torch.stack([case["image"] for case in cases])
        head = (image != 0).float()
        gray = ((image - image.amin()) / (image.amax() - image.amin())).clamp(0, 1) * head
        for name in [name for name in cases[0] if name != "image"]:
            layer = torch.stack([case[name] for case in cases])
            layer = torch.nn.functional.interpolate(layer, size=gray.shape[2:], mode="bilinear").clamp(0, 1) * head
            # As opaque as the map is strong: what is nearly nothing must not darken the image.
            shown = [
                blend_images(g, m, alpha=0.7 * m, cmap="inferno", rescale_arrays=False, transparent_background=True)
                for g, m in zip(gray, layer, strict=True)
            ]
            # Arrays are (X, Y): pictures have Y down and X to the right.
            row = torch.cat([torch.as_tensor(s) for s in shown], dim=1).transpose(1, 2)
            self.writer.add_image(f"validation/{name}", row, epoch)


def _shown_cases(output: Mapping[str, Any]) -> list[tuple[int, dict[str, torch.Tensor]]]:
    """Rank of each case of a batch (tumors in a mask, tumors, masks, others), and its image and layers."""
    target, pred = output["label"], output["pred"]
    layers = {"image": output["image"][:, :1], "mask": target["label"]}
    if "seg" in pred:
        layers["prediction"] = region_probability(pred["seg"], "region_masks" in target)[:, :1]
    if "evidence" in pred:
        layers["evidence"] = evidence_strength(pred["evidence"].float())
    tumor, masked = target["label"].flatten(1).amax(1) > 0, target["has_mask"].bool()
    sick = target["diagnosis"] > 0 if "diagnosis" in target else torch.zeros_like(masked)
    rank = torch.where(tumor & masked, 0, torch.where(sick, 1, torch.where(masked, 2, 3))).tolist()
    return [(rank[i], {name: layer[i].cpu().float() for name, layer in layers.items()}) for i in range(len(rank))]


def evidence_strength(evidence: torch.Tensor) -> torch.Tensor:
    """Evidence (B, K, h, w) for the most likely tumor in each cell on a fixed scale, (B, 1, h, w); no evidence is 0.

    ``2 p - 1`` with p = sigmoid(evidence), for p above one half: a map of nothing stays dark, whatever its maximum and
    the number of classes.
    """
    odds = evidence[:, 1:].amax(dim=1, keepdim=True) - evidence[:, :1]
    return (2 * torch.sigmoid(odds) - 1).clamp(min=0)


def describe(metrics: dict[str, Any]) -> str:
    """Metrics as one line of text."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))
