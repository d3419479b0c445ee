"""What the shipped weights say to a few images of a datalist, for a first look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.command.locations import ROOT
from scripts.inference.batches import BatchPrediction
from scripts.inference.pipeline import Inference
from scripts.inference.result_names import result_stems
from scripts.runs.folder import WEIGHTS

COUNT = 8
NOTE = (
    "The weights know T1 slices of BRISC 2025 (docs/README.md): images of it may have been in their training, other "
    "sequences are unlike all that was."
)


def some_items(datalist: Mapping[str, Any], count: int = COUNT) -> list[dict[str, Any]]:
    """Test items in turn of the classes, each class in the datalist's order; items that are slices of volumes stay out.

    Args:
        datalist: classes, test.
        count: at most so many.
    """
    by_class: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in datalist["test"]:
        if "slice" not in item and isinstance(item["image"], str):
            by_class[item.get("diagnosis", -1)].append(item)
    turns = max(map(len, by_class.values()), default=0)
    ordered = [items[i] for i in range(turns) for _, items in sorted(by_class.items()) if i < len(items)]
    return ordered[:count]


def predict_some(
    datalist: Mapping[str, Any], dataset_dir: Path, out: Path, count: int = COUNT, root: Path = ROOT
) -> str | None:
    """Predict a few test images with ``models/model.pt``; mask, evidence, overlay and result of each go to a folder.

    Args:
        datalist: see `some_items`.
        dataset_dir: folder that the datalist's paths are relative to.
        out: gets the files that `scripts.inference.batches` writes.
        count: at most so many images.
        root: folder that holds ``configs`` and ``models``.

    Returns:
        the table to print; None without shipped weights or without whole images in the test part.
    """
    items = some_items(datalist, count)
    if not items or not (root / "models" / WEIGHTS).is_file():
        return None
    images = [dataset_dir / item["image"] for item in items]
    rows = BatchPrediction(Inference(root), out, {}).run(images, result_stems(images, dataset_dir))
    names = datalist["classes"]
    lines = [("image", "listed as", "predicted", "p(tumor)", "threshold", "flags")]
    for item, row in zip(items, rows, strict=True):
        listed = names.get(str(item.get("diagnosis", -1)), "unknown").replace("_", " ")
        if row["error"]:
            lines.append((item["image"], listed, f"refused: {row['error']}", "", "", ""))
            continue
        said = row["predicted_class"] if row["tumor_detected"] else "no tumor"
        numbers = (f"{row['tumor_probability']:.3f}", f"{row['threshold']:.3f}")
        lines.append((item["image"], listed, said, *numbers, row["flags"]))
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    table = "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
    title = f"The shipped weights on {len(items)} of the test images:"
    return f"{title}\n\n{table}\n\n{NOTE}\nmasks, evidence, overlays: {out}"
