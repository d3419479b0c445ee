"""The certificate: whether a verdict, a mask and a map follow the tumor, measured by interventions with controls.

Of a run of ours or of anybody's model. Imports what evaluates, never what reports.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "certify": ["certify_model", "certify_run"],
        "models": ["ExternalModel"],
    },
)
