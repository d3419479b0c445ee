"""What a folder or address gives to predict: images by their paths, or series by their UIDs, fetched or nameless."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydicom.uid import RE_VALID_UID

from scripts.dicom.gathering import Gathered, fetched, gather_nameless, gather_series
from scripts.dicom.web import Server, is_address
from scripts.dicom.writing import ENDINGS, ObjectWriter, check_available, only_series
from scripts.inference.image_files import find_images
from scripts.inference.pipeline import Inference
from scripts.inference.result_names import result_stems

__all__ = ["Inputs", "inputs", "is_called", "object_writer", "one_series", "store_objects"]

logger = logging.getLogger(__name__)


@dataclass
class Inputs:
    """What is predicted.

    Attributes:
        images: files, or folders of DICOM files.
        stems: where the results of each go.
        failed: what is named in the table without being read, with the reasons.
        called: what images are called where it is not their path.
    """

    images: list[Path]
    stems: list[str]
    failed: list[tuple[Path, str]] = field(default_factory=list)
    called: dict[Path, str] = field(default_factory=dict)

    @property
    def listed(self) -> list[Path]:
        """All that the table will name."""
        return [*self.images, *(path for path, _ in self.failed)]


@contextmanager
def one_series(
    source: Path | str, series: str | None = None, out: Path | None = None, nameless: bool = False
) -> Iterator[Gathered]:
    """One DICOM series, fetched from a server or chosen from a folder, in a folder that lives as long as the block.

    Args:
        source: address of a study or series of a DICOMweb server; or a folder or file.
        series: its UID; None: the only one of the study.
        out: folder of results, which is left out.
        nameless: call its files by numbers.

    Raises:
        ValueError: when there is no such series, or the address is none.
        OSError: when the folder or the server cannot be read.
    """
    if series is not None and not re.fullmatch(RE_VALID_UID, series):
        raise ValueError(f"series is the UID of a series (as 1.2.840.113619.2.1), got {series!r}")
    if is_address(source):
        with fetched(str(source), series) as one:
            yield one
        return
    if series is None:
        raise ValueError(f"{source} is no address of a DICOMweb server; give the UID of the series that is taken of it")
    listing = find_images(Path(source), out)
    with TemporaryDirectory(prefix="series") as made:
        yield gather_series(listing.images, series, Path(made), nameless)


@contextmanager
def inputs(
    source: Path | str, out: Path, series: str | None = None, dicom: bool = False, nameless: bool = False
) -> Iterator[Inputs]:
    """Find what is to be predicted, as long as the block lasts.

    Args:
        source: folder or file; or the address of a study or series of a DICOMweb server.
        out: folder of the results, which is left out.
        series: UID of the one series that is taken.
        dicom: take nothing that no DICOM object can refer to.
        nameless: call nothing by a name of a file or folder.

    Raises:
        ValueError: when there is no image, no such series, or the address is none.
        OSError: when the folder or the server cannot be read.
    """
    if series is not None or is_address(source):
        with one_series(source, series, out, nameless) as one:
            yield _of([one])
        return
    listing = find_images(Path(source), out)
    if nameless:
        with TemporaryDirectory(prefix="series") as made:
            gathered, left = gather_nameless(listing.images, Path(made))
            failed = [(Path(called), reason) for called, reason in left]
            count = len(listing.images)
            failed += [(Path(f"input {count + k}"), "it cannot be opened") for k in range(1, len(listing.failed) + 1)]
            yield _of(gathered, failed)
        return
    for note in listing.notes():
        logger.info("%s", note)
    if dicom:
        listing.images, others = only_series(listing.images)
        listing.failed += others
    yield Inputs(listing.images, result_stems(listing.images, Path(source)), listing.failed)


def _of(gathered: Sequence[Gathered], failed: Sequence[tuple[Path, str]] = ()) -> Inputs:
    called = {one.folder: one.called for one in gathered}
    return Inputs([one.folder for one in gathered], [one.name for one in gathered], list(failed), called)


def is_called(image: str) -> bool:
    """Whether a table calls an image by an address or UID and not by its path."""
    return is_address(image) or re.fullmatch(RE_VALID_UID, image.removeprefix("series ")) is not None


def object_writer(
    inference: Inference, options: Mapping[str, Any], anonymous: bool = False, evidence_segments: bool = False
) -> ObjectWriter:
    """Writes the DICOM objects of a result; what is the same gets the same UIDs, whoever asked for it.

    Args:
        inference: the loaded bundle.
        options: of the inference, that were asked for, as plain values by config id.
        anonymous: leave out what the series says of the patient.
        evidence_segments: write the evidence as a Segmentation too.

    Raises:
        ValueError: when highdicom is not installed.
    """
    check_available()
    made_by = {**inference.identity(options), "options": dict(options)}
    return ObjectWriter(made_by, inference.metadata["intended_use"], anonymous, evidence_segments)


def store_objects(out: Path, rows: Sequence[Mapping[str, Any]], address: str) -> str:
    """Store the objects of all results at a DICOMweb server.

    Args:
        out: folder of the results.
        rows: of the table.
        address: of the server, or of a study or series there.

    Returns:
        how many, in words.
    """
    server = Server(address)
    files = [
        path for row in rows if not row["error"] for end in ENDINGS if (path := out / f"{row['name']}{end}").is_file()
    ]
    stored, there = server.store(files)
    return f"{stored} objects stored at {server.address}, {there} were there"
