"""The parts of a network that are trained or frozen together."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

PARTS = ("encoder", "decoder", "head")


class InParts:
    """A network whose `parts` can be asked for by name."""

    def parts(self) -> dict[str, list[nn.Module]]:
        """Top-level modules by part, each of `PARTS`; a part that there is not is an empty list."""
        raise NotImplementedError

    @torch.jit.unused
    def modules_of(self, part: str) -> list[nn.Module]:
        """Top-level modules of "encoder", "decoder" or "head".

        Raises:
            ValueError: when ``part`` is another word.
        """
        if part not in PARTS:
            raise ValueError(f"part is one of {', '.join(PARTS)}, got {part!r}")
        return self.parts()[part]

    @torch.jit.unused
    def parameters_of(self, part: str) -> Iterator[nn.Parameter]:
        """Parameters of "encoder", "decoder" or "head"."""
        for module in self.modules_of(part):
            yield from module.parameters()
