"""Command lines: arguments in the same words, start-up, config files and overrides, errors in one sentence.

Imports nothing of ours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "config_files": ["read_config"],
        "devices": ["check_device", "chosen_device"],
        "verbs": ["Outcome", "Verb"],
        "workflows": ["run_config"],
    },
)
