"""Networks: MONAI's DynUNet with foreground-aware normalization and an evidence head."""

from __future__ import annotations

from scripts.networks.multitask_dynunet import MultiTaskDynUNet

__all__ = ["MultiTaskDynUNet"]
