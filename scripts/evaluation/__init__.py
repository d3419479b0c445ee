"""The jobs that measure a trained run: evaluation, localization, faithfulness, robustness, galleries.

May import everything up to `scripts.inference`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "evaluation": ["CaseResults", "write_evaluation"],
        "explanation_plan": ["make_plan", "maps_of"],
        "explanations": ["write_explanations"],
    },
)
