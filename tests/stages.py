"""A small stage with everything random that a real one has, its log, and ways to interrupt it."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, TensorBoardStatsHandler, ValidationHandler
from monai.inferers import SimpleInferer
from monai.optimizers import WarmupCosineSchedule
from monai.transforms import Compose, RandScaleIntensityd
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from scripts.data.samplers import DrawnItems, MixedBatchSampler, has_mask
from scripts.training.averaging import WeightAverage
from scripts.training.checkpoints import CHECKPOINT, WEIGHTS, StageCheckpoint
from scripts.training.engines import MultiTaskStep, parameter_groups, prepare_batch
from scripts.training.handlers import validation
from scripts.training.handlers.control import EpochSeed, FiniteLoss, GradientClip
from scripts.training.handlers.monitoring import StageWriter, TrainingScalars
from scripts.training.handlers.validation import ValidationImages, ValidationMetrics, ValidationScalars
from scripts.training.losses import MultiTaskLoss
from tests.networks.nets import heads, tiny

torch.set_num_threads(1)  # a forked process waits forever for the threads that its parent computed with
EPOCHS, BATCHES = 4, 3


class Stopped(Exception):
    """The machine goes away."""


def plain_reliability(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """The bins as gray pixels: drawing the figure takes as long as all the rest of a stage."""
    shares = [b[key] or 0.0 for bins in runs.values() for b in bins for key in ("predicted", "observed")]
    buffer = io.BytesIO()
    Image.fromarray(np.uint8(np.round(255 * np.asarray([shares])))).save(buffer, "png")
    return buffer.getvalue()


class Stage:
    """A stage of `EPOCHS` epochs of `BATCHES` batches, with everything random that a real one has."""

    def __init__(
        self,
        folder: Path,
        max_epochs: int = EPOCHS,
        seed: int = 3,
        key_metric: str = "combined",
        ema_decay: float | None = None,
        early_stopping: int | None = None,
        frozen: tuple[str, ...] = (),
    ):
        torch.manual_seed(seed)
        images = torch.cat([heads(size=16, batch=3), heads(size=16, batch=3, touching=True)])
        items = []
        for i, image in enumerate(images):
            masked = i % 2 == 0
            items.append(
                {
                    "image": image,
                    "label": ((image > 1) & torch.tensor(masked)).to(torch.uint8),
                    "foreground": (image != 0).to(torch.uint8),
                    "has_mask": masked,
                    "diagnosis": i % 3,
                    "name": f"case{i}",
                    "source": "ab"[i % 2],
                }
            )
        augment = Compose([RandScaleIntensityd(keys="image", factors=0.3, prob=1.0)])
        train_data, valid_data = Dataset(items, augment), Dataset(items)
        flags = has_mask([{"label": 1} if item["has_mask"] else {} for item in items])
        self.sampler = sampler = MixedBatchSampler(flags, batch_size=2, masked_share=0.5, seed=seed)
        drawn = DrawnItems(train_data, seed)
        loader = DataLoader(drawn, batch_sampler=sampler)
        self.network = tiny(dropout=0.2)
        step = MultiTaskStep(self.network, frozen=frozen)
        self.average = WeightAverage(self.network, ema_decay)
        writer = StageWriter(folder)
        self.loss = loss = MultiTaskLoss()
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, 0.02, 0.5), lr=0.02)
        scheduler = WarmupCosineSchedule(
            self.optimizer, warmup_steps=BATCHES, t_total=max_epochs * BATCHES, warmup_multiplier=0.05
        )
        metrics = ValidationMetrics()
        self.evaluator = SupervisedEvaluator(
            device="cpu",
            val_data_loader=DataLoader(valid_data, batch_size=3),
            network=MultiTaskStep(self.average.selected, calibrated=False),
            inferer=SimpleInferer(),
            prepare_batch=prepare_batch,
            key_val_metric={key_metric: metrics},
            val_handlers=[
                TensorBoardStatsHandler(
                    writer, iteration_log=False, epoch_event_writer=ValidationScalars(metrics, every=2)
                ),
                ValidationImages(writer, images=2, every=2),
            ],
            decollate=False,
        )
        self.trainer = SupervisedTrainer(
            max_epochs=max_epochs,
            device="cpu",
            train_data_loader=loader,
            network=step,
            optimizer=self.optimizer,
            loss_function=loss,
            inferer=SimpleInferer(),
            prepare_batch=prepare_batch,
            train_handlers=[
                EpochSeed(seed, drawn, sampler),
                FiniteLoss(loss, self.optimizer),
                GradientClip(list(step.parameters()), 5.0),
                LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
                TrainingScalars(writer, loss, self.optimizer),
                ValidationHandler(interval=1, validator=self.evaluator),
            ],
            decollate=False,
        )
        self.folder = folder
        self.checkpoint = StageCheckpoint(
            folder,
            self.network,
            self.optimizer,
            scheduler,
            metrics,
            key_metric,
            writer,
            self.average,
            early_stopping,
        )
        self.checkpoint.attach(self.trainer, self.evaluator)
        self.values: dict[int, float] = {}
        self.evaluator.add_event_handler(Events.COMPLETED, self._note)

    def _note(self, engine) -> None:
        self.values[self.trainer.state.epoch] = engine.state.metrics["combined"]

    def stop_after(self, iteration: int) -> None:
        def stop() -> None:
            raise Stopped

        self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), stop)

    def run(self) -> Stage:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "reliability", plain_reliability)
            self.checkpoint.run()
        self.checkpoint.writer.close()
        return self

    def files(self) -> dict[str, dict]:
        return {name: torch.load(self.folder / name, weights_only=True) for name in (WEIGHTS, CHECKPOINT)}


def assert_same(a, b, where: str = "") -> None:
    """Equal bit for bit, through all levels."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def logged(folder: Path) -> dict[str, list]:
    """All that TensorBoard shows of a stage, by tag, but for times and paths: (step, value)."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})  # as TensorBoard itself reads
    events.Reload()
    times = ("train/seconds_per_image", "train/waiting_share", "config/text_summary")
    return {
        tag: [(event.step, event.tensor_proto.SerializeToString()) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if tag not in times
    }


def age(folder: Path) -> None:
    """Let time pass: TensorBoard orders files by the second in their names, and tests are faster than that."""
    for path in folder.rglob("events.out.tfevents.*"):
        path.rename(path.with_name(re.sub(r"tfevents\.(\d+)", lambda m: f"tfevents.{int(m[1]) - 100:010d}", path.name)))


def killed(work: Callable[[], object]) -> bool:
    """Do the work in a process of its own; whether it died of SIGKILL, as by ``kill -9``.

    Raises:
        AssertionError: when it failed in another way.
    """
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"exit status {status}"
    return status == signal.SIGKILL


def kill_self(*_: object) -> None:
    """What the machine does."""
    os.kill(os.getpid(), signal.SIGKILL)
