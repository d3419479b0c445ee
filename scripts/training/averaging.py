"""A moving average of the weights, which validation, selection and the next stage then use."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.optim.swa_utils import AveragedModel


def _warmed_up(decay: float) -> Any:
    """torch's ``multi_avg_fn`` with a decay that rises to its value, so that the first weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor) -> None:
        n = float(count)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1.0 + n) / (10.0 + n)))

    return update


class WeightAverage:
    """Exponential moving average of a network's parameters, over steps; or, without a decay, the network itself.

    Buffers are copied. Weights that do not change, such as frozen ones, stay the same to the bit.

    Args:
        network: the trained one.
        decay: share of the average that a step keeps, in (0, 1), e.g. 0.999 (the mean of about the last 1000 steps). In
            the first steps it is ``(1 + n) / (10 + n)``. None: no average.

    Raises:
        ValueError: when decay is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float | None = None):
        if decay is not None and not 0 < decay < 1:
            raise ValueError(f"ema_decay lies between 0 and 1, or is null for no average; got {decay}")
        self.network = network
        self.averaged = None if decay is None else AveragedModel(network, multi_avg_fn=_warmed_up(decay))

    @property
    def selected(self) -> Any:
        """The network that is validated and kept: the average if there is one."""
        return self.network if self.averaged is None else self.averaged.module

    def attach(self, engine: Engine) -> None:
        """Follow a trainer: one update after each step."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)

    def restart(self) -> None:
        """Begin again at the network's present weights."""
        if self.averaged is not None:
            self.averaged.n_averaged.zero_()
            self.averaged.update_parameters(self.network)

    def update(self) -> None:
        """Take the network's present weights into the average."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    def state_dict(self) -> dict[str, Any]:
        """The average; empty if there is none."""
        return {} if self.averaged is None else dict(self.averaged.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up an average.

        Raises:
            ValueError: when the state is of a run with an average and this one has none, or the other way round.
        """
        if bool(state) != (self.averaged is not None):
            kept, current = ("an average", "none") if state else ("no average", "one")
            raise ValueError(f"the checkpoint has {kept} of the weights, this run {current}: ema_decay differs")
        if self.averaged is not None:
            self.averaged.load_state_dict(state)
