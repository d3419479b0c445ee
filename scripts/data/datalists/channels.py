"""Single channels of files that hold several (Task01): written as volumes of their own, with the masks beside them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.datalists.naming import stem_of
from scripts.data.datalists.slices import Case
from transforms.reading import file_kind, read_volume


def planned(case: Case, folder: Path, target: Path, names: Sequence[str]) -> Case:
    """The case as `write_channels` will leave it below `target`: a file a channel, `BRATS_001_FLAIR.nii.gz`."""
    source = target / case.images[0].relative_to(folder)
    images = [source.with_name(f"{stem_of(source)}_{name}.nii.gz") for name in names]
    label, foreground = (path and target / path.relative_to(folder) for path in (case.label, case.foreground))
    return replace(case, images=images, label=label, foreground=foreground, stacked=False)


def write_channels(case: Case, written: Case, numbers: Sequence[int], total: int) -> None:
    """Write the channels of these numbers, values and grid as they are, and copy the masks.

    Raises:
        ValueError: when the file cannot be read or does not hold `total` channels.
    """
    source = case.images[0]
    data, affine = read_volume(source, file_kind(source))
    if data.ndim != 4 or data.shape[3] != total:
        raise ValueError(f"{source.name} has shape {data.shape}, expected 4 dimensions, the last of {total} channels")
    for number, path in zip(numbers, written.images, strict=True):
        channel = data[..., number]
        whole = np.array_equal(channel, np.rint(channel)) and channel.min() >= -32768 and channel.max() <= 32767
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(channel.astype(np.int16 if whole else np.float32), affine), path)
    for mask, copy in ((case.label, written.label), (case.foreground, written.foreground)):
        if mask is not None and copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(mask, copy)
