"""Datalists of volumes: BraTS-style folders of cases with masks, and folders of volumes of one class."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from scripts.data.datalists.clusters import Item
from scripts.data.datalists.layouts import BY_NAME, FOLDERS, choose_channels, group_files, make_case, sort_roles
from scripts.data.datalists.naming import CHANNELS, role, stem_of, volume_suffix
from scripts.data.datalists.patients import find_patients
from scripts.data.datalists.plans import Builder, Plan, took
from scripts.data.datalists.schema import DEFAULT_FRACTIONS, Datalist, Report
from scripts.data.datalists.slices import Case, Findings, SliceRule, case_candidates, limit_slices, load_oriented
from scripts.data.datalists.splits import assemble
from scripts.data.datalists.walking import check_folder, walk
from transforms.reading import VOLUME_SUFFIXES

__all__ = ["load_oriented", "nifti_cases", "nifti_volumes"]

logger = logging.getLogger(__name__)

BINARY = ("no_tumor", "tumor")


def name_patients(
    cases: Sequence[tuple[str, Case]],
    folder: Path,
    pattern: str | None,
    table: Path | str | None,
    what: str,
    stated: Mapping[str, str] | None = None,
    named: Mapping[str, Path] | None = None,
) -> tuple[list[tuple[str, Case]], str]:
    """The cases with their patients, found by the names of their first images, and a sentence about them.

    Args:
        cases: (name, case) of each.
        folder: holds them all.
        pattern, table: overrule the names, see `find_patients`.
        what: the cases are called in the sentence.
        stated: patients that are known otherwise, by the names of the cases.
        named: paths that stand for first images, by the names of the cases.

    Raises:
        ValueError: as `find_patients`.
    """
    stated = stated or {}
    firsts = {key: (named or {}).get(key, case.images[0]) for key, case in cases}
    paths = {key: Path(os.path.relpath(path, folder)).as_posix() for key, path in firsts.items()}
    unstated = [path for key, path in paths.items() if key not in stated]
    lookup = find_patients(unstated, pattern=pattern, table=table, top=folder.resolve().name)
    text = lookup.sentence(what)
    if stated:
        people = len(set(stated.values()))
        text = f"{len(stated)} {what} of {people} patients, whom header or list names" + (
            f"; {text}" if unstated else ""
        )
        if people == 1 < len(stated):
            text += ". doubtful: all are of one patient; --patient_pattern or --patients says otherwise"
    return [(key, replace(case, patient=stated.get(key) or lookup.of[paths[key]])) for key, case in cases], text


def collect(
    cases: Sequence[tuple[str, Case]], rule: SliceRule, root: Path, name: str, report: Report, progress: bool
) -> tuple[list[Item], Findings]:
    """Items of all cases; one that cannot be used is reported under its name.

    Raises:
        ValueError: when none can be used.
    """
    by_patient: dict[str, list[Item]] = {}
    findings = Findings()
    names: dict[str, str] = {}
    for case_name, case in tqdm(cases, desc=name, unit="volume", disable=not progress):
        try:
            candidates = case_candidates(case, rule, root, name, findings)
        except (ValueError, OSError) as error:
            report.reject(case_name, str(error).replace(f"{root}/", ""))
            continue
        by_patient.setdefault(case.patient, []).extend(candidates)
        names |= {str(item["image"]): case_name for item in candidates}
    items = [item for of_patient in by_patient.values() for item in limit_slices(of_patient, rule)]
    if not items:
        first = f", first: {': '.join(report.unusable[0])}" if report.unusable else ""
        raise ValueError(f"no usable patient or volume in {name}: {len(report.unusable)} unusable{first}")
    taken = {str(item["image"]) for item in items}
    patients = {str(item["image"]): patient for patient, of_patient in by_patient.items() for item in of_patient}
    for image, case_name in names.items():
        if image not in taken:
            findings.beyond_limit.add(case_name)
            report.note(
                case_name,
                f"no slice taken: at most {rule.tumor_slices} with and {rule.normal_slices} without tumor are, of all "
                f"volumes of patient {patients[image]} together",
            )
    for tumor, text, limit in ((True, "with", rule.tumor_slices), (False, "without", rule.normal_slices)):
        several = [
            sum("slice" in item and (item["diagnosis"] > 0) == tumor for item in of_patient)
            for of_patient in (items, *by_patient.values())
        ]
        report.leave_out(f"slices {text} tumor beyond {limit} of each patient", sum(several[1:]) - several[0])
    for reason, count in findings.left_out.items():
        report.leave_out(reason, count)
    used = len(names) - len(findings.beyond_limit)
    report.figures |= {
        "found": len(names) + len(report.unusable),
        "used": used,
        "refused": len(report.unusable),
        "beyond_limit": len(findings.beyond_limit),
        "patients": len({item["patient"] for item in items}),
        "slices_that_qualify": sum("slice" in item for of_patient in by_patient.values() for item in of_patient),
        "healthy_patients": sum(stratum == "healthy" for stratum in findings.strata.values()),
        "tumor_slices": sum(item["diagnosis"] == 1 for item in items),
        "normal_slices": sum(item["diagnosis"] == 0 for item in items),
        "unusable": len(report.unusable),
        "labels": sorted(findings.labels),
        "normalized_before": findings.normalized,
    }
    return items, findings


@Builder
def nifti_cases(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = BINARY,
    channels: Sequence[str] | None = ("FLAIR",),
    rule: SliceRule | None = None,
    tumor_slices: int | None = None,
    normal_slices: int | None = None,
    label_pattern: str | None = None,
    layout: str = FOLDERS.name,
    patient_pattern: str | None = None,
    patients: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist of cases with channels and a mask: each folder that holds volumes is one, or as `layout` says.

    Words in their names give files their roles (`scripts.data.datalists.naming.role`) or patterns of the layout do. A
    file with "brainmask" in its name becomes the `foreground`. Split by patient (time points of one patient stay
    together), stratified by having a tumor. Each volume is read once. `diagnosis` is the slice's own: 1 with tumor in
    it, 0 without. Every file is accounted for: used, beside the used ones of a case (as other channels), in a case that
    gave no slice, or refused.

    Args:
        folder: holds the cases, at any depth.
        name: of the datalist and source; the folder's name if not given.
        root: `dataset_dir`, to which paths are relative; `folder` if not given.
        seed: of the split.
        fractions: shares of training, validation and test, of the patients' slices.
        classes: names of no tumor and tumor.
        channels: of "FLAIR", "T1", "T1ce", "T2": the image's channels, in this order. None: FLAIR, or the only one.
        rule: which slices, see `SliceRule`.
        tumor_slices, normal_slices: in place of the rule's.
        label_pattern: file name pattern of the mask, case ignored, where the name is another.
        layout: a name of `scripts.data.datalists.layouts.BY_NAME`.
        patient_pattern: regular expression that finds the patient in the path of a case's first image, in place of the
            rule of `scripts.data.datalists.patients`.
        patients: CSV file with the columns file and patient, in place of that rule.
        progress: show a progress bar.

    Returns:
        The datalist, and the report: what could not be used and why, and figures.

    Raises:
        FileNotFoundError: when there is no such folder.
        ValueError: when classes are not two, a channel is unknown, `folder` is outside `root`, or no patient can be
            used.
    """
    folder, root = check_folder(folder, root)
    name = name or folder.resolve().name
    if len(classes) != 2:
        raise ValueError(f"a mask tells tumor from none: expected two classes, got {list(classes)}")
    rule = rule or SliceRule()
    rule = rule if tumor_slices is None else replace(rule, tumor_slices=tumor_slices)
    rule = rule if normal_slices is None else replace(rule, normal_slices=normal_slices)
    report = Report()
    files = walk(folder, report)
    members, rest = group_files(folder, files, BY_NAME[layout])
    for path in rest:
        gone = path.is_symlink() and not path.exists()
        text = "a symbolic link that leads nowhere" if gone else "no volume, and not in a patient's folder"
        report.reject(path.relative_to(folder).as_posix(), text)
    roles = {key: sort_roles(folder, paths, BY_NAME[layout], label_pattern) for key, paths in members.items()}
    channels = choose_channels(list(roles.values())) if channels is None else channels
    unknown = [channel for channel in channels if channel not in CHANNELS]
    if unknown or not channels or len(set(channels)) < len(channels):
        raise ValueError(f"channels must be some of {', '.join(CHANNELS)}, each once; got {list(channels)}")
    cases: list[tuple[str, Case]] = []
    for case_name, files_by_role in roles.items():
        try:
            cases.append((case_name, make_case(files_by_role, channels, label_pattern)))
        except ValueError as error:
            report.reject(case_name, str(error))
    cases, said = name_patients(cases, folder, patient_pattern, patients, "cases")
    taken = [said, f"{len(cases)} of {len(members)} cases in {folder} have all of these:"]
    chosen: dict[str, list[tuple[Path, str]]] = {}
    for case_name, case in cases:
        files_of: list[tuple[str, Path | None]] = list(zip(channels, case.images, strict=True))
        files_of += [("mask", case.label), ("brain mask", case.foreground)]
        for what, file in files_of:
            if file is not None:
                chosen.setdefault(what, []).append((file, case_name))
    taken += [took(what, paths, len(members)) for what, paths in chosen.items()]

    def finish() -> Datalist:
        items, summary = collect(cases, rule, root, name, report, progress)
        refused = {key for key, _ in report.unusable}
        idle = refused | summary.beyond_limit
        named = sum(len(case.images) + 1 + (case.foreground is not None) for key, case in cases if key not in idle)
        report.figures["files"] = {
            "found": len(files),
            "used": named,
            "beside_used_ones": sum(len(paths) for key, paths in members.items() if key not in idle) - named,
            "in_cases_beyond_limit": sum(len(members[key]) for key in summary.beyond_limit),
            "in_refused_cases": sum(len(paths) for key, paths in members.items() if key in refused) + len(rest),
        }
        report.leave_out("files of other channels or kinds in used cases", report.figures["files"]["beside_used_ones"])
        return assemble(
            name,
            classes,
            items,
            fractions,
            modality=list(channels),
            seed=seed,
            strata=summary.strata,
            regions=rule.regions,
        )

    return Plan(taken, report, finish)


def _image_reason(path: Path) -> str | None:
    """Why a file of a folder of volumes is no image; None if it may be one."""
    if path.is_symlink() and not path.exists():
        return "a symbolic link that leads nowhere"
    if volume_suffix(path) is None:
        return f"no volume ({', '.join(VOLUME_SUFFIXES)})"
    if role(path) == "label":
        return "a mask by its name, and these volumes are taken to show no tumor"
    return None


@Builder
def nifti_volumes(
    folder: Path | str,
    *,
    name: str | None = None,
    root: Path | str | None = None,
    seed: int = 0,
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    classes: Sequence[str] = BINARY,
    diagnosis: int = 0,
    modality: str = "FLAIR",
    rule: SliceRule | None = None,
    patient_pattern: str | None = None,
    patients: Path | str | None = None,
    progress: bool = True,
) -> Plan:
    """Build a datalist of volumes without masks, all of one class: healthy people, or other diseases without a tumor.

    Every volume below the folder is one image; a file `<same stem>_brainmask.*` in its folder becomes its `foreground`.
    A volume with few values is a mask, of lesions for instance, and refused as an image. A volume of which no slice is
    taken is noted.

    Args:
        folder, name, root, seed, fractions, classes, rule, patient_pattern, patients, progress: as in `nifti_cases`.
        diagnosis: 0 (no tumor) or -1 (unknown: for prediction, no loss uses it).
        modality: what the images are.

    Raises:
        FileNotFoundError, ValueError: as `nifti_cases`.
    """
    folder, root = check_folder(folder, root)
    name = name or folder.resolve().name
    if diagnosis not in (0, -1):
        raise ValueError(f"volumes without masks are of class 0 (no tumor) or -1 (unknown), got {diagnosis}")
    report = Report()
    files = walk(folder, report)
    masks = {path for path in files if role(path) == "foreground"}
    brains: dict[tuple[Path, str], Path] = {}  # files of one name in other folders are of other patients
    for path in sorted(masks):
        brains.setdefault((path.parent, stem_of(path).lower()), path)
    cases: list[tuple[str, Case]] = []
    paired: set[Path] = set()
    for path in files:
        relative_path = path.relative_to(folder).as_posix()
        if path in masks:
            continue
        reason = _image_reason(path)
        if reason:
            report.reject(relative_path, reason)
            continue
        brain = brains.get((path.parent, f"{stem_of(path).lower()}_brainmask"))
        paired |= {brain} if brain else set()
        cases.append((relative_path, Case("", [path], None, brain, diagnosis)))
        if role(path) not in (None, modality):
            report.note(relative_path, f"its name says {role(path)}, the list {modality}: look at it")
    for path in sorted(masks - paired):
        text = "a brain mask without a volume of the same stem in its folder, or a second one of it"
        report.reject(path.relative_to(folder).as_posix(), text)
    cases, said = name_patients(cases, folder, patient_pattern, patients, "volumes")
    volumes = [(case.images[0], case.patient) for _, case in cases]
    taken = [said, took(modality, volumes, len(files), "files")]
    taken.append(
        f"all {('of class ' + classes[0]) if diagnosis == 0 else 'of unknown class'}, {len(paired)} with a brain mask"
    )

    def finish() -> Datalist:
        chosen = rule or SliceRule()
        items, summary = collect(cases, chosen, root, name, report, progress)
        report.figures["files"] = {"found": len(files), "brain_masks": len(paired)}
        return assemble(
            name, classes, items, fractions, modality=modality, seed=seed, strata=summary.strata, regions=chosen.regions
        )

    return Plan(taken, report, finish)
