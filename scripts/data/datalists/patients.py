"""Who a file shows: the one rule for the patient of a file or folder name, and what overrules it.

The rule, from the strongest sign to the weakest (docs/patients.md has a table of public collections):

1. A name of a known collection says it (`patient_names.SCHEMES`): the part that stays over sessions, dates and runs.
2. A word for a person and a number: `patient01_study1`, `Patient-001/week-000-1`, `case_7`.
3. Another name with a digit in it, without what names a time point, date, channel, processing or number of a slice. A
   number that is left at the end (`x12_1`) may be a time point or the person: doubtful, taken for a time point. A
   folder with a digit is doubtful too where names with digits lie in it: taken for the person.
4. Else the folder, where several folders stand side by side and the files in them are called alike; else the file.

So doubtful names err on the side of fewer patients, but never for all files together: a number at the end or a folder
is not taken for a time point or person where fewer than two people, or more than `MOST_SCANS` scans of each, would come
out. The sentence of `Patients` says what was found and what is doubtful.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from scripts.data.datalists.patient_names import (
    ALONE,
    APART,
    CONTAINER,
    MEANINGLESS,
    NOBODY,
    SCHEMES,
    Reading,
    read_name,
    stem_of_name,
)

# More scans than this, on average, no person has: they are people.
MOST_SCANS = 20


@dataclass(frozen=True)
class Patients:
    """The patient of every file of a folder.

    Attributes:
        of: file to patient, as many as were asked for.
        example: a file whose name says the most.
        warnings: sentences on what is doubtful, with an example each.
        origin: "the names", or the pattern or table that overruled them.
    """

    of: Mapping[str, str]
    example: str
    warnings: tuple[str, ...] = ()
    origin: str = "the names"

    def sentence(self, what: str = "images") -> str:
        """What was found: "48 images of 12 patients; patient = 'sub-01' from sub-01_ses-02_T1w.nii.gz"."""
        if not self.of:
            return f"0 {what}"
        text = (
            f"{len(self.of)} {what} of {len(set(self.of.values()))} patients; patient = {self.of[self.example]!r} from "
        )
        text += self.example + ("" if self.origin == "the names" else f" by {self.origin}")
        return ". ".join([text, *self.warnings])


@dataclass
class _File:
    path: str
    parts: tuple[str, ...]
    readings: tuple[Reading, ...]
    chosen: Reading = field(default_factory=lambda: Reading("", ""))
    level: int = -1


def _tidy(name: str) -> str:
    return re.sub(r"[-_. ]+", "-", name.lower())


@dataclass
class _Folders:
    """The folders of one parent that may each be a person, and what the names below them say.

    Attributes:
        names: of the folders, without those of containers, channels and time points.
        labels: of each folder, what distinguishes the files in it.
    """

    names: set[str] = field(default_factory=set)
    labels: dict[str, set[str]] = field(default_factory=dict)

    def hold_scans(self, names: Iterable[str]) -> bool:
        """Whether so few files lie in these folders that each may be one person's."""
        chosen = [self.labels[name] for name in names]
        return len(chosen) > 1 and sum(map(len, chosen)) <= MOST_SCANS * len(chosen)

    def alike(self) -> bool:
        """Whether files of the same few names lie in all these folders: then folders are people, not files."""
        every = [label for labels in self.labels.values() for label in labels]
        return len(set(every)) < len(every) and len(set(every)) <= len(self.labels)


def _label(file: _File) -> str:
    """What tells a file from others of its folder: its person, or its numbers; "" where only a channel is named."""
    if file.readings[-1].rule:
        return _tidy(file.readings[-1].patient)
    text = re.sub(rf"(?<![a-z0-9])(?:{ALONE})(?![a-z0-9])", "", stem_of_name(file.parts[-1]), flags=re.I)
    return _tidy(text) if re.search(r"\d", text) and not MEANINGLESS.match(text) else ""


def _folders(files: Sequence[_File]) -> dict[tuple[str, ...], _Folders]:
    folders: dict[tuple[str, ...], _Folders] = {}
    for file in files:
        for k, part in enumerate(file.parts[:-1]):
            if CONTAINER.fullmatch(part) or NOBODY.fullmatch(part):
                continue
            siblings = folders.setdefault(file.parts[:k], _Folders())
            siblings.names.add(part)
            lower = next((_tidy(one.patient) for one in file.readings[k + 1 : -1] if one.rule), _label(file))
            siblings.labels.setdefault(part, set()).update([lower] if lower else [])
    return folders


def _choose(file: _File, folders: Mapping[tuple[str, ...], _Folders]) -> int:
    """The level of the path that is the person: a sure name, a folder with a digit, another folder, or the file."""
    last = len(file.parts) - 1
    sure = [k for k, reading in enumerate(file.readings) if reading.rule not in ("", "name")]
    known = [k for k in sure if file.readings[k].rule in SCHEMES]
    if sure:
        return (known or sure)[0]
    nobody = not file.readings[last].rule
    # What lies below a date or time point is no person.
    times = [k for k in range(1, last) if NOBODY.match(file.parts[k]) and any(one.rule for one in file.readings[:k])]
    for k in range(times[0] if times else last):
        around = folders.get(file.parts[:k], _Folders())
        if file.readings[k].rule and file.parts[k] in around.names:
            numbered = [name for name in around.names if read_name(name).rule]
            alone = (nobody or times) and len(around.labels[file.parts[k]]) <= 1
            if alone or around.hold_scans(numbered):
                return k
    for k in range(last - 1, -1, -1):
        around = folders.get(file.parts[:k], _Folders())
        if file.parts[k] in around.names and (around.hold_scans(around.names) if nobody else around.alike()):
            return k
    return last


def _only_channel(file: _File) -> bool:
    """Whether a file's name says a channel and nothing else, so that it cannot distinguish people."""
    text = re.sub(rf"(?<![a-z0-9])(?:{ALONE})(?![a-z0-9])", "", stem_of_name(file.parts[-1]), flags=re.I)
    return bool(MEANINGLESS.match(text)) or not re.search(r"[a-z0-9]", text, re.I)


def _take_folder(file: _File, top: str) -> None:
    """The nearest folder that may be a person's, or the one that holds all."""
    idx = [k for k, part in enumerate(file.parts[:-1]) if not CONTAINER.fullmatch(part) and not NOBODY.fullmatch(part)]
    file.level = idx[-1] if idx else len(file.parts) - 1
    name = file.parts[idx[-1]] if idx else top or stem_of_name(file.parts[-1])
    file.chosen = Reading(read_name(name).patient or name, "folder")


def _home(file: _File) -> tuple[str, ...]:
    return tuple(part for part in file.parts[:-1] if not NOBODY.fullmatch(part) and not CONTAINER.fullmatch(part))


def _by_rule(files: Sequence[_File], top: str) -> list[str]:
    """Choose the part of each path that is the person; returns what is doubtful."""
    folders = _folders(files)
    nested: list[_File] = []
    homes: dict[str, list[_File]] = {}
    bare = Counter(file.parts[:-1] for file in files if _only_channel(file))
    for file in files:
        file.level = _choose(file, folders)
        if file.level == len(file.parts) - 1 and _only_channel(file) and bare[file.parts[:-1]] <= MOST_SCANS:
            _take_folder(file, top if bare[file.parts[:-1]] > 1 else "")
            continue
        reading, last = file.readings[file.level], len(file.parts) - 1
        name = stem_of_name(file.parts[last]) if file.level == last else file.parts[file.level]
        file.chosen = reading if reading.rule else Reading(name, "folder" if file.level < last else "file")
        if file.level < last and reading.rule == "name" and any(one.rule for one in file.readings[file.level + 1 :]):
            nested.append(file)
        elif file.level == last and file.chosen.rule in ("name", "file"):
            homes.setdefault(_tidy(file.chosen.patient), []).append(file)
    warnings = []
    if nested:
        first = nested[0]
        warnings.append(
            f"doubtful: the folder {first.parts[first.level]!r} is taken for the patient of {first.path}, likewise in "
            f"{len(nested) - 1} more files, though the files have names of their own"
        )
    spread = [members for members in homes.values() if len({_home(file) for file in members}) > 1]
    if spread:
        first, second = spread[0][0], next(file for file in spread[0] if _home(file) != _home(spread[0][0]))
        warnings.append(f"doubtful: {first.path} and {second.path} are taken for one patient, {first.chosen.patient!r}")
    return warnings


def _settle_numbers(files: Sequence[_File]) -> list[str]:
    """Whether numbers at the end are time points: not where that leaves one person, or many scans of each."""
    cut = [file for file in files if file.chosen.doubtful]
    bases: dict[str, set[str]] = {}
    for file in cut:
        bases.setdefault(_tidy(file.chosen.patient), set()).add(_tidy(file.chosen.whole))
    if all(len(spellings) == 1 for spellings in bases.values()):
        return []
    first = next(file for file in cut if len(bases[_tidy(file.chosen.patient)]) > 1)
    people = len({_tidy(file.chosen.patient) for file in files})
    names = sum(map(len, bases.values()))
    if people > 1 and names <= MOST_SCANS * len(bases):
        return [
            f"doubtful: the number at the end of {first.chosen.whole!r} is taken for a time point of "
            f"{first.chosen.patient!r}, likewise in {len(cut) - 1} more files"
        ]
    text = (
        f"doubtful: the number at the end of {first.chosen.whole!r} is taken for a person's, as {len(bases)} with "
        f"{names / len(bases):.0f} scans each would be left"
    )
    for file in cut:
        file.chosen = replace(file.chosen, patient=file.chosen.whole, whole="")
    return [text]


def _spell(files: Sequence[_File]) -> tuple[dict[str, str], list[str]]:
    """One spelling a person; people of one name in two sites, grades or cohorts are named with these."""
    places: dict[str, set[str]] = {}
    for file in files:
        file_place = [part for part in file.parts[: file.level] if APART.fullmatch(part)]
        places.setdefault(_tidy(file.chosen.patient), set()).add("/".join(file_place))
    spelled: dict[str, str] = {}
    patients: dict[str, str] = {}
    for file in files:
        key, name = _tidy(file.chosen.patient), file.chosen.patient
        if len(places[key]) > 1 and file.chosen.rule not in SCHEMES:
            prefix = [part for part in file.parts[: file.level] if APART.fullmatch(part)]
            name = "/".join([*prefix, name])
            key = _tidy(name)
        patients[file.path] = spelled.setdefault(key, name)
    apart = sorted(key for key, keys in places.items() if len(keys) > 1)
    several = [file for file in files if "/" in patients[file.path]]
    if not apart or not several:
        return patients, []
    return patients, [
        f"people of one number in several folders, such as {patients[several[0].path]!r}, are taken for several"
    ]


def find_patients(
    paths: Iterable[str],
    *,
    pattern: str | None = None,
    table: Path | str | None = None,
    known_only: bool = False,
    top: str = "",
) -> Patients:
    """The patient of every file, by the rule of this module, or by a pattern or table of the user's.

    >>> found = find_patients(["a/sub-01_ses-1_T1w.nii", "a/sub-01_ses-2_T1w.nii", "a/sub-02_T1w.nii"])
    >>> found.sentence()
    "3 images of 2 patients; patient = 'sub-01' from a/sub-01_ses-1_T1w.nii"
    >>> find_patients(["k7-b.nii", "k8-b.nii"], pattern="k(.)").of
    {'k7-b.nii': '7', 'k8-b.nii': '8'}

    Args:
        paths: of the files (or folders of a case) relative to the folder that holds all, with "/".
        pattern: regular expression searched in the path; its group `patient`, else its first group, else all of it.
        table: CSV file with columns `file` and `patient`; a file is its path, name, or a folder above it.
        known_only: only names of known collections count (for pictures, whose numbers mostly count pictures): files of
            others are left out of the result.
        top: name of the folder that holds all: the person of files that name nothing but channels.

    Raises:
        ValueError: when pattern and table are both given or either leaves a file without a patient.
    """
    named = list(dict.fromkeys(paths))
    if pattern is not None and table is not None:
        raise ValueError("give --patient_pattern or --patients, not both")
    if pattern is not None:
        return _overruled(named, _matched(named, pattern), f"--patient_pattern {pattern}")
    if table is not None:
        return _overruled(named, _looked_up(named, Path(table)), f"--patients {Path(table).name}")
    files = []
    for path in named:
        parts = tuple(part for part in PurePosixPath(path).parts if part not in (".", "/"))
        parts = parts or (top or path,)
        files.append(_File(path, parts, tuple(read_name(part) for part in parts)))
    if known_only:
        files = [file for file in files if any(one.rule in SCHEMES for one in file.readings)]
    warnings = [*_by_rule(files, top), *_settle_numbers(files)]
    patients, apart = _spell(files)
    if warnings:
        warnings.append("--patient_pattern or --patients says otherwise")
    count = Counter(patients.values())
    example = min(patients, key=lambda path: (-count[patients[path]], path), default="")
    return Patients(patients, example, (*warnings, *apart))


def _overruled(paths: Sequence[str], stated: Mapping[str, str], origin: str) -> Patients:
    lacking = [path for path in paths if path not in stated]
    if lacking:
        raise ValueError(f"{origin} says no patient for {len(lacking)} of {len(paths)} files, first: {lacking[0]}")
    return Patients(dict(stated), paths[0] if paths else "", origin=origin)


def _matched(paths: Sequence[str], pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--patient_pattern {pattern!r} is no regular expression: {error}") from error
    patients: dict[str, str] = {}
    for path in paths:
        if match := compiled.search(path):
            patient = match.groupdict().get("patient") or next((text for text in match.groups() if text), match[0])
            patients |= {path: patient} if patient else {}
    return patients


def _looked_up(paths: Sequence[str], table: Path) -> dict[str, str]:
    with table.open(encoding="utf-8-sig", newline="") as opened:
        rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in csv.DictReader(opened)]
    if not rows or not {"file", "patient"} <= set(rows[0]):
        raise ValueError(
            f"{table}: expected a CSV file with the columns file,patient, got {sorted(rows[0]) if rows else 'no row'}"
        )
    listed: dict[str, str] = {}
    for row in rows:
        file, patient = (str(row[key] or "").strip() for key in ("file", "patient"))
        file = file.replace("\\", "/").strip("/")
        if not file or not patient:
            raise ValueError(f"{table}: a row without file or patient: {row}")
        if listed.setdefault(file, patient) != patient:
            raise ValueError(f"{table}: {file!r} has two patients, {listed[file]!r} and {patient!r}")
    patients: dict[str, str] = {}
    for path in paths:
        pure = PurePosixPath(path)
        bare = stem_of_name(path)
        above = [folder.as_posix() for folder in pure.parents]
        keys = [path, bare, pure.name, PurePosixPath(bare).name, *above, *(PurePosixPath(one).name for one in above)]
        if person := next((listed[key] for key in keys if key in listed), None):
            patients[path] = person
    return patients
