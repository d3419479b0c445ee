"""Datalist of DICOM series: each folder of one series is a volume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from scripts.data.datalists.naming import stem_of, volume_suffix
from scripts.data.datalists.plans import Builder, Plan
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, Datalist, Report
from scripts.data.datalists.slices import Case, SliceRule
from scripts.data.datalists.splits import assemble
from scripts.data.datalists.volumes import BINARY, collect, name_patients
from scripts.data.datalists.walking import check_folder, walk
from transforms.dicom import find_stacks, read_series
from transforms.limits import DEFAULT_LIMITS


def _masks(folder: Path | None, root: Path, report: Report) -> dict[str, Path]:
    if folder is None:
        return {}
    folder, _ = check_folder(folder, root)
    return {stem_of(path): path for path in walk(folder, report) if volume_suffix(path)}


@Builder
def dicom_series(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    masks: Path | str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = BINARY,
    diagnosis: int = -1,
    modality: str = "MRI",
    rule: SliceRule | None = None,
    patient_pattern: str | None = None,
    patients: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist of DICOM series: every folder, at any depth, that holds files is to hold one series.

    Series that are no MR (CT, secondary captures, reports) are refused, and so are folders of several series or with a
    slice missing. The patient is a hash of the patient's number, which itself is not written; without a number, and
    where the user's pattern or table says so, the folder tells it (`find_patients`). Oblique series are turned to the
    nearest axes, not resampled.

    Args:
        folder, name, root, seed, fractions, classes, rule, patient_pattern, patients, progress: as in `nifti_cases`.
        masks: folder of tumor masks as volumes on the grid of the series, named `<folder of the series>.nii.gz`, also
            inside `root`.
        diagnosis: of series without a mask: 0 (no tumor) or -1 (unknown: for prediction, no loss uses it).
        modality: what the images are.

    Raises:
        FileNotFoundError, ValueError: as `nifti_cases`.
    """
    folder, root = check_folder(folder, root)
    name = name or folder.resolve().name
    if diagnosis not in (0, -1):
        raise ValueError(f"series without masks are of class 0 (no tumor) or -1 (unknown), got {diagnosis}")
    report = Report()
    labels = _masks(Path(masks) if masks is not None else None, root, report)
    cases: list[tuple[str, Case]] = []
    files = walk(folder, report)
    if masks is not None:
        files = [path for path in files if not path.is_relative_to(Path(masks))]
    for series_folder in sorted({path.parent for path in files}):
        relative = series_folder.relative_to(folder).as_posix()
        try:
            cases.append((relative, _series_case(series_folder, labels, diagnosis)))
            series_files = [path for path in files if path.parent == series_folder]
            inside = {Path(header.path) for header in find_stacks(series_folder)[0][0]}
            for path in sorted(set(series_files) - inside):
                report.note(path.relative_to(folder).as_posix(), "lies beside a series and is no part of it")
        except ValueError as error:
            report.reject(relative, str(error).replace(f"{root}/", ""))
    for stem in sorted(set(labels) - {series.rsplit("/", 1)[-1] for series, _ in cases}):
        report.reject(labels[stem].relative_to(root).as_posix(), f"no usable series lies in a folder {stem!r}")
    headed = {series: case.patient for series, case in cases if case.patient}
    cases, said = name_patients(
        cases, folder, patient_pattern, patients, "series", {} if patient_pattern or patients else headed
    )
    masked = sum(case.label is not None for _, case in cases)
    taken = [said, f"{len(cases)} folders of one DICOM series each, {masked} with a mask; all taken for {modality}"]

    chosen = rule or SliceRule()

    def finish() -> Datalist:
        items, stats = collect(cases, chosen, root, name, report, progress)
        report.figures["files"] = {"found": len(files)}
        return assemble(
            name, classes, items, fractions, modality=modality, seed=seed, strata=stats.strata, regions=chosen.regions
        )

    return Plan(taken, report, finish)


def _series_case(folder: Path, labels: dict[str, Path], diagnosis: int) -> Case:
    """The case of one folder; a ValueError says why it cannot be used."""
    _, _, about = read_series(folder, DEFAULT_LIMITS)
    kind = about["Modality"]
    if kind != "MR":
        raise ValueError(f"modality {kind or 'not stated'!r}, expected MR")
    number = about["PatientID"]
    patient = hashlib.sha256(number.encode()).hexdigest()[:12] if number else ""
    return Case(patient, [folder], labels.get(folder.name), None, diagnosis)
