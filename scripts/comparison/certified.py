"""What interventions say about the models of an experiment: their certificates beside each other, over seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.certificate.certify import FOLDER, certify_run
from scripts.command.files import write_json, write_text
from scripts.runs.artifacts import weights_sha256

__all__ = ["FIGURES", "certify_missing", "figures", "table", "write"]

FILE = "interventions"
# So many pictures of either side are asked with each probe: enough for the certificate to name what is read.
PROBED = 20


def certify_missing(run_dir: Path, paths: Mapping[str, str], part: str = "test", **options: Any) -> Path:
    """Certify a run whose certificate is missing, of other weights than it has now, or without probes.

    Args:
        run_dir: trained run.
        paths: dataset_dir and datalist_file.
        part: of the datalist.
        options: of `scripts.certificate.certificate.certify`.

    Returns:
        causal.json.
    """
    path = run_dir / FOLDER / "causal.json"
    if not path.is_file() or not _current(_read(path), weights_sha256(run_dir)):
        data = (Path(paths["dataset_dir"]), Path(paths["datalist_file"]))
        certify_run(run_dir, *data, part=part, harmless=0, probes=PROBED, **options)
    return path


def _current(certificate: Mapping[str, Any], identity: str) -> bool:
    return certificate["identity"] == identity and certificate.get("options", {}).get("probes", 0) >= PROBED


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _share(test: str, measure: str, moment: str) -> Callable[[Mapping[str, Any]], float | None]:
    """Mean over the ways of an intervention of a share before it, after it, or after its control."""

    def read(certificate: Mapping[str, Any]) -> float | None:
        rows = [
            row[moment]
            for row in certificate["rows"]
            if (row["test"], row["measure"], row["part"]) == (test, measure, "all")
        ]
        return float(np.mean(rows)) if rows else None

    return read


def worst_probe(certificate: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The probe that changes most verdicts, of `scripts.certificate.effects.Answers.probes`; None: none was asked."""
    rows = [row for row in certificate.get("probes", []) if row["changed"] is not None]
    return max(rows, key=lambda row: row["changed"], default=None)


def _probe(key: str) -> Callable[[Mapping[str, Any]], float | None]:
    def read(certificate: Mapping[str, Any]) -> float | None:
        row = worst_probe(certificate)
        return None if row is None else row[key]

    return read


# Title of a column, and what it reads of causal.json.
FIGURES: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "as they are": _share("removal", "called tumor", "before"),
    "painted out": _share("removal", "called tumor", "after"),
    "its control": _share("removal", "called tumor", "control"),
    "healthy": _share("transplant", "called tumor", "before"),
    "moved in": _share("transplant", "called tumor", "after"),
    "its kind": _share("transplant", "called that kind", "after"),
    "moved, control": _share("transplant", "called tumor", "control"),
    "worst probe": _probe("changed"),
    "probe, control": _probe("control"),
}
ANSWERS = {
    "contradict": ("contradictions", "raw"),
    "both right": ("both_right", "raw"),
    "uncertain": ("uncertain_rate",),
}


def figures(run_dir: Path) -> dict[str, float | None]:
    """Figures of one certified and evaluated run; None where an intervention was not possible.

    Raises:
        OSError: when it was not certified or not evaluated.
    """
    certificate = _read(run_dir / FOLDER / "causal.json")
    answers = _read(run_dir / "evaluation" / "metrics.json")["test"]["overall"]["answers"]
    values = {title: read(certificate) for title, read in FIGURES.items()}
    for title, keys in ANSWERS.items():
        entry = answers
        for key in keys:
            entry = entry[key]
        values[title] = float(entry["mean"])
    return values


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "n/a"
    text = f"{np.mean(known):.2f}"
    return text if len(known) == 1 else f"{text} ({min(known):.2f} to {max(known):.2f})"


def table(rows: Mapping[str, Sequence[Mapping[str, float | None]]]) -> str:
    """Plain text, a line a model: mean over its seeds, with the lowest and the highest.

    Args:
        rows: title of each model to the figures of its seeds.

    >>> print(table({"ours": [{"painted out": 0.25}, {"painted out": 0.35}], "stock": [{"painted out": 0.9}]}))
    | model | seeds | painted out |
    |---|---|---|
    | ours | 2 | 0.30 (0.25 to 0.35) |
    | stock | 1 | 0.90 |
    """
    columns = list(next(iter(rows.values()))[0])
    lines = [["model", "seeds", *columns]]
    for title, seeds in rows.items():
        lines.append([title, str(len(seeds)), *(_cell([seed[column] for seed in seeds]) for column in columns)])
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(lines[0]) + "|", *body])


def _probes(folders: Mapping[str, Sequence[Path]]) -> str:
    """Which probe is the worst of each model, by seed."""
    lines = []
    for title, seeds in folders.items():
        worst = [worst_probe(_read(folder / FOLDER / "causal.json")) for folder in seeds]
        said = ", ".join("none asked" if row is None else f"{row['probe']} {row['changed']:.2f}" for row in worst)
        if said:
            lines.append(f"worst probe of {title}: {said}")
    return "\n".join(lines)


def write(folders: Mapping[str, Sequence[Path]], out: Path) -> str:
    """Write interventions.json and interventions.md of certified runs.

    Args:
        folders: title of each model to the folders of its seeds.
        out: folder to write to.

    Returns:
        the table, and which probe is the worst of each.
    """
    rows = {title: [figures(folder) for folder in seeds] for title, seeds in folders.items() if seeds}
    text = f"{table(rows)}\n\n{_probes(folders)}"
    named = {
        title: {folder.name: row for folder, row in zip(folders[title], rows[title], strict=True)} for title in rows
    }
    write_json(named, out / f"{FILE}.json")
    write_text(text + "\n", out / f"{FILE}.md")
    return text
