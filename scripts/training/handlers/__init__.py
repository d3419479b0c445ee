"""Ignite handlers of training and validation."""

from scripts.training.handlers.control import EpochSeed, FiniteLoss, GradientClip, InputCheck, SameGradients
from scripts.training.handlers.monitoring import (
    StageProgress,
    StageWriter,
    TrainingScalars,
    adapt_tracking,
    check_tracking,
    plain_values,
)
from scripts.training.handlers.validation import (
    KEY_METRICS,
    ValidationImages,
    ValidationMetrics,
    ValidationScalars,
    describe,
    evidence_strength,
)

__all__ = [
    "KEY_METRICS",
    "EpochSeed",
    "FiniteLoss",
    "GradientClip",
    "InputCheck",
    "SameGradients",
    "StageProgress",
    "StageWriter",
    "TrainingScalars",
    "ValidationImages",
    "ValidationMetrics",
    "ValidationScalars",
    "adapt_tracking",
    "check_tracking",
    "describe",
    "evidence_strength",
    "plain_values",
]
