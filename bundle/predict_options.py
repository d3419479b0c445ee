"""Options of a prediction beside the network's outputs: uncertainty, an answer anyway, DICOM objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.command.files import file_sha256
from scripts.dicom.web import is_address
from scripts.inference.dicom_inputs import object_writer, one_series
from scripts.inference.pipeline import Inference
from transforms.reading import file_kind

__all__ = ["PredictOptions", "named", "opened"]


@dataclass(frozen=True)
class PredictOptions:
    """Options for one image; see `bundle.predictor.Predictor.predict`."""

    uncertainty: bool = False
    assess_anyway: bool = False
    dicom: str | Path | None = None
    anonymous: bool = False
    evidence_segments: bool = False

    def check(self, image: Any, slice: int | None) -> None:
        """Look whether DICOM objects can be written, before anything is computed.

        Raises:
            ValueError: when they are asked for and no object can refer to the image.
        """
        if self.dicom is None:
            for name in ("anonymous", "evidence_segments"):
                if getattr(self, name):
                    raise ValueError(f"{name} is for the objects that dicom asks for; give both")
            return
        if not isinstance(image, (str, Path)):
            raise ValueError("dicom asks for objects that refer to a DICOM series; give its folder, file or address")
        if not is_address(image) and file_kind(image) != "dicom":
            raise ValueError(f"file {image} is no DICOM, so no object can refer to it; leave out dicom for it")
        if slice is not None:
            raise ValueError("dicom asks for objects of a whole series; leave out slice, or dicom")

    def write(
        self,
        inference: Inference,
        options: Mapping[str, Any],
        foreground: Any,
        done: Mapping[Any, Any],
        called: str | None,
    ) -> list[Path]:
        """Write the DICOM objects, if they are asked for.

        Args:
            inference: the loaded bundle.
            options: of the inference, by config id.
            foreground: mask of the head that was given: file, array, or None.
            done: the finished item.
            called: see `opened`.

        Returns:
            the files.

        Raises:
            ValueError: when the series lacks what a reference needs.
        """
        if self.dicom is None:
            return []
        # The UIDs follow from all that decides about the result.
        if self.assess_anyway:
            options = {**options, "assess_anyway": True}
        if foreground is not None:
            options = {**options, "foreground": _sha256(foreground)}
        image = Path(done["pred"].meta["filename_or_obj"])
        with named(image, called):
            writer = object_writer(inference, options, self.anonymous, self.evidence_segments)
            return writer(image, done, Path(self.dicom))


@contextmanager
def opened(image: Any, series: str | None) -> Iterator[tuple[Any, str | None]]:
    """An image, and what it is called where that is not its path.

    Args:
        image: given as it is, unless it is the address of a study or series of a DICOMweb server, which is fetched.
        series: UID of the one series that is taken of a folder or study; it lies in a folder of its own as long as the
            block lasts.

    Raises:
        ValueError: when there is no such series.
    """
    if series is None and not is_address(image):
        yield image, None
        return
    if not isinstance(image, (str, Path)):
        raise ValueError("series chooses from a folder, a file or a study at an address; give one of them")
    with one_series(image, series) as one:
        yield one.folder, one.called


@contextmanager
def named(image: Any, called: str | None) -> Iterator[None]:
    """Errors of the block speak of what an image is called, not of the folder that it lies in for a while."""
    try:
        yield
    except ValueError as error:
        if called is None:
            raise
        raise ValueError(str(error).replace(str(image), called)) from error


def _sha256(foreground: str | Path | np.ndarray) -> str:
    if isinstance(foreground, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(foreground).tobytes()).hexdigest()
    return file_sha256(foreground)
