"""Results as standard DICOM objects: Segmentation, Parametric Map and Structured Report beside the source series.

The verb `archive` runs an archive to try them with. May import `transforms`, `scripts.command`, `scripts.phantoms`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "sources": ["Source"],
        "writing": ["write_objects"],
    },
)
