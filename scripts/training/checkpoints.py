"""A stage from its first validation to its last epoch: selection of weights and exact continuation."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import nn

from scripts.command import yaml_text
from scripts.measures.metrics import (
    fit_temperature,
    lifted,
    negative_log_likelihood,
    tumor_probability,
)
from scripts.measures.thresholds import choose_threshold
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.widening import widened
from scripts.runs import parallel
from scripts.runs.checkpoint_files import (
    CHECKPOINT,
    PREVIOUS,
    WEIGHTS,
    load_weights,
    load_whole,
    read_checkpoint,
    save_atomic,
    save_checkpoint,
)
from scripts.runs.folder import read_manifest
from scripts.training.averaging import WeightAverage
from scripts.training.handlers.monitoring import StageWriter
from scripts.training.handlers.validation import ValidationMetrics, describe

__all__ = [
    "CHECKPOINT",
    "PREVIOUS",
    "WEIGHTS",
    "StageCheckpoint",
    "initialized",
    "load_weights",
    "read_checkpoint",
    "save_atomic",
    "save_checkpoint",
    "warm_start",
]

logger = logging.getLogger(__name__)

# Of the parameters of a network that starts from another's: in tensors that take something, and what they take.
LEAST_COVERED, LEAST_GIVEN = 0.5, 0.1


def initialized(
    network: nn.Module,
    initial_weights: str | Path | None = None,
    similar_weights: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network with the weights that a stage starts from, on its device.

    Args:
        network: as it was built.
        initial_weights: of the same network, all of which are taken; None: none.
        similar_weights: of a similar design, of which all that fits is taken first, see `warm_start`; None: none.
        device: to compute on.
    """
    return load_weights(warm_start(network, similar_weights), initial_weights).to(device)


def warm_start(network: nn.Module, path: str | Path | None) -> nn.Module:
    """Take from weights of a similar design what fits, by name and shape; None leaves the network as it is.

    Weights of a network with fewer features are taken too, see `scripts.networks.widening.widened`. What does not fit
    stays as it was initialized and is named in the log.

    Raises:
        FileNotFoundError: when the file is absent.
        ValueError: when it is no state dict, when less than half of the network's parameters are in tensors that take
            something of it, or when it has less than a tenth of their number to give.
    """
    if path is None:
        return network
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path} to start from")
    state, current = load_whole(path), network.state_dict()
    if not isinstance(state, dict):
        raise ValueError(f"weights file {path} holds a {type(state).__name__}, expected a state dict")
    fitting = widened(network, state)
    number = sum(v.numel() for v in current.values())
    covered = sum(v.numel() for v in fitting.values()) / number
    share = sum(state[name].numel() for name in fitting) / number
    if covered < LEAST_COVERED or share < LEAST_GIVEN:
        raise ValueError(
            f"weights file {path} has {share:.0%} of the parameters of this {type(network).__name__}, in tensors that "
            f"hold {covered:.0%} of them; start without it"
        )
    network.load_state_dict(fitting, strict=False)
    wider = sorted(k for k, v in fitting.items() if v.shape != state[k].shape)
    logger.info(
        "warm start from %s, which has %.0f %% of the parameters, but for %s%s",
        path,
        100 * share,
        sorted(current.keys() - fitting.keys()) or "nothing",
        f"; widened: {', '.join(wider)}" if wider else "",
    )
    return network


class StageCheckpoint:
    """Runs a stage, keeps its best weights and lets an interrupted one continue where it was.

    After every validation the key metric is compared; the best weights, with threshold and temperature fitted on that
    validation, go to ``model.pt``. The first validation, before any training, is a candidate: a stage never hands over
    less than it was given. Before the first and after every epoch the whole state goes to ``checkpoint.pt``, the one
    before it to ``checkpoint_previous.pt``; running the same stage again continues after the last whole epoch, and a
    finished stage is left as it is. Of several processes the first writes.

    Args:
        stage_dir: folder of the stage.
        network: the inner network.
        optimizer, scheduler: of the trainer.
        metrics: of the evaluator.
        key_metric: name of the metric that selects, higher is better.
        writer: TensorBoard writer of the stage.
        average: moving average of the weights, which is then what is validated and kept; None: the network itself.
        early_stopping: epochs without a better validation after which the stage ends; None: never.

    Raises:
        ValueError: when early_stopping is less than 1.
    """

    def __init__(
        self,
        stage_dir: str | Path,
        network: MultiTaskDynUNet,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        metrics: ValidationMetrics,
        key_metric: str,
        writer: StageWriter,
        average: WeightAverage | None = None,
        early_stopping: int | None = None,
    ):
        if early_stopping is not None and early_stopping < 1:
            raise ValueError(f"early_stopping is a number of epochs, 1 or more, or null; got {early_stopping}")
        self.stage_dir = Path(stage_dir)
        self.network, self.optimizer, self.scheduler = network, optimizer, scheduler
        self.metrics, self.key_metric, self.writer = metrics, key_metric, writer
        self.average = WeightAverage(network) if average is None else average
        self.early_stopping = early_stopping
        self.best_metric, self.best_epoch = float("-inf"), -1
        self.calibration, self.mask_thresholds = "none", "none"
        self.trainer: Any = None
        self.evaluator: Any = None
        self._state: dict[str, Any] | None = None

    def attach(self, trainer: SupervisedTrainer, evaluator: SupervisedEvaluator) -> None:
        """Follow both engines; call once, after all other handlers are attached."""
        self.trainer, self.evaluator = trainer, evaluator
        self.average.attach(trainer)
        evaluator.add_event_handler(Events.STARTED, self._mark)
        evaluator.add_event_handler(Events.COMPLETED, self.select)
        # Last of the handlers at the start: MONAI Label puts a loader of weights first, which must not win over these.
        trainer.add_event_handler(Events.STARTED, self.begin)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def run(self) -> None:
        """Train from the start or from the checkpoint, to the end."""
        if self.trainer is None:
            raise RuntimeError("attach the checkpoint to trainer and evaluator before running")
        self._state = read_checkpoint(self.stage_dir)
        if self._state is None and "finished" in (manifest := read_manifest(self.stage_dir)):
            # Its weights are kept without a checkpoint; training again would put others in their place.
            self.best_metric, self.best_epoch = manifest["best_metric"], manifest["best_epoch"]
            self.calibration = manifest.get("calibration", self.calibration)
            self.mask_thresholds = manifest.get("mask_thresholds", self.mask_thresholds)
            logger.info("%s: finished before; weights %s", self.stage_dir.name, self.stage_dir / WEIGHTS)
            return
        self.writer.continue_after(-1 if self._state is None else self._state["epoch"])
        if self._state is not None:
            self.resume(self._state)
        if self._over():
            self.restore()
        else:
            self.trainer.run()
        parallel.wait()  # the next stage reads what the first process wrote
        state = self.trainer.state
        early = "" if state.epoch == state.max_epochs else f", stopped early after {state.epoch} of {state.max_epochs}"
        logger.info(
            "%s: best %s %.4f at epoch %d%s; weights %s, curves: tensorboard --logdir %s",
            self.stage_dir.name, self.key_metric, self.best_metric, self.best_epoch, early, self.stage_dir / WEIGHTS,
            self.stage_dir.parent,
        )  # fmt: skip

    def begin(self, engine: Any) -> None:
        """Take up the checkpoint, or validate what the stage was given."""
        if self._state is not None:
            self.restore()
            return
        self.average.restart()
        self.evaluator.run(1)
        config = self.stage_dir / "config.yaml"
        if config.is_file():
            values = yaml_text.load(config.read_text(encoding="utf-8"))
            self.writer.hyperparameters(values, [f"best/{name}" for name in self.evaluator.state.metrics])
        self.save(engine)

    def _over(self) -> bool:
        state = self.trainer.state
        waited = state.epoch - self.best_epoch
        stopped = self.early_stopping is not None and self.best_epoch >= 0 and waited >= self.early_stopping
        return state.epoch >= state.max_epochs or stopped

    def _mark(self, engine: Any) -> None:
        engine.state.trainer_epoch = self.trainer.state.epoch

    def select(self, engine: Engine) -> None:
        """Keep the weights if they are the best so far, and end a stage that stands still."""
        epoch, metrics = self.trainer.state.epoch, engine.state.metrics
        value = metrics[self.key_metric]
        if value != value:
            raise ValueError(
                f"validation has no case that defines {self.key_metric!r}: add cases with "
                f"{'a tumor mask' if self.key_metric != 'balanced_accuracy' else 'a diagnosis'} to the validation part"
            )
        logger.debug("epoch %d: %s", epoch, describe(metrics))
        if value > self.best_metric:
            self.best_metric, self.best_epoch = value, epoch
            self.trainer.state.best_metric, self.trainer.state.best_metric_epoch = value, epoch
            for name, known in metrics.items():
                if math.isfinite(known):
                    self.writer.add_scalar(f"best/{name}", known, epoch)
            self.calibrate()
            self.choose_mask_thresholds()
            if parallel.first():
                save_atomic(self.average.selected.state_dict(), self.stage_dir / WEIGHTS)
        elif self._over() and epoch < self.trainer.state.max_epochs:
            self.trainer.terminate()

    def calibrate(self) -> None:
        """Fit temperature and threshold on the last validation and store them in the network's buffers.

        Where the validation has changed items, the threshold is chosen on them too: one that suits the collections
        alone would call a tumor where only its surroundings are left.

        Without cases of both kinds, with and without a tumor, there is nothing to fit: what the weights came with stays
        and is marked stale.
        """
        logits, diagnosis = self.metrics.logits, self.metrics.diagnosis
        tumor = diagnosis > 0
        if not 0 < tumor.sum() < len(tumor):
            self.calibration = (
                f"stale: the validation has {int(tumor.sum())} cases with and {int((~tumor).sum())} without a tumor, "
                "threshold and temperature are those that the weights came with"
            )
            return
        constant = self.network.constant() if hasattr(self.network, "constant") else None
        fixed = None if constant is None else constant.cpu().double().numpy()
        temperature = fit_temperature(logits, diagnosis, fixed)
        logits_of_threshold, kinds = self.metrics.threshold_logits, self.metrics.threshold_diagnosis
        at_zero = 0.0 if fixed is None else float(tumor_probability(fixed[None])[0])
        probability = tumor_probability(lifted(logits_of_threshold, temperature, fixed), temperature)
        threshold = choose_threshold(probability, kinds > 0, at_zero)
        for network in {id(n): n for n in (self.network, self.average.selected)}.values():
            network.temperature.fill_(temperature)
            network.threshold.fill_(threshold)
            if constant is not None:
                network.fixed_part.copy_(constant)
        before, after = (negative_log_likelihood(lifted(logits, t, fixed), diagnosis, t) for t in (1.0, temperature))
        self.calibration = (
            f"fitted on {len(diagnosis)} validation cases, whose negative log-likelihood is {after:.3f} "
            f"({before:.3f} without temperature)"
        )
        if temperature == 1.0:
            self.calibration += "; temperature 1, as no other makes them more likely, or all are classified right"

    def choose_mask_thresholds(self) -> None:
        """Choose the threshold of each region's mask on the last validation and store them in the network's buffer.

        Where nothing was segmented, what the weights came with stays.
        """
        chosen = self.metrics.mask_thresholds()
        if chosen is None or not hasattr(self.network, "mask_threshold"):
            self.mask_thresholds = "none: nothing was segmented, the weights keep theirs"
            return
        for network in {id(n): n for n in (self.network, self.average.selected)}.values():
            network.mask_threshold.copy_(torch.tensor([value for value, _ in chosen]))
        words = (f"{name} {why}" for name, (_, why) in zip(self.metrics.regions, chosen, strict=True))
        self.mask_thresholds = "; ".join(words)

    def save(self, engine: Engine) -> None:
        """Write the state after an epoch, all that was logged before it."""
        if not parallel.first():
            return
        self.writer.flush()
        scaler = getattr(self.trainer, "scaler", None)
        save_checkpoint(
            {
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": {} if scaler is None else scaler.state_dict(),
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "max_epochs": engine.state.max_epochs,
                "best_metric": self.best_metric,
                "best_epoch": self.best_epoch,
                "calibration": self.calibration,
                "mask_thresholds": self.mask_thresholds,
            },
            self.stage_dir,
        )

    def resume(self, state: dict[str, Any]) -> None:
        """Set the trainer to where a checkpoint is.

        Raises:
            ValueError: when it belongs to a run with another number of epochs, or the processes found different ones.
        """
        if state["max_epochs"] != self.trainer.state.max_epochs:
            raise ValueError(
                f"checkpoint {self.stage_dir / CHECKPOINT} is of a run of {state['max_epochs']} epochs, this one has "
                f"{self.trainer.state.max_epochs}; choose another run_dir or delete it"
            )
        epochs = parallel.gathered([state["epoch"]])
        if len(set(epochs)) > 1:
            raise ValueError(f"the processes find checkpoints of different epochs, {epochs}: is run_dir shared?")
        self.best_metric, self.best_epoch = state["best_metric"], state["best_epoch"]
        self.calibration = state.get("calibration", "none")
        self.mask_thresholds = state.get("mask_thresholds", "none")
        trainer = self.trainer.state
        trainer.epoch, trainer.iteration = state["epoch"], state["iteration"]
        trainer.best_metric, trainer.best_metric_epoch = self.best_metric, self.best_epoch
        logger.info("%s: continuing after epoch %d of %d", self.stage_dir.name, trainer.epoch, trainer.max_epochs)

    def restore(self) -> None:
        """Load weights, optimizer, schedule and loss scale of the checkpoint that was read."""
        state = self._state
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state.get("average", {}))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if state.get("scaler") and getattr(self.trainer, "scaler", None) is not None:
            self.trainer.scaler.load_state_dict(state["scaler"])
