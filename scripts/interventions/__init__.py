"""Interventions on pictures: a tumor taken out, moved, scaled or faded, each with its control without a tumor.

An intervention is (image, mask, foreground, rng) -> `Outcome`: the changed picture, what was changed and what the
honest answer is. Any number of channels, 2D and 3D. Imports nothing of ours."""

from __future__ import annotations

from scripts.interventions.blend import BLENDS, blend
from scripts.interventions.infills import HELD_OUT_INFILLS, INFILLS, TRAINING_INFILLS
from scripts.interventions.insertion import HELD_OUT_BLENDS, TRAINING_BLENDS, Donor
from scripts.interventions.interventions import Outcome, fade, remove, scale, swap, translate, transplant
from scripts.interventions.likeness import Look, Looks, Turn
from scripts.interventions.regions import NoRoom, grow, inner

__all__ = [
    "BLENDS",
    "HELD_OUT_BLENDS",
    "HELD_OUT_INFILLS",
    "INFILLS",
    "TRAINING_BLENDS",
    "TRAINING_INFILLS",
    "Donor",
    "Look",
    "Looks",
    "NoRoom",
    "Outcome",
    "Turn",
    "blend",
    "fade",
    "grow",
    "inner",
    "remove",
    "scale",
    "swap",
    "translate",
    "transplant",
]
