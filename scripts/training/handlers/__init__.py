"""Ignite handlers of training and validation; configs name them here, our own code imports the modules below."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "control": ["EpochSeed", "FiniteLoss", "GradientClip", "InputCheck", "SameGradients"],
        "monitoring": [
            "StageProgress",
            "StageWriter",
            "TrainingScalars",
            "adapt_tracking",
            "check_tracking",
            "plain_values",
        ],
        "validation": [
            "KEY_METRICS",
            "ValidationImages",
            "ValidationMetrics",
            "ValidationScalars",
            "describe",
            "evidence_strength",
        ],
    },
)
