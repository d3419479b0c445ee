"""The run folder: its files, its weights, where they come from, and the processes that write them.

May import `scripts.command`, `scripts.data` and `scripts.networks`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checkpoint_files": ["load_weights"],
        "folder": ["load_run", "read_datalist"],
    },
)
