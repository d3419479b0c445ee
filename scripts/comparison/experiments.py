"""Experiments in a report, which are about more than its runs: comparison, ablation, and sources left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from scripts.comparison import comparison_files
from scripts.runs.documents import Document
from scripts.runs.reading import Run

__all__ = ["SOURCES", "Experiments", "read_experiments"]

SOURCES = "leave_one_source_out.json"
NAMES = ("comparison", "ablation")
FOLDERS = ("comparison", "ablation", "sources")  # where they are looked for if none is named


@dataclass(frozen=True)
class Experiments:
    """What a page shows of them: (id, title, finished part of the page), and the rows of leave_one_source_out.json.

    `documents` are the files that their numbers come from.
    """

    sections: list[tuple[str, str, Markup]]
    sources: Document | None
    documents: list[Document]

    @property
    def links(self) -> list[tuple[str, str]]:
        """Id and title of each."""
        entries = [(id_, title) for id_, title, _ in self.sections]
        return entries if self.sources is None else [*entries, ("sources", "Sources left out")]


def read_experiments(root: Path, runs: Sequence[Run], folders: Sequence[str | Path] | None = None) -> Experiments:
    """The experiments in some folders.

    Args:
        root: folder that the page's sources are relative to.
        runs: of the page; an experiment on another datalist than theirs is said to be on one.
        folders: each with comparison.json, ablation.json or leave_one_source_out.json; None: ``comparison``,
            ``ablation`` and ``sources`` in `root`, as far as they are there.

    Raises:
        FileNotFoundError: when a folder that is named holds none of the files.
    """
    files = (*(f"{name}.json" for name in NAMES), SOURCES)
    by_file: dict[str, Path] = {}
    for folder in [root / name for name in FOLDERS] if folders is None else map(Path, folders):
        there = {file: folder for file in files if (folder / file).is_file()}
        if folders is not None and not there:
            raise FileNotFoundError(f"{folder} holds no experiment: expected {', '.join(files[:-1])} or {files[-1]}")
        by_file |= there
    trained = {stage.manifest.value("/datalist_sha256") for run in runs for stage in run.stages}
    sections, documents = [], []
    for name in NAMES:
        place = by_file.get(f"{name}.json")
        if place is not None:
            documents.append(_document(root, place / f"{name}.json"))
            text = Markup(comparison_files.section(documents[-1]))
            if documents[-1].value("/datalist_sha256") not in trained:
                text += Markup('<p class="note">These models were trained on another datalist than the run above.</p>')
            sections.append((f"experiment-{name}", "Models" if name == "comparison" else "Ablation", text))
    place = by_file.get(SOURCES)
    sources = None if place is None else _document(root, place / SOURCES)
    return Experiments(sections, sources, documents if sources is None else [*documents, sources])


def _document(root: Path, path: Path) -> Document:
    return Document(root, Path(os.path.relpath(path, root)).as_posix())
