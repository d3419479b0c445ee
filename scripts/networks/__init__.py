"""Networks: MONAI's DynUNet with foreground-aware normalization and an evidence head; classifiers to compare with.

Imports nothing of ours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "classifiers": ["ClassifierEnsemble", "ImageClassifier"],
        "multitask_dynunet": ["MultiTaskDynUNet"],
        "patch_statistics": ["PatchStatisticsDynUNet"],
        "widening": ["widened"],
    },
)
