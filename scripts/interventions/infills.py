"""The infills by name, and which of them no training may use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scripts.interventions.infill import Hole, membrane, mirror, navier_stokes, patch, poisson, telea
from scripts.interventions.learned import learned
from scripts.interventions.regions import Image

Infill = Callable[[Hole, np.random.Generator], Image]
INFILLS: dict[str, Infill] = {
    "membrane": membrane,
    "patch": patch,
    "mirror": mirror,
    "poisson": poisson,
    "telea": telea,
    "navier_stokes": navier_stokes,
    "learned": learned,
}
# Training draws from the first; the certificate rests on the first two of the others, none of which a training may use.
TRAINING_INFILLS = ("membrane", "patch", "mirror")
HELD_OUT_INFILLS = ("poisson", "learned", "telea", "navier_stokes")


def infill(how: str, hole: Hole, rng: np.random.Generator) -> Image:
    """The picture with the hole filled, (C, H, W[, D]).

    Raises:
        ValueError: when ``how`` is unknown or needs what is not installed.
        NoRoom: when this head has no place to take tissue from.
    """
    if how not in INFILLS:
        raise ValueError(f"an infill is one of {', '.join(INFILLS)}, got {how!r}")
    return hole.placed(INFILLS[how](hole, rng))
