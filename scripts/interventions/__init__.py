"""Interventions on pictures: a tumor taken out, moved, scaled or faded, each with its control without a tumor.

An intervention is (image, mask, foreground, rng) -> `Outcome`: the changed picture, what was changed and what the
honest answer is. Any number of channels, 2D and 3D. Imports nothing of ours."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "blend": ["BLENDS"],
        "infills": ["HELD_OUT_INFILLS", "INFILLS", "TRAINING_INFILLS"],
        "insertion": ["HELD_OUT_BLENDS", "TRAINING_BLENDS", "Donor"],
        "interventions": ["Outcome", "fade", "remove", "scale", "swap", "translate", "transplant"],
        "likeness": ["Look", "Looks", "Turn"],
        "regions": ["NoRoom", "grow", "inner"],
    },
)
