"""Handlers that act on training: seeds, clipping, and a check that processes agree on their gradients."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from scripts.data.preprocessing import check_network_input
from scripts.data.samplers import DrawnItems, MixedBatchSampler
from scripts.runs import parallel

MOST_SKIPPED = 40  # in turn; from its first scale of 65536 a scaler reaches 1 in 16 steps


class EpochSeed:
    """Makes every epoch's randomness a function of seed and epoch alone, so that a resumed run equals an unbroken one.

    Where an epoch is longer than its loader, the passes after the first are other draws than the first.

    Args:
        seed: of the run.
        items: whose augmentation is set to the epoch.
        sampler: set to the epoch.
    """

    def __init__(self, seed: int, items: DrawnItems | None = None, sampler: MixedBatchSampler | None = None):
        self.seed, self.items, self.sampler = seed, items, sampler
        self.passes, self.begun = 0, 0

    def attach(self, engine: Engine) -> None:
        """Run at the start of every epoch, before its first batch is drawn, and when the loader begins again in it."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, self.next_pass)

    def __call__(self, engine: Any) -> None:
        """Seed all generators; the processes' dropout differs, their order of items does not."""
        epoch = engine.state.epoch
        entropy = (self.seed, epoch, parallel.rank()) if parallel.rank() else (self.seed, epoch)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.passes, self.begun = 0, engine.state.iteration
        self._set_epoch(epoch)

    def next_pass(self, engine: Any) -> None:
        """Set items and sampler to a number that no epoch has; not where the loader begins with the epoch."""
        if engine.state.iteration > self.begun:
            self.passes += 1
            self._set_epoch(engine.state.epoch + self.passes * 10**6)

    def _set_epoch(self, epoch: int) -> None:
        for part in (self.items, self.sampler):
            if part is not None:
                part.set_epoch(epoch)


class InputCheck:
    """Refuses batches that did not come through the pipeline, see `scripts.data.preprocessing.check_network_input`.

    Args:
        every_batch: check all; otherwise the first one of each run of the engine.
    """

    def __init__(self, every_batch: bool = False):
        self.every_batch, self.open = every_batch, True

    def attach(self, engine: Engine) -> None:
        """Look at batches as the loader gives them."""
        engine.add_event_handler(Events.STARTED, self.begin)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self)

    def begin(self, engine: Any) -> None:
        """Look at the next batch."""
        self.open = True

    def __call__(self, engine: Any) -> None:
        """Check.

        Raises:
            ValueError: when an item is no network input; names it and what is wrong.
        """
        if self.open or self.every_batch:
            self.open = False
            batch = engine.state.batch
            names = batch.get("name") or getattr(batch["image"], "meta", {}).get("filename_or_obj")
            check_network_input(batch["image"], batch["foreground"], [names] if isinstance(names, str) else names)


class FiniteLoss:
    """Stops a training whose loss is no number: every step after it would train nothing, or ruin the weights.

    Args:
        loss: whose ``parts`` are named.
        optimizer: whose groups carry a "name".
    """

    def __init__(self, loss: Any, optimizer: torch.optim.Optimizer):
        self.loss, self.optimizer = loss, optimizer

    def attach(self, engine: Engine) -> None:
        """Look at every loss, before its backward pass."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Check.

        Raises:
            ValueError: when the loss is not finite; names the step, the part and the learning rates.
        """
        value = float(engine.state.output["loss"].detach())
        if np.isfinite(value):
            return
        parts = {name: float(part) for name, part in self.loss.parts.items()}
        broken = [f"{name} {part}" for name, part in parts.items() if not np.isfinite(part)]
        whole = [f"{name} {part:.4g}" for name, part in parts.items() if np.isfinite(part)]
        said = f"{' and '.join(broken) or f'the weighted sum is {value}'}" + (f" ({', '.join(whole)})" if whole else "")
        names = engine.state.batch.get("name") if isinstance(engine.state.batch, Mapping) else None
        cases = f"; its cases: {', '.join(map(str, names[:8]))}" if names else ""
        raise ValueError(
            f"the loss is not finite at {_where(engine)}: {said}, learning rate {_rates(self.optimizer)}; the training "
            f"was stopped, lower the learning rate or look at the loss weights and the data{cases}"
        )


def _where(engine: Any) -> str:
    state = engine.state
    return f"step {state.iteration} (epoch {state.epoch} of {state.max_epochs})"


def _rates(optimizer: torch.optim.Optimizer) -> str:
    rates = {group.get("name", str(i)): group["lr"] for i, group in enumerate(optimizer.param_groups)}
    return ", ".join(f"{rate:.3g} ({name})" for name, rate in rates.items())


class AfterBackward:
    """A handler that looks at the gradients of each step."""

    def attach(self, engine: Engine) -> None:
        """Run between the backward pass and the optimizer's step."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Look."""
        raise NotImplementedError


class GradientClip(AfterBackward):
    """Clips the total norm of the gradients after each backward pass and keeps the norm in ``engine.state``.

    With scaled gradients (float16) they are brought back to scale first; a step whose norm is not finite is left out by
    the scaler, which lowers its scale: a few such steps belong to it, `MOST_SKIPPED` in turn mean that nothing is
    trained any more.

    Args:
        parameters: the trained parameters.
        max_norm: upper bound; gradients above are scaled down.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], max_norm: float):
        self.parameters, self.max_norm, self.skipped = list(parameters), max_norm, 0

    def __call__(self, engine: Any) -> None:
        """Clip.

        Raises:
            ValueError: when the gradients are not finite, where no scaler leaves the step out, or too often in turn.
        """
        scaled = getattr(engine, "scaler", None) is not None
        if scaled:
            engine.scaler.unscale_(engine.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        engine.state.gradient_norm = norm.detach()
        self.skipped = 0 if bool(torch.isfinite(norm)) else self.skipped + 1
        if self.skipped > (MOST_SKIPPED if scaled else 0):
            times = f" for {self.skipped} steps in turn" if scaled else ""
            raise ValueError(
                f"the gradients are not finite at {_where(engine)}{times}, with a finite loss of "
                f"{float(engine.state.output['loss']):.4g}, learning rate {_rates(engine.optimizer)}; the training was "
                "stopped, lower the learning rate or gradient_clip, or train with precision float32"
            )


class SameGradients(AfterBackward):
    """Compares the gradients of the processes in the first step of every epoch.

    Calling a method of the module under DistributedDataParallel, in place of the wrapper, trains each process on its
    own items without a word of warning. Nothing to do for a single process.

    Args:
        parameters: the trained parameters.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter]):
        self.parameters = list(parameters)

    def __call__(self, engine: Any) -> None:
        """Compare.

        Raises:
            RuntimeError: when they differ.
        """
        if parallel.world() == 1 or (engine.state.iteration - 1) % engine.state.epoch_length:
            return
        sums = [[float(p.grad.sum()), float(p.grad.abs().sum())] for p in self.parameters if p.grad is not None]
        local = np.asarray(sums, dtype=np.float64).reshape(-1, 2).sum(axis=0)
        every = np.asarray(parallel.gathered([tuple(local)]))
        if not np.allclose(every, every[0], rtol=1e-5, atol=1e-7):
            raise RuntimeError(
                f"the gradients of {parallel.world()} processes differ (sums {every[:, 0].tolist()}): call the wrapped "
                "module itself, not a method of the module under it, and freeze before wrapping"
            )
