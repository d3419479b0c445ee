"""Ignite handlers of training and validation: seeds, clipping, TensorBoard, progress, validation metrics."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.engines.utils import IterationEvents
from monai.metrics import compute_dice
from monai.transforms import Randomizable
from monai.visualize import blend_images
from sklearn.metrics import recall_score, roc_auc_score
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from scripts.losses import MultiTaskLoss
from scripts.metrics import tumor_probability
from scripts.samplers import MixedBatchSampler


class EpochSeed:
    """Makes every epoch's randomness a function of seed and epoch alone, so that a resumed run equals an unbroken one.

    Args:
        seed: of the run.
        dataset: its random transforms are reseeded.
        sampler: is told the epoch.
    """

    def __init__(self, seed: int, dataset: Dataset, sampler: MixedBatchSampler | None = None):
        self.seed, self.dataset, self.sampler = seed, dataset, sampler

    def attach(self, engine: Engine) -> None:
        """Run at the start of every epoch, before its first batch is drawn."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Seed torch, the transforms and the sampler."""
        seed = int(np.random.SeedSequence((self.seed, engine.state.epoch)).generate_state(1)[0])
        torch.manual_seed(seed)
        if isinstance(self.dataset.transform, Randomizable):
            self.dataset.transform.set_random_state(seed=seed)
        if self.sampler is not None:
            self.sampler.set_epoch(engine.state.epoch)


class GradientClip:
    """Clips the total norm of the gradients after each backward pass and keeps the norm in ``engine.state``.

    Args:
        parameters: the trained parameters.
        max_norm: upper bound; gradients above are scaled down.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], max_norm: float):
        self.parameters, self.max_norm = list(parameters), max_norm

    def attach(self, engine: Engine) -> None:
        """Run between the backward pass and the optimizer's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        engine.state.gradient_norm = norm.detach()


class TrainingScalars:
    """Writes loss, its parts, gradient norm (means over the epoch), learning rates and seconds per image.

    Args:
        writer: of the stage.
        loss: whose ``parts`` are logged.
        optimizer: whose groups carry a "name".
    """

    def __init__(self, writer: SummaryWriter, loss: MultiTaskLoss, optimizer: torch.optim.Optimizer):
        self.writer, self.loss, self.optimizer = writer, loss, optimizer
        self.sums: dict[str, list[float]] = {}
        self.images = 0

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration, write at the end of the epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine: Any) -> None:
        """Forget the epoch before."""
        self.sums, self.images = {}, 0

    def collect(self, engine: Any) -> None:
        """Add this iteration's values."""
        values = {f"loss/{name}": float(part) for name, part in self.loss.parts.items()}
        values["loss/total"] = engine.state.output["loss"].item()
        if hasattr(engine.state, "gradient_norm"):
            values["gradient_norm"] = float(engine.state.gradient_norm)
        for name, value in values.items():
            self.sums.setdefault(name, []).append(value)
        self.images += len(engine.state.output["image"])

    def write(self, engine: Any) -> None:
        """Write the epoch's means."""
        epoch = engine.state.epoch
        for name, values in self.sums.items():
            self.writer.add_scalar(f"train/{name}", float(np.mean(values)), epoch)
        for group in self.optimizer.param_groups:
            self.writer.add_scalar(f"learning_rate/{group['name']}", group["lr"], epoch)
        seconds = engine.state.times.get(Events.EPOCH_COMPLETED.name) or 0.0
        if seconds:
            self.writer.add_scalar("train/seconds_per_image", seconds / self.images, epoch)
        engine.state.train_loss = float(np.mean(self.sums["loss/total"]))


class StageProgress:
    """A progress bar over the iterations of a stage, with the time left, the loss and the selected metric.

    Args:
        title: shown in front.
    """

    def __init__(self, title: str):
        self.title = title
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Follow the trainer from start to end, also into an exception."""
        engine.add_event_handler(Events.STARTED, self.open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.TERMINATE, self.close)

    def open(self, engine: Any) -> None:
        """Start the bar where a resumed run continues."""
        self.bar = tqdm(
            total=engine.state.max_epochs * engine.state.epoch_length,
            initial=engine.state.iteration,
            desc=self.title,
            unit="batch",
            mininterval=0.5 if sys.stderr.isatty() else 15.0,
        )

    def update(self, engine: Any) -> None:
        """Advance by one batch."""
        if self.bar is not None:
            best = getattr(engine.state, "best_metric", -1)
            self.bar.set_postfix_str(
                f"epoch {engine.state.epoch}/{engine.state.max_epochs}, loss {engine.state.output['loss'].item():.3f}, "
                f"best {best:.3f}",
                refresh=False,
            )
            self.bar.update(1)

    def close(self, engine: Any) -> None:
        """Leave the finished line."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class ValidationMetrics:
    """Dice over tumor cases, balanced accuracy and AUC of a validation run, per case and not per batch.

    Written to ``engine.state.metrics``: ``dice`` (mean over cases with tumor in the mask), ``balanced_accuracy`` (of
    the most probable class), ``auc`` (tumor against none, if both are there) and ``combined``, the mean of the first
    two. The logits are kept for threshold and temperature.
    """

    def __init__(self) -> None:
        self.dice: list[float] = []
        self.logits: np.ndarray = np.empty(0)
        self.diagnosis: np.ndarray = np.empty(0, dtype=int)
        self._logits: list[np.ndarray] = []
        self._diagnosis: list[np.ndarray] = []

    def attach(self, engine: Engine) -> None:
        """Collect batches and compute at the end."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.compute)

    def start(self, engine: Any) -> None:
        """Forget the run before."""
        self.dice, self._logits, self._diagnosis = [], [], []

    def collect(self, engine: Any) -> None:
        """Add a batch."""
        pred, target = engine.state.output["pred"], engine.state.output["label"]
        chosen = target["has_mask"] & (target["label"].flatten(1).amax(dim=1) > 0)
        if bool(chosen.any()):
            segmented = pred["seg"][chosen].argmax(dim=1, keepdim=True) > 0
            dice = compute_dice(segmented.float(), target["label"][chosen].float())
            self.dice.extend(dice.flatten().tolist())
        known = target["diagnosis"] >= 0
        self._logits.append(pred["cls"][known].cpu().numpy())
        self._diagnosis.append(target["diagnosis"][known].cpu().numpy())

    def compute(self, engine: Any) -> None:
        """Write the metrics; what has no case is NaN."""
        self.logits, self.diagnosis = np.concatenate(self._logits), np.concatenate(self._diagnosis)
        dice = float(np.mean(self.dice)) if self.dice else float("nan")
        balanced, auc = float("nan"), float("nan")
        if len(self.diagnosis):
            balanced = float(recall_score(self.diagnosis, self.logits.argmax(axis=1), average="macro", zero_division=0))
            tumor = self.diagnosis > 0
            if 0 < tumor.sum() < len(tumor):
                auc = float(roc_auc_score(tumor, tumor_probability(self.logits)))
        engine.state.metrics.update(
            {"dice": dice, "balanced_accuracy": balanced, "auc": auc, "combined": (dice + balanced) / 2}
        )


class ValidationImages:
    """Shows mask, prediction and evidence over the first images of every validation in TensorBoard.

    Args:
        writer: of the stage.
        images: how many.
        every: write at each n-th epoch.
    """

    def __init__(self, writer: SummaryWriter, images: int = 4, every: int = 5):
        self.writer, self.images, self.every = writer, images, every

    def attach(self, engine: Engine) -> None:
        """Look at the first batch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Write the images of the first batch."""
        epoch = engine.state.trainer_epoch
        if (engine.state.iteration - 1) % engine.state.epoch_length or epoch % self.every:
            return
        image, target = engine.state.output["image"].cpu().float(), engine.state.output["label"]
        pred = engine.state.output["pred"]
        if image.ndim != 4:
            return
        layers = {
            "mask": target["label"].cpu().float(),
            "prediction": torch.softmax(pred["seg"], 1)[:, 1:].sum(1, True),
        }
        if "evidence" in pred:
            tumor = (pred["evidence"][:, 1:].amax(dim=1, keepdim=True) - pred["evidence"][:, :1]).clamp(min=0)
            layers["evidence"] = tumor / tumor.flatten(1).amax(dim=1).clamp(min=1e-6).view(-1, 1, 1, 1)
        order = torch.argsort(target["has_mask"].cpu().float(), descending=True, stable=True)[: self.images]
        gray = image[order, :1]
        gray = ((gray - gray.amin()) / (gray.amax() - gray.amin())).clamp(0, 1) * (image[order, :1] != 0)
        for name, layer in layers.items():
            layer = torch.nn.functional.interpolate(layer[order].cpu().float(), size=gray.shape[2:], mode="bilinear")
            shown = [
                blend_images(g, m, alpha=0.5, cmap="inferno", rescale_arrays=False, transparent_background=True)
                for g, m in zip(gray, layer, strict=True)
            ]
            grid = torch.cat([torch.as_tensor(s) for s in shown], dim=1)
            self.writer.add_image(f"validation/{name}", grid.transpose(1, 2), epoch)


def describe(metrics: dict[str, Any]) -> str:
    """Metrics as one line of text."""
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, float))


__all__ = [
    "EpochSeed",
    "GradientClip",
    "StageProgress",
    "TrainingScalars",
    "ValidationImages",
    "ValidationMetrics",
    "describe",
]
