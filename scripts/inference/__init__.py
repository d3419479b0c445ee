"""From a file to an answer: inferers, postprocessing, volumes, scope, uncertainty, prediction of folders.

May import what stands before it, of `scripts.training` the weights.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "inferers": ["MultiTaskInferer"],
        "pipeline": ["Inference"],
        "scope": ["Scope"],
        "studies": ["PrepareStudyd", "Study"],
    },
)
