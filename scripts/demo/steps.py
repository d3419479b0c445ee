"""One line of progress over the whole of a long job: step i of n, minutes passed, minutes left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

__all__ = ["Steps"]


class Steps:
    """Steps of a job, each announced by a line with the time passed and an estimate of what is left.

    Args:
        shares: title of each step, in order, and its usual share of the time, of any scale.
        file: where the lines go; standard error by default.
        clock: seconds, increasing.

    >>> ticks = iter([0.0, 0.0, 60.0])
    >>> steps = Steps({"draw": 1, "train": 3}, sys.stdout, lambda: next(ticks))
    >>> with steps("draw"): pass
    step 1 of 2: draw
    >>> with steps("train"): pass
    step 2 of 2: train (1.0 min passed, about 3 min left)
    """

    def __init__(
        self, shares: Mapping[str, float], file: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self.shares, self.file, self.clock = dict(shares), file, clock
        self.start, self.done = clock(), 0.0

    @contextmanager
    def __call__(self, title: str, note: str = "") -> Iterator[None]:
        """Announce a step; ``note`` is a further line about it.

        Raises:
            ValueError: when there is no such step.
        """
        if title not in self.shares:
            raise ValueError(f"no step {title!r}; there are {', '.join(self.shares)}")
        passed = self.clock() - self.start
        line = f"step {list(self.shares).index(title) + 1} of {len(self.shares)}: {title}"
        if self.done:
            left = passed / self.done * (sum(self.shares.values()) - self.done)
            line += f" ({passed / 60:.1f} min passed, about {left / 60:.0f} min left)"
        print("\n".join([line, *([f"  {note}"] if note else [])]), file=self.file or sys.stderr, flush=True)
        yield
        self.done += self.shares[title]
