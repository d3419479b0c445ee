"""Layouts of collections of volumes: how the names say which files are a case, and what each is.

A new collection is one more row of `LAYOUTS`; docs/data.md explains the table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from scripts.data.datalists.naming import CHANNELS, role, volume_suffix
from scripts.data.datalists.slices import Case

Roles = dict[str, list[Path]]


@dataclass(frozen=True)
class Layout:
    """How the files of one collection are named.

    Attributes:
        name: what `--layout` calls it.
        title: of the collection.
        case: regular expression (case ignored) that matches, from the start, as much of a file's path as names its
            case; the case is what its groups matched, else all of it.
        names: (role, pattern, case ignored) in order of preference. A pattern with "/" is that of the path, another of
            the name of the file or of the folder it lies in. A file has the role of the first pattern that fits it, ""
            is none; a case takes the files of the first pattern of a role that it has.
    """

    name: str
    title: str
    case: str
    names: tuple[tuple[str, str], ...]

    def case_of(self, path: str) -> str | None:
        """The case of a file, by its path relative to the folder; None for a file of none."""
        match = re.match(self.case, path, re.IGNORECASE)
        if match is None:
            return None
        return "/".join(part for part in match.groups() if part) if match.groups() else match[0]

    def rank_of(self, path: str) -> int | None:
        """The number of the pattern that a file's path fits; None if none or one without a role."""
        for k, (what, pattern) in enumerate(self.names):
            parts = [path.lower()] if "/" in pattern else path.lower().split("/")[-2:]
            if any(fnmatchcase(part, pattern.lower()) for part in parts):
                return k if what else None
        return None


def _named(label: Sequence[str], **channels: str) -> tuple[tuple[str, str], ...]:
    return (*channels.items(), *(("label", pattern) for pattern in label))


# The order counts for none of them: a folder in which files of two are found is refused.
LAYOUTS = (
    Layout(
        "brats_2012", "BraTS 2012 (BRATS_HG0001_FLAIR.mha, _truth.mha)", r".*?BRATS_[HL]G\d+",
        _named(["*_truth.mh?"], FLAIR="*_FLAIR.mh?", T1="*_T1.mh?", T1ce="*_T1C.mh?", T2="*_T2.mh?"),
    ),
    Layout(
        "brats_2013", "BraTS 2013 to 2015 (VSD.Brain.XX.O.MR_Flair.54512/*.mha)", r"(.*?)(?:^|/)VSD\.Brain[^/]*(?:/|$)",
        _named(
            ["*.OT.*mha", "*.OT/*.mha"], FLAIR="*.MR_Flair*.mha", T1="*.MR_T1[./]*mha", T1ce="*.MR_T1c[./]*mha",
            T2="*.MR_T2[./]*mha",
        ),
    ),
    Layout(
        "brats_2017", "BraTS 2017 to 2021 (BraTS20_Training_001_flair.nii, _seg.nii)",
        r".*?BraTS(?:17|18|19|20|2021)_(?:[^/]*_)?\d+(?=/|_[^_/]*$)",
        _named(["*_seg.nii*", "*_segm.nii*"], FLAIR="*_flair.nii*", T1="*_t1.nii*", T1ce="*_t1ce.nii*", T2="*_t2.nii*"),
    ),
    Layout(
        "brats_2023", "BraTS 2023 to 2025: GLI, MEN, MEN-RT, MET, PED, SSA, GoAT (BraTS-GLI-00000-000-t2f.nii.gz)",
        r".*?BraTS-[a-z]+(?:-[a-z]+)?-\d+(?:-\d+)?",
        _named(
            ["*[-_]seg.nii*", "*[-_]gtv.nii*"], FLAIR="*[-_]t2f.nii*", T1="*[-_]t1n.nii*", T1ce="*[-_]t1c.nii*",
            T2="*[-_]t2w.nii*",
        ),
    ),
    Layout(
        "tcga", "TCGA-GBM and TCGA-LGG of BraTS (TCGA-02-0006_1996.08.23_flair.nii.gz, _GlistrBoost*.nii.gz)",
        r".*?TCGA-\w\w-\w{4}(?:_\d{4}\.\d\d\.\d\d)?",
        _named(
            ["*_GlistrBoost_ManuallyCorrected.nii*", "*_GlistrBoost.nii*"],
            FLAIR="*_flair.nii*", T1="*_t1.nii*", T1ce="*_t1Gd.nii*", T2="*_t2.nii*",
        ),
    ),
    Layout(
        "upenn_gbm", "UPENN-GBM (images_structural, images_segm, automated_segm)", r".*?(UPENN-GBM-\d+_\d+)",
        _named(
            ["*[0-9]_segm.nii*", "*_automated_approx_segm.nii*"],
            FLAIR="*_FLAIR.nii*", T1="*_T1.nii*", T1ce="*_T1GD.nii*", T2="*_T2.nii*",
        ),
    ),
    Layout(
        "ucsf_pdgm", "UCSF-PDGM (UCSF-PDGM-0004_FLAIR.nii.gz, _tumor_segmentation.nii.gz)",
        r".*?UCSF-PDGM-\d+(?:_FU\d+d)?",
        (
            ("foreground", "*_brain_segmentation.nii*"),
            ("label", "*_tumor_segmentation.nii*"),
            *_named([], FLAIR="*_FLAIR.nii*", T1="*_T1.nii*", T1ce="*_T1c.nii*", T2="*_T2.nii*"),
            *_named([], FLAIR="*_FLAIR_bias.nii*", T1="*_T1_bias.nii*", T1ce="*_T1c_bias.nii*", T2="*_T2_bias.nii*"),
        ),
    ),
    Layout(
        "ucsf_alptdg", "UCSF-ALPTDG, two time points in a folder (100101/100101_time1_flair.nii.gz, _seg)",
        r".*?\d+_time\d+(?=_)",
        _named(["*_seg.nii*"], FLAIR="*_flair.nii*", T1="*_t1.nii*", T1ce="*_t1ce.nii*", T2="*_t2.nii*"),
    ),
    Layout(
        "ucsd_ptgbm", "UCSD-PTGBM (UCSD-PTGBM-0002_01_FLAIR.nii.gz, _BraTS_tumor_seg.nii.gz)", r".*?UCSD-PTGBM-\d+_\d+",
        _named(
            ["*_BraTS_tumor_seg.nii*"], FLAIR="*_FLAIR.nii*", T1="*_T1pre.nii*", T1ce="*_T1post.nii*", T2="*_T2.nii*"
        ),
    ),
    Layout(
        "egd", "Erasmus Glioma Database (EGD-0001/4_FLAIR/NIFTI/FLAIR.nii.gz, MASK.nii.gz)", r".*?EGD-\d+",
        _named(["*/MASK.nii*"], FLAIR="*/FLAIR.nii*", T1="*/T1.nii*", T1ce="*/T1GD.nii*", T2="*/T2.nii*"),
    ),
    Layout(
        "bids", "BIDS with masks (sub-01/ses-1/anat/sub-01_ses-1_FLAIR.nii.gz, derivatives/*/sub-01/**/*_mask.nii.gz)",
        r"(?:.*?/)?(sub-[a-z0-9]+)(?:/(ses-[a-z0-9]+))?/",
        (
            ("", "*_space-mni*"), ("", "*_label-[gwc][ms][f_]*"),  # another grid; gray and white matter, fluid
            *(("label", f"*{word}*_{kind}.nii*") for word in ("tumor", "tumour", "lesion", "glioma", "gtv")
              for kind in ("mask", "dseg", "roi")),
            ("foreground", "*[-_]brain*_mask.nii*"), ("foreground", "*_brainmask.nii*"),
            ("label", "*_mask.nii*"), ("label", "*_roi.nii*"), ("", "*derivatives/*"),
            ("FLAIR", "*anat/*_flair.nii*"), ("T1ce", "*anat/*_ce-*_t1w.nii*"), ("T1", "*anat/*_t1w.nii*"),
            ("T2", "*anat/*_t2w.nii*"),
        ),
    ),
)  # fmt: skip
# Any other collection in which each folder holds one case; a word in the name of a file says its channel.
FOLDERS = Layout(
    "folders", "a folder a case, named with words such as flair, t1, t1ce, t2, seg (LUMIERE, RHUH)", "", ()
)
BY_NAME = {layout.name: layout for layout in (*LAYOUTS, FOLDERS)}


def find_layouts(paths: Sequence[str]) -> dict[str, int]:
    """Number of cases by layout, for each of `LAYOUTS` that has an image of a known channel among the paths."""
    counts = {}
    for layout in LAYOUTS:
        cases = set()
        for path in paths:
            case, rank = layout.case_of(path), layout.rank_of(path)
            if case is not None and rank is not None and layout.names[rank][0] in CHANNELS:
                cases.add(case)
        if cases:
            counts[layout.name] = len(cases)
    return counts


def group_files(folder: Path, files: Sequence[Path], layout: Layout) -> tuple[dict[str, list[Path]], list[Path]]:
    """The files of each case, by its name, and the files of none."""
    if layout is FOLDERS:
        return _by_folder(folder, files)
    members: dict[str, list[Path]] = {}
    rest = []
    for path in files:
        case = layout.case_of(path.relative_to(folder).as_posix())
        if case is None:
            rest.append(path)
        else:
            members.setdefault(case or ".", []).append(path)
    return _with_volumes(members, rest)


def _by_folder(folder: Path, files: Sequence[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Each folder is a case; one that itself is named like a file of a case, with one volume in it, stands for it."""
    volumes = Counter(path.parent for path in files if volume_suffix(path))
    members: dict[str, list[Path]] = {}
    for path in files:
        home = path.parent
        while home != folder and volumes[home] == 1 and stands_for_file(home):
            home = home.parent
        members.setdefault(home.relative_to(folder).as_posix(), []).append(path)
    return _with_volumes(members, [])


def stands_for_file(folder: Path) -> bool:
    """Whether a folder's name is that of a channel or mask, beside others of the same case: `p1/p1_flair.nii/x.nii`."""
    return role(folder.with_name(f"{folder.name}.nii"), folder.parent.name) is not None


def _with_volumes(members: dict[str, list[Path]], rest: list[Path]) -> tuple[dict[str, list[Path]], list[Path]]:
    kept = {}
    for case, paths in sorted(members.items()):
        if any(volume_suffix(path) for path in paths):
            kept[case] = paths
        else:
            rest = [*rest, *paths]
    return kept, sorted(rest)


def sort_roles(folder: Path, files: Sequence[Path], layout: Layout, label: str | None) -> Roles:
    """What each file of a case is: by the layout's patterns, or by the words in its name.

    Args:
        folder: of all cases.
        files: of the case.
        layout: the layout.
        label: pattern of the masks' names, in place of the known ones; the name of the case's folder in front of a name
            is not looked at.
    """
    by_role: dict[str, dict[int, list[Path]]] = {}
    for path in files:
        if volume_suffix(path) is None:
            continue
        rank = 0
        if layout is FOLDERS:
            lone = (
                path.parent != folder
                and stands_for_file(path.parent)
                and sum(p.parent == path.parent for p in files) == 1
            )
            named = path.parent.with_name(f"{path.parent.name}.nii") if lone else path
            what = role(named, named.parent.name)
        else:
            known = layout.rank_of(path.relative_to(folder).as_posix())
            what, rank = (layout.names[known][0], known) if known is not None else (None, 0)
        if label is not None:
            bare = path.name.lower().removeprefix(path.parent.name.lower())
            fits = fnmatchcase(bare, label.lower()) or fnmatchcase(path.name.lower(), label.lower())
            what, rank = ("label", 0) if fits else (None if what == "label" else what, rank)
        if what:
            by_role.setdefault(what, {}).setdefault(rank, []).append(path)
    return {what: by_rank[min(by_rank)] for what, by_rank in by_role.items()}


def choose_channels(sorted_cases: Sequence[Roles]) -> tuple[str, ...]:
    """FLAIR where there are some; else the only channel that the cases have.

    Raises:
        ValueError: when there are several others.
    """
    counts = Counter(channel for roles in sorted_cases for channel in CHANNELS if channel in roles)
    if "FLAIR" in counts or not counts:
        return ("FLAIR",)
    if len(counts) > 1:
        shown = ", ".join(f"{channel} in {count}" for channel, count in counts.items())
        raise ValueError(f"no case has FLAIR, but {shown} of {len(sorted_cases)} cases: choose with --channels")
    return tuple(counts)


def make_case(roles: Roles, channels: Sequence[str], label: str | None) -> Case:
    """The case of sorted files.

    Raises:
        ValueError: when a channel or the mask is missing, or several files have one role.
    """
    brain = roles.get("foreground", [])
    return Case(
        patient="",
        images=[_one(roles, channel, channel) for channel in channels],
        label=_one(roles, "label", f"mask ({label})" if label else "mask (seg)"),
        foreground=_one(roles, "foreground", "brain mask") if brain else None,
    )


def _one(roles: Roles, key: str, what: str) -> Path:
    files = roles.get(key, [])
    if len(files) != 1:
        known = sorted(other for other in roles if other in CHANNELS and not files)
        there = f"; there are {', '.join(known)}" if known else ""
        raise ValueError(f"expected one {what} file, found {len(files)}: {[path.name for path in files]}{there}")
    return files[0]
