"""From a file to an answer: inferers, postprocessing, volumes, scope, uncertainty, prediction of folders.

What it may import stands in docs/architecture.md; nothing of `scripts.training`: answers need no engine.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "inferers": ["MultiTaskInferer"],
        "pipeline": ["Inference"],
        "scope": ["Scope"],
        "scans": ["PrepareScand", "Scan"],
    },
)
