"""Datalists: what is trained, validated and tested on; builders, checks, reading and writing.

Our own code imports from the modules that define; what is called as its module (`decathlon`, `clusters`) is taken
from there by everybody.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "clusters": ["cluster"],
        "dicom": ["dicom_series"],
        "fingerprints": ["fingerprint", "perceptual_hash"],
        "folders": ["image_folder"],
        "merging": ["merge_sources"],
        "schema": [
            "SPLITS",
            "absent_classes",
            "assert_no_overlap",
            "content_sha256",
            "merge",
            "read",
            "same_content",
            "summary",
            "validate",
            "write",
            "write_report",
        ],
        "near_duplicates": ["group_near_duplicates"],
        "slices": ["SliceRule"],
        "splits": ["assemble", "split_clusters"],
        "volumes": ["nifti_cases", "nifti_volumes"],
    },
)
