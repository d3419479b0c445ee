"""A predictor without a network: what it answers follows from the image's name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.inference.result_table import columns

CLASSES = ["no_tumor", "tumor"]


@dataclass
class Stub:
    """Refuses ``bad``, fails at ``flaky`` as often as said and at ``broken`` always, and dies at ``deadly``.

    Attributes:
        flaky: how often an image of that name fails before it is done.
        seconds: that an image takes.
        seen: images that were predicted, in order.
    """

    flaky: int = 1
    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=lambda: {"version": "stub"})
    columns: list[str] = field(default_factory=lambda: columns(CLASSES))

    def __call__(self) -> Stub:
        """As the recipe of itself."""
        return self

    def kept(self, image: Path, name: str) -> None:
        """Nothing is kept."""

    def lost(self, image: Path, name: str, reason: str) -> dict[str, Any]:
        """A row with the reason."""
        known = {"image": str(image), "name": name, "status": "failed", "error": reason}
        return {**dict.fromkeys(self.columns), **known}

    def stream(self, todo: Iterable[tuple[Path, str]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """One row an image."""
        for image, name in todo:
            time.sleep(self.seconds)
            self.seen.append(image.name)
            row = {**dict.fromkeys(columns(CLASSES)), "image": str(image), "name": name, "status": "done", "flags": ""}
            if "deadly" in image.name:
                os.kill(os.getpid(), signal.SIGKILL)
            if "stop" in image.name:
                raise KeyboardInterrupt
            if "bad" in image.name:
                row |= {"status": "refused", "error": "no image"}
            if "broken" in image.name or ("flaky" in image.name and self.seen.count(image.name) <= self.flaky):
                row |= {"status": "failed", "error": "no memory"}
            yield name, {**row, "tumor_probability": len(image.name) / 100}
