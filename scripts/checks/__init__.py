"""Checks of a datalist before training: verification against rules, and the audit for shortcuts.

What it may import stands in docs/architecture.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "audit": ["write_audit"],
        "verification": ["Rule", "Verifier"],
    },
)
