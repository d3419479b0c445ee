"""The series that a result is of: its headers, and where each of its frames lies in the result's array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from transforms.dicom import find_stacks, read_header
from transforms.dicom_elements import read_elements

__all__ = ["Source"]

# Slices of a series may be uneven by a tenth of their distance; more is refused when the series is read.
_MAX_OFF = 0.3
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# May be empty in an object, but must be there.
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "StudyID", "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer",
)  # fmt: skip
# All that is kept of a header: references and the place of the pixels. What else a file may hold is not looked at.
_PLACES = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "Rows",
    "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
    "SpacingBetweenSlices", "ImageType", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationSequence", "DimensionIndexSequence", "InstanceNumber", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
# And, where names are wanted, patient and study, which objects repeat.
_NAMES = (
    *_MAY_BE_EMPTY, "IssuerOfPatientID", "TypeOfPatientID", "PatientBirthTime", "OtherPatientNames", "EthnicGroup",
    "PatientComments", "PatientSpeciesDescription", "PatientIdentityRemoved", "DeidentificationMethod", "PatientAge",
    "PatientSize", "PatientWeight", "StudyDescription", "ClinicalTrialSponsorName", "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName", "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID", "ClinicalTrialTimePointID", "ClinicalTrialTimePointDescription",
)  # fmt: skip
# Of functional groups the sequences, of their items the elements.
_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}


@dataclass
class Source:
    """Headers of a series, without pixels.

    Attributes:
        datasets: one a file, in the order of their places; a single one of many frames for an enhanced object.
        affines: (F, 4, 4) from (column, row, 0) of each frame to RAS+ mm, in the order of the frames.
        rows, columns: of each frame.
    """

    datasets: list[Dataset]
    affines: np.ndarray
    rows: int
    columns: int

    @classmethod
    def read(cls, path: str | Path, anonymous: bool = False) -> Source:
        """Read the headers of a folder of one series, or of one file.

        Args:
            path: that was predicted.
            anonymous: keep nothing but references and geometry: no names, numbers, dates or texts of the patient.

        Raises:
            ValueError: when there is not one series, or it lacks what a reference to it needs. Names the file.
        """
        stacks = find_stacks(path)[0] if Path(path).is_dir() else [[read_header(path)]]
        if len(stacks) != 1:
            raise ValueError(f"folder {path} holds {len(stacks)} DICOM series, expected one")
        only = _PLACES if anonymous else (*_PLACES, *_NAMES)
        read = [(header, read_elements(header.path, only)) for header in stacks[0]]
        first = read[0][0]
        across = np.cross(first.directions[0, :3], first.directions[0, 3:])
        read.sort(key=lambda pair: float(pair[0].positions[0] @ across))
        for header, dataset in read:
            for key in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
                if not dataset.get(key):
                    raise ValueError(f"file {header.path} has no {key}, so no object can refer to it; export it again")
            if not dataset.get("FrameOfReferenceUID"):
                raise ValueError(
                    f"file {header.path} has no FrameOfReferenceUID, so nothing can be placed over it; export it again"
                )
        datasets = [_complete(dataset) for _, dataset in read]
        affines = np.concatenate([_affines(h.positions, h.directions, h.spacing) for h, _ in read])
        return cls(datasets, affines, first.rows, first.columns)

    def frames(self, array: np.ndarray, affine: np.ndarray) -> np.ndarray:
        """Put a result on the frames of the series.

        Args:
            array: (X, Y, Z) or (X, Y).
            affine: 4x4 to RAS+ mm; its axes may stand in any order and direction.

        Returns:
            (F, rows, columns), in the order of the frames.

        Raises:
            ValueError: when the grid is not that of the series.
        """
        volume = array if array.ndim == 3 else array[..., None]
        to_voxel = np.linalg.inv(affine) @ self.affines
        columns, rows = np.meshgrid(np.arange(self.columns), np.arange(self.rows))
        places = np.stack([columns, rows, 0 * rows, 1 + 0 * rows])
        exact = np.einsum("fij,jrc->firc", to_voxel[:, :3], places)
        index = np.rint(exact).astype(int)
        size = np.array(volume.shape)[:, None, None]
        off = float(np.abs(exact - index).max())
        if off > _MAX_OFF or (index < 0).any() or (index >= size).any() or index[:, 0].size != volume.size:
            raise ValueError(
                f"the result's grid {volume.shape} is not that of its {len(self.affines)} frames of {self.rows} x "
                f"{self.columns} (off by up to {off:.2g} voxels)"
            )
        if len(np.unique(np.ravel_multi_index(tuple(np.moveaxis(index, 1, 0)), volume.shape))) != volume.size:
            raise ValueError("several frames of the series lie at one place of the result")
        return volume[index[:, 0], index[:, 1], index[:, 2]]


def _affines(positions: np.ndarray, directions: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    affines = np.tile(np.eye(4), (len(positions), 1, 1))
    affines[:, :3, 0] = directions[:, :3] * spacing[:, 1:]
    affines[:, :3, 1] = directions[:, 3:] * spacing[:, :1]
    affines[:, :3, 2] = np.cross(directions[:, :3], directions[:, 3:])
    affines[:, :3, 3] = positions
    return _RAS @ affines


def _complete(dataset: Dataset) -> Dataset:
    for key in _MAY_BE_EMPTY:
        if key not in dataset:
            setattr(dataset, key, "")
    for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in dataset.get(sequence, []):
            _keep(group, tuple(_GROUPS))
            for name, keys in _GROUPS.items():
                for item in group.get(name, []):
                    _keep(item, keys)
    return dataset


def _keep(item: Dataset, keywords: Sequence[str]) -> None:
    kept = {tag_for_keyword(keyword) for keyword in keywords}
    for tag in set(item.keys()) - kept:  # the elements themselves are not looked at
        del item[tag]
