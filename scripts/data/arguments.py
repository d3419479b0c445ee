"""Arguments of the verb ``datalist``; what is not given is left to the functions that build datalists."""

from __future__ import annotations

import argparse
from typing import Any

from scripts.command.verbs import Parser, Verb, add_data, add_folder, add_limit, add_out, folder

__all__ = ["DIAGNOSES", "VERBS"]

SOURCES = {
    "build": "any known layout, recognized by the names in the folder (docs/data.md lists them)",
    "image_folder": "images/<class>/* with optional masks/<same stem>.png",
    "nifti_cases": "folders of cases with FLAIR, T1, T1ce or T2 and a mask (seg), as 2D slices",
    "nifti_volumes": "volumes without masks, all without a tumor",
    "dicom_series": "folders of one DICOM series each",
    "decathlon": "a dataset.json with training: [{image, label}]",
}
# Of `scripts.data.datalists.regions`, which is not imported here: arguments are light; a test holds them equal.
SCHEMES = ("tumor", "brats2012", "brats2017", "brats2023", "brats2024", "msd_task01")
DIAGNOSES = {"no_tumor": 0, "unknown": -1}


def _optional(command: Parser, name: str, text: str, **settings: Any) -> None:
    command.add_argument(name, default=argparse.SUPPRESS, help=text, **settings)


def _add_split(command: Parser) -> None:
    _optional(command, "--seed", "of the split (default: 0)", type=int, metavar="N")
    shares = ("TRAIN", "VAL", "TEST")
    _optional(
        command,
        "--fractions",
        "of the split (default: 0.6 0.15 0.25; 0 0 1: all for testing)",
        type=float,
        nargs=3,
        metavar=shares,
    )


def _add_slices(command: Parser) -> None:
    names = ("NONE", "TUMOR")
    _optional(command, "--classes", "names of the classes (default: no_tumor tumor)", nargs=2, metavar=names)
    _optional(command, "--planes", "axial, coronal or sagittal, or several (default: axial)", nargs="+")
    command.add_argument("--whole_volumes", action="store_true", help="one item a volume, for 3D networks")
    _optional(command, "--tumor_slices", "at most so many a patient (default: 5)", type=int, metavar="N")
    _optional(command, "--normal_slices", "at most so many a patient (default: 3)", type=int, metavar="N")
    _optional(command, "--min_tumor_area", "share of the slice (default: 0.003)", type=float, metavar="SHARE")
    _optional(command, "--min_foreground", "share of the slice (default: 0.1)", type=float, metavar="SHARE")
    text = "regions of the masks by scheme, or a JSON file {name: [values]} (default: any label is tumor): "
    _optional(command, "--regions", text + ", ".join(SCHEMES), metavar="SCHEME")
    text = "take volumes whose air is not 0 without a brain mask too"
    _optional(command, "--shifted_air", text, action="store_true")


def _add_distance(command: Parser) -> None:
    _optional(command, "--max_distance", "bits of 256 between near-duplicates (default: 40)", type=int, metavar="N")


def _add_source(command: Parser, name: str) -> None:
    if name == "decathlon":
        command.add_argument(
            "--file", type=folder, required=True, dest="source", metavar="FILE.json", help="dataset.json"
        )
    else:
        add_folder(command, "what lies in it is searched", required=True, dest="source")
    add_out(command, "file of the datalist; the report goes beside it", required=True)
    _optional(command, "--name", "name of the source (default: the folder's)", metavar="NAME")
    _optional(command, "--root", "dataset_dir of the result (default: the folder)", type=folder)
    _optional(command, "--patient_pattern", "regular expression for the patient in a path, in place of the rule")
    _optional(
        command,
        "--patients",
        "CSV file with the columns file,patient, in place of the rule",
        type=folder,
        metavar="FILE.csv",
    )
    command.add_argument("--strict", action="store_true", help="fail where a file cannot be used")
    text = "say what is taken for what; read and write nothing"
    command.add_argument("--dry_run", action="store_true", help=text)
    _add_split(command)
    if name == "build":
        _optional(command, "--layout", "name of the layout, where several could be right")
    if name in ("build", "image_folder"):
        add_limit(command, "images, drawn by --seed", default=argparse.SUPPRESS)
        _add_distance(command)
    if name != "image_folder":
        _add_slices(command)
    if name in ("build", "nifti_cases", "decathlon"):
        default = {"nifti_cases": "FLAIR", "decathlon": "all"}.get(name, "FLAIR, or the only one; of lists all")
        _optional(command, "--channels", f"FLAIR, T1, T1ce, T2, or several (default: {default})", nargs="+")
    if name in ("build", "nifti_cases"):
        _optional(command, "--label_pattern", "file name pattern of the masks, if they are named otherwise")
    if name not in ("nifti_cases", "decathlon"):
        default = "FLAIR" if name == "nifti_volumes" else "MRI"
        _optional(command, "--modality", f"what the images are (default: {default})")
    if name in ("build", "nifti_volumes", "dicom_series"):
        default = "no_tumor" if name == "nifti_volumes" else "unknown"
        _optional(command, "--diagnosis", f"of volumes without a mask (default: {default})", choices=DIAGNOSES)
    if name in ("build", "dicom_series"):
        _optional(command, "--masks", "folder of the masks: <folder of the series>.nii.gz", type=folder, metavar="DIR")


def _add_merge(command: Parser) -> None:
    command.add_argument("lists", type=folder, nargs="+", metavar="LIST.json", help="datalists to join")
    add_out(command, "file of the datalist; the report goes beside it", required=True)
    text = "folder of the images: one for all, or one a list; near-duplicates across lists are kept on one side"
    command.add_argument("--dataset_dir", type=folder, nargs="+", metavar="DIR", help=text)
    _optional(command, "--root", "dataset_dir of the result (default: the folder that holds all)", type=folder)
    for name, text in {
        "--binary": "classes no_tumor and tumor",
        "--mixed_modality": "allow lists of different modality",
        "--resplit": "split again in place of keeping the lists' splits",
        "--same_patients": "equal patient numbers of different sources are one person",
    }.items():
        _optional(command, name, text, action="store_true")
    _add_distance(command)
    text = "folder of the near-duplicates that earlier merges found: new images are compared with theirs, and added"
    _optional(command, "--near_index", text, type=folder, metavar="DIR")
    text = "folders that python -m scripts fingerprint wrote: images that have not changed since are not read again"
    _optional(command, "--fingerprints", text, type=folder, nargs="+", metavar="DIR")
    _add_split(command)


def _datalist(parser: Parser) -> None:
    commands = parser.add_subparsers(dest="command", metavar="WHAT", required=True, title="what")
    for name, text in SOURCES.items():
        _add_source(commands.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}."), name)
    text = "join datalists, keep or renew their splits"
    _add_merge(commands.add_parser("merge", help=text, description=f"{text[:1].upper()}{text[1:]}."))
    text = "write whole volumes of a datalist as a raw dataset of nnU-Net"
    export = commands.add_parser("nnunet", help=text, description=f"{text[:1].upper()}{text[1:]}.")
    add_data(export)
    add_out(export, "folder to write, named as nnU-Net asks: Dataset007_Phantoms", required=True)
    text = "check a datalist, its files and its splits"
    add_data(commands.add_parser("check", help=text, description=f"{text[:1].upper()}{text[1:]}."))


VERBS = (
    Verb(
        "datalist", "make, merge and check lists of images with their splits", "scripts.data.datalists.building",
        _datalist,
        "  python -m scripts datalist build --folder DIR --out data/mine.json --dry_run\n"
        "  python -m scripts datalist image_folder --folder DIR --out data/mine.json\n"
        "  python -m scripts datalist nifti_cases --folder DIR --out data/volumes.json\n"
        "  python -m scripts datalist merge data/a.json data/b.json --dataset_dir A B --out data/both.json\n"
        "  python -m scripts datalist check --dataset_dir DIR --datalist_file data/mine.json",
    ),
)  # fmt: skip
