"""What a stage shows while it trains: TensorBoard, a progress bar, and MONAI's experiment tracking."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from scripts.runs import parallel
from scripts.training.losses import MultiTaskLoss


class StageWriter:
    """TensorBoard's writer of a stage, opened at the first value; silent in all processes but the first.

    Args:
        log_dir: folder of the stage.
    """

    def __init__(self, log_dir: str | Path):
        self.log_dir = str(log_dir)
        self.purge_step = 0  # always given: TensorBoard takes the second start of a session for a restart
        self._writer: SummaryWriter | None = None

    def continue_after(self, epoch: int) -> None:
        """Take back what an interrupted run wrote after an epoch, so that no step shows twice.

        Raises:
            RuntimeError: when values were already written.
        """
        if self._writer is not None:
            raise RuntimeError("the writer is already open; say where to continue before writing")
        self.purge_step = epoch + 1

    def _open(self) -> SummaryWriter | None:
        if self._writer is None and parallel.first():
            self._writer = SummaryWriter(self.log_dir, purge_step=self.purge_step)
        return self._writer

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a value."""
        if (writer := self._open()) is not None:
            writer.add_scalar(tag, value, step)

    def add_image(self, tag: str, image: torch.Tensor, step: int) -> None:
        """Write a picture, (3, H, W) in [0, 1]."""
        if (writer := self._open()) is not None:
            writer.add_image(tag, image, step)

    def add_pr_curve(self, tag: str, truth: np.ndarray, probability: np.ndarray, step: int) -> None:
        """Write a precision-recall curve of (N,) bool truths and probabilities."""
        if (writer := self._open()) is not None:
            writer.add_pr_curve(tag, truth, probability, step)

    def hyperparameters(self, config: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Write the plain values of a config, as a table and for TensorBoard's HPARAMS page beside metrics.

        Args:
            config: of the stage.
            metrics: tags; the page shows the last value of each.
        """
        if (writer := self._open()) is None:
            return
        values = plain_values(config)
        rows = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        writer.add_text("config", f"| value | |\n|---|---|\n{rows}", 0)
        experiment, start, end = hparams(values, dict.fromkeys(metrics, 0.0))
        for summary in (experiment, start, end):
            writer._get_file_writer().add_summary(summary)

    def flush(self) -> None:
        """Write out what is waiting: a killed process loses none of it."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write out and close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def plain_values(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers, words and switches of a nested config by id, without expressions, references and paths."""
    values: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in config.items()):  # classes are numbers, as in class_shares
        if isinstance(value, Mapping):
            values |= plain_values(value, f"{prefix}{key}#")
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, float)) for v in value):
            values[prefix + key] = str(list(value))
        elif key.startswith("_") or key.endswith(("_dir", "_file", "_root")):
            continue
        elif isinstance(value, (bool, int, float)) or (isinstance(value, str) and value[:1] not in ("$", "@", "%")):
            values[prefix + key] = value
    return values


class TrainingScalars:
    """Writes an epoch's loss, its parts, gradient norm (means), learning rates, seconds per image, share of waiting.

    Args:
        writer: of the stage.
        loss: whose ``parts`` are logged.
        optimizer: whose groups carry a "name".
    """

    def __init__(self, writer: StageWriter, loss: MultiTaskLoss, optimizer: torch.optim.Optimizer):
        self.writer, self.loss, self.optimizer = writer, loss, optimizer
        self.values: dict[str, list[torch.Tensor]] = {}
        self.images, self.waited, self._asked = 0, 0.0, 0.0

    def attach(self, engine: Engine) -> None:
        """Collect at every iteration, write at the end of the epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self.ask)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self.receive)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.write)

    def start(self, engine: Any) -> None:
        """Forget the epoch before."""
        self.values, self.images, self.waited = {}, 0, 0.0

    def ask(self, engine: Any) -> None:
        """Note when a batch is asked for."""
        self._asked = time.perf_counter()

    def receive(self, engine: Any) -> None:
        """Note how long it took."""
        self.waited += time.perf_counter() - self._asked

    def collect(self, engine: Any) -> None:
        """Keep this iteration's values where they are; reading them would wait for a GPU."""
        values = {f"loss/{name}": part for name, part in self.loss.parts.items()}
        values["loss/total"] = engine.state.output["loss"].detach()
        if hasattr(engine.state, "gradient_norm"):
            values["gradient_norm"] = engine.state.gradient_norm
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)
        self.images += len(engine.state.output["image"])

    def write(self, engine: Any) -> None:
        """Write the epoch's means."""
        epoch = engine.state.epoch
        for name, collected in self.values.items():
            numbers = torch.stack(collected).double().cpu().numpy()
            finite = numbers[np.isfinite(numbers)] if name == "gradient_norm" else numbers
            self.writer.add_scalar(f"train/{name}", float(finite.mean()) if len(finite) else math.nan, epoch)
            if len(finite) < len(numbers):  # float16: the scaler left these steps out
                self.writer.add_scalar("train/skipped_steps", len(numbers) - len(finite), epoch)
        for group in self.optimizer.param_groups:
            self.writer.add_scalar(f"learning_rate/{group['name']}", group["lr"], epoch)
        seconds = engine.state.times.get(Events.EPOCH_COMPLETED.name) or 0.0
        images = sum(parallel.gathered([self.images]))
        if seconds:
            self.writer.add_scalar("train/seconds_per_image", seconds / images, epoch)
            self.writer.add_scalar("train/waiting_share", self.waited / seconds, epoch)


class StageProgress:
    """A progress bar over the iterations of a stage, with the time left, the loss and the selected metric.

    Args:
        title: shown in front.
    """

    def __init__(self, title: str):
        self.title = title
        self.bar: tqdm | None = None
        self._shown = 0.0

    def attach(self, engine: Engine) -> None:
        """Follow the trainer from start to end, also into an exception."""
        if parallel.first():
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
        if self.bar is None:
            return
        now = time.monotonic()
        if now - self._shown > self.bar.mininterval / 2:  # reading the loss waits for a GPU
            self._shown = now
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


def check_tracking(argv: Sequence[str] | None = None) -> None:
    """See that ``--tracking mlflow`` on a command line (by default this process's) can work.

    Raises:
        ValueError: when mlflow is not installed.
    """
    argv = sys.argv if argv is None else argv
    tools = [b if a == "--tracking" else a.partition("=")[2] for a, b in zip(argv, [*argv[1:], ""], strict=True)
             if a == "--tracking" or a.startswith("--tracking=")]  # fmt: skip
    if "mlflow" in tools and importlib.util.find_spec("mlflow") is None:
        raise ValueError(
            "--tracking mlflow needs the package mlflow, which is not installed: pip install mlflow, or leave the "
            "option out; TensorBoard's files are written in any case"
        )


def adapt_tracking(trainer: Any, handlers: Sequence[Any]) -> None:
    """Make the MLflow handlers of MONAI's ``--tracking`` fit: batches stay whole, epochs are the trainer's.

    Args:
        trainer: whose epoch counts.
        handlers: of trainer and evaluator.
    """
    for handler in handlers:
        if isinstance(handler, MLFlowHandler):
            handler.output_transform = lambda output: {"train_loss": output["loss"].item()}
            handler.global_epoch_transform = lambda _: trainer.state.epoch
