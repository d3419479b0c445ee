"""The table of all cases with a viewer for some: what the page lays over each other with its own sliders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.pictures.overlays import colorize
from scripts.pictures.parts import parts_of
from scripts.pictures.planes import PicturePlane
from scripts.report.sections import class_name, uri
from scripts.runs.reading import Run

__all__ = ["Browser", "case_browser"]

ROWS = 1000  # in the table, at most
BYTES = 1_000_000  # of pictures, at most: the page stays below 3 MB
KINDS = {"worst": "lowest Dice", "misdiagnosed": "wrong diagnosis", "random": "random", "best": "highest Dice"}
COLUMNS = ("tumor_probability", "dice")


@dataclass(frozen=True)
class Browser:
    """What the page needs.

    Attributes:
        rows: of all cases: row (in cases.csv), name, source, truth, called, wrong, shown (in words, "" without a
            picture).
        pictures: by name, an address of the packed picture of `scripts.pictures.overlays.layers`.
        slices: of each picture of a volume {slices: numbers from the top of the picture, first: index of the one that
            is shown first, of: how many slices the volume has}.
        listed: how many cases cases.json has packed pictures of.
        left_out: how many cases of cases.csv are not in the table.
        colors: of the map, 256 of [red, green, blue].
        regions: drawn beside the tumor: {name, color, true and predicted: their bits in the pictures}; none where the
            tumor is the only one.
        tumor: name of the first region.
    """

    rows: list[dict[str, Any]]
    pictures: dict[str, str]
    slices: dict[str, dict[str, Any]]
    listed: int
    left_out: int
    colors: list[list[int]]
    regions: list[dict[str, Any]]
    tumor: str

    @property
    def chosen(self) -> str:
        """How many cases have pictures, by the rule that chose them."""
        words = [row["shown"] for row in self.rows if row["shown"]]
        kinds = [kind for kind in KINDS.values() if any(kind in text for text in words)]
        return ", ".join(f"{kind} {sum(kind in text for text in words)}" for kind in kinds)


def case_browser(run: Run) -> Browser:
    """The cases of a run, and pictures of those that its evaluation drew.

    Args:
        run: that is reported on.
    """
    entries = [] if run.shown_cases is None else [e for e in run.shown_cases.content if e.get("layers")]
    entries.sort(key=lambda entry: list(KINDS).index(entry["kind"]))
    kinds: dict[str, list[str]] = {}
    pictures: dict[str, str] = {}
    slices: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = entry["name"]
        if name not in pictures:
            address = uri(run.picture(entry, "layers", run.evaluation).read_bytes())
            if sum(map(len, pictures.values())) + len(address) > BYTES:
                break
            pictures[name] = address
            if entry.get("slices"):
                first = entry["slices"].index(entry["slice"])
                slices[name] = {"slices": entry["slices"], "first": first, "of": entry["of"]}
        kinds.setdefault(name, []).append(KINDS[entry["kind"]])
    rows = [_row(run, i, row, kinds) for i, row in enumerate(run.cases.content)]
    first = [row for row in rows if row["shown"]] + [row for row in rows if not row["shown"]]
    kept = sorted(first[:ROWS], key=lambda row: row["row"])
    colors = colorize(np.linspace(0, 1, 256)).tolist()
    names = next((entry["regions"] for entry in entries if entry.get("regions")), ["tumor"])
    regions = [
        {"name": part.name, "color": list(part.color), "true": 4**k, "predicted": 2 * 4**k}
        for k, part in enumerate(parts_of(names, None, None, PicturePlane(0, 1)))
    ]
    listed = len({entry["name"] for entry in entries})
    tumor = names[0].replace("_", " ")
    return Browser(kept, pictures, slices, listed, len(rows) - len(kept), colors, regions, tumor)


def _row(run: Run, i: int, row: dict[str, str], kinds: dict[str, list[str]]) -> dict[str, Any]:
    truth, called = int(row["diagnosis"]), int(row["predicted"]) if run.diagnoses else -1
    return {
        "row": i,
        **{key: row[key] for key in ("name", "source")},
        "truth": class_name(run, truth),
        "called": class_name(run, called) if run.diagnoses else "n/a",
        "wrong": run.diagnoses and truth >= 0 and truth != called,
        "shown": ", ".join(kinds.get(row["name"], [])),
        **{key: run.cases.real(f"/{i}/{key}") for key in COLUMNS if run.diagnoses or key == "dice"},
    }
