"""Checkpoints of a stage: selection of weights, exact continuation, and files that are whole or absent."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from scripts.handlers import ValidationMetrics, describe
from scripts.metrics import choose_threshold, fit_temperature, tumor_probability
from scripts.networks import MultiTaskDynUNet

logger = logging.getLogger(__name__)

WEIGHTS, CHECKPOINT = "model.pt", "checkpoint.pt"


def save_atomic(value: Any, path: str | Path) -> None:
    """``torch.save`` that leaves either the whole new file or the old one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def load_weights(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Load a plain state dict strictly; None leaves the network as it is.

    Raises:
        FileNotFoundError: when the file is absent.
        ValueError: when it is not a state dict of this network, with the keys that differ.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; run the stage that writes them first")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"weights file {path} is not readable ({type(error).__name__}); it may be truncated"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"weights file {path} holds a {type(state).__name__}, expected a state dict")
    own = network.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"weights file {path} does not fit {type(network).__name__}: missing keys {missing[:3]}, unexpected keys "
            f"{unexpected[:3]}, other shapes {shapes[:3]}; build the network with the config of that run"
        )
    network.load_state_dict(state)
    return network


class StageCheckpoint:
    """Runs a stage, keeps its best weights and lets an interrupted one continue where it was.

    After every validation the key metric is compared; the best weights, with threshold and temperature fitted on that
    validation, go to ``model.pt``. The first validation, before any training, is a candidate: a stage never hands over
    less than it was given. After every epoch the whole state goes to ``checkpoint.pt``; running the same stage again
    continues after the last whole epoch, and a finished stage is left as it is.

    Args:
        stage_dir: folder of the stage.
        network: the inner network.
        optimizer, scheduler: of the trainer.
        metrics: of the evaluator.
        key_metric: name of the metric that selects, higher is better.
        writer: TensorBoard writer of the validation metrics.
    """

    def __init__(
        self,
        stage_dir: str | Path,
        network: MultiTaskDynUNet,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        metrics: ValidationMetrics,
        key_metric: str,
        writer: SummaryWriter,
    ):
        self.stage_dir = Path(stage_dir)
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.metrics, self.key_metric, self.writer = metrics, key_metric, writer
        self.best_metric, self.best_epoch = float("-inf"), -1
        self.trainer: Any = None

    def attach(self, trainer: SupervisedTrainer, evaluator: SupervisedEvaluator) -> None:
        """Follow both engines; call once, after all other handlers are attached."""
        self.trainer = trainer
        evaluator.add_event_handler(Events.STARTED, self._mark)
        evaluator.add_event_handler(Events.COMPLETED, self.select)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def run(self) -> None:
        """Train from the start or from the checkpoint, to the end."""
        if self.trainer is None:
            raise RuntimeError("attach the checkpoint to trainer and evaluator before running")
        path = self.stage_dir / CHECKPOINT
        if path.is_file():
            self.resume(path)
        if self.trainer.state.epoch < self.trainer.state.max_epochs:
            self.trainer.run()
        logger.info(
            "%s: best %s %.4f at epoch %d, weights in %s",
            self.stage_dir.name, self.key_metric, self.best_metric, self.best_epoch, self.stage_dir / WEIGHTS,
        )  # fmt: skip

    def _mark(self, engine: Any) -> None:
        engine.state.trainer_epoch = self.trainer.state.epoch

    def select(self, engine: Engine) -> None:
        """Log the validation and keep the weights if they are the best so far."""
        epoch = self.trainer.state.epoch
        for name, value in engine.state.metrics.items():
            self.writer.add_scalar(f"validation/{name}", value, epoch)
        if self.key_metric not in engine.state.metrics:
            raise ValueError(f"key_metric is one of {', '.join(engine.state.metrics)}, got {self.key_metric!r}")
        value = engine.state.metrics[self.key_metric]
        if value != value:
            raise ValueError(
                f"validation has no case that defines {self.key_metric!r}: add cases with "
                f"{'a tumor mask' if self.key_metric != 'balanced_accuracy' else 'a diagnosis'} to the validation part"
            )
        logger.debug("epoch %d: %s", epoch, describe(engine.state.metrics))
        if value > self.best_metric:
            self.best_metric, self.best_epoch = value, epoch
            self.trainer.state.best_metric, self.trainer.state.best_metric_epoch = value, epoch
            self.calibrate()
            save_atomic(self.network.state_dict(), self.stage_dir / WEIGHTS)

    def calibrate(self) -> None:
        """Fit temperature and threshold on the last validation and store them in the network's buffers."""
        logits, diagnosis = self.metrics.logits, self.metrics.diagnosis
        if len(diagnosis) == 0:
            return
        temperature = fit_temperature(logits, diagnosis)
        threshold = choose_threshold(tumor_probability(logits, temperature), diagnosis > 0)
        self.network.temperature.fill_(temperature)
        self.network.threshold.fill_(threshold)

    def save(self, engine: Engine) -> None:
        """Write the state after an epoch."""
        save_atomic(
            {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "max_epochs": engine.state.max_epochs,
                "best_metric": self.best_metric,
                "best_epoch": self.best_epoch,
            },
            self.stage_dir / CHECKPOINT,
        )

    def resume(self, path: Path) -> None:
        """Take up the state of a checkpoint.

        Raises:
            ValueError: when the file is not whole, or belongs to a run with another number of epochs.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} is not readable ({type(error).__name__}); delete it to start this stage anew"
            ) from error
        if state["max_epochs"] != self.trainer.state.max_epochs:
            raise ValueError(
                f"checkpoint {path} is of a run of {state['max_epochs']} epochs, this one has "
                f"{self.trainer.state.max_epochs}; choose another run_dir or delete it"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.best_metric, self.best_epoch = state["best_metric"], state["best_epoch"]
        trainer = self.trainer.state
        trainer.epoch, trainer.iteration = state["epoch"], state["iteration"]
        trainer.best_metric, trainer.best_metric_epoch = self.best_metric, self.best_epoch
        logger.info("%s: continuing after epoch %d of %d", self.stage_dir.name, trainer.epoch, trainer.max_epochs)
