"""The jobs that measure a trained run: evaluation, localization, faithfulness, robustness, galleries.

What it may import stands in docs/architecture.md.
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
