"""Networks: MONAI's DynUNet with foreground-aware normalization and an evidence head; classifiers to compare with."""

from __future__ import annotations

from scripts.networks.classifiers import ClassifierEnsemble, ImageClassifier
from scripts.networks.multitask_dynunet import MultiTaskDynUNet

__all__ = ["ClassifierEnsemble", "ImageClassifier", "MultiTaskDynUNet"]
