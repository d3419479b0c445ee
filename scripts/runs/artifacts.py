"""The files of an evaluation and an explanation: which parts there are, which are left over, of which weights they are.

A run is evaluated and explained again and again, with other weights and other parts. So that no page mixes them, what
an earlier one left is deleted first, and every JSON says by ``weights_sha256`` what it is of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.command.files import file_sha256, write_json
from scripts.runs.checkpoint_files import WEIGHTS
from scripts.runs.folder import last_stage

__all__ = ["EVALUATION", "EXPLANATION", "EXTRAS", "KEY", "Artifacts", "check_extras", "clear", "mark", "weights_sha256"]

KEY = "weights_sha256"
EXTRAS = ("uncertainty", "robustness", "scope")


@dataclass(frozen=True)
class Artifacts:
    """Files that one config writes.

    Attributes:
        main: the file that is always written; without it a folder holds none of them.
        marked: further JSON files made with the weights.
        others: further files.
        pictures: folders of pictures and maps.
    """

    main: str
    marked: tuple[str, ...]
    others: tuple[str, ...]
    pictures: tuple[str, ...]


EVALUATION = Artifacts(
    "metrics.json",
    ("cases.json", *(f"{name}.json" for name in EXTRAS)),
    ("data.json", "cases.csv", "patients.csv", "volumes.csv", "uncertainty_cases.csv"),
    ("figures", "cases", "uncertainty"),
)
EXPLANATION = Artifacts(
    "localization.json",
    ("gallery.json", "galleries.json", "faithfulness.json", "unavailable.json"),
    ("cases.csv", "localization.png", "faithfulness.png"),
    ("overlays", "maps", "galleries", "methods"),
)
PICTURES = (".png", ".nii.gz")


def check_extras(extras: Any) -> None:
    """Refuse a mistyped part of ``extras`` of ``configs/evaluate.yaml``, which would be left out without a word.

    Raises:
        ValueError: naming it and what there is.
    """
    known = f"expected a list of {', '.join(EXTRAS)}, or [] for none"
    if isinstance(extras, str) or not isinstance(extras, Sequence):
        raise ValueError(f"extras: {known}; got {extras!r}")
    unknown = [name for name in extras if name not in EXTRAS]
    if unknown:
        raise ValueError(f"extras: {', '.join(map(repr, unknown))} not known; {known}")


def clear(folder: str | Path, artifacts: Artifacts) -> list[Path]:
    """Delete what an earlier evaluation or explanation left in a folder, and nothing else.

    Args:
        folder: left alone where it does not hold the main file.
        artifacts: `EVALUATION` or `EXPLANATION`.

    Returns:
        the files that were deleted.
    """
    folder = Path(folder)
    if not (folder / artifacts.main).is_file():
        return []
    names = (artifacts.main, *artifacts.marked, *artifacts.others)
    paths = [folder / name for name in names if (folder / name).is_file()]
    for name in artifacts.pictures:
        paths += sorted(p for p in (folder / name).glob("*") if p.is_file() and p.name.endswith(PICTURES))
    for path in paths:
        path.unlink()
    return paths


def weights_sha256(run_dir: str | Path) -> str:
    """SHA-256 of the weights that `scripts.runs.folder.load_run` takes."""
    return file_sha256(last_stage(run_dir) / WEIGHTS)


def mark(folder: str | Path, artifacts: Artifacts, weights: str, prevalence: Mapping[str, float] | None = None) -> None:
    """Write into every JSON made with the weights which they are: under `KEY`, of a list in each of its entries; and
    under "prevalence" the one that their probabilities are for, where it is not that of the training.

    What says so already is left as it is: call it once each part is written, so that an interrupted one is marked too.

    Args:
        folder: cleared before the first part was written.
        artifacts: `EVALUATION` or `EXPLANATION`.
        weights: of `weights_sha256`.
        prevalence: share of each class.
    """
    also = {} if prevalence is None else {"prevalence": dict(prevalence)}
    for name in (artifacts.main, *artifacts.marked):
        path = Path(folder) / name
        if path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            entries = content if isinstance(content, list) else [content]
            if any(KEY not in entry for entry in entries):
                marked = [{**entry, KEY: entry.get(KEY, weights), **also} for entry in entries]
                write_json(marked if isinstance(content, list) else marked[0], path)


def marks(content: Any) -> Iterator[str | None]:
    """The weights that a JSON file of results says it is of; None where it does not say."""
    entries = content if isinstance(content, list) else [content]
    yield from dict.fromkeys(entry.get(KEY) for entry in entries)
