"""Shortcut audit: are source or diagnosis predictable without the brain, from the files and after our pipeline?

    python -m scripts audit --dataset_dir DIR --datalist_file LIST.json --out DIR [--limit 1000]

Features of four kinds, each alone: the air; the size of the picture; its geometry (size, and the head's outline); the
histogram of the head. Each is taken from the raw file and from what the network gets. The AUC is cross-validated with
patients (or near-duplicate groups) kept together. Writes audit.json and audit.png.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from tqdm import tqdm

from scripts.checks.observations import KINDS, STAGES, AuditJob, chosen_items, observer
from scripts.command.files import write_bytes, write_json
from scripts.command.verbs import Outcome
from scripts.data.datalists import schema as datalists
from scripts.data.datalists.clusters import clusters as clusters_of
from scripts.inference.item_shards import in_shards
from scripts.measures.shortcuts import LIMITS, MIN_UNITS, auc_by_value
from scripts.pictures.figures import COLORS, STYLE, png

logger = logging.getLogger(__name__)

PLURAL = {"source": "sources", "diagnosis": "diagnoses"}
ADVICE = {
    ("air", "before"): "expected in raw files; after the pipeline it must be gone",
    (
        "air",
        "after",
    ): "air reaches the network: is the pipeline that of scripts.data.preprocessing, ending with the mask?",
    ("size", "before"): "the files' sizes give it away; a network that gets them resized, without a crop to the head, "
    "sees it in the proportions",
    ("size", "after"): "the network's input differs in size: is the pipeline that of scripts.data.preprocessing?",
    ("geometry", "before"): "expected where collections differ in size; a network that resizes files as they are, "
    "without cropping to the head, learns it",
    (
        "geometry",
        "after",
    ): "the heads' outlines differ (plane, cut field of view, skull-stripping): balance these across "
    "{many}, use stronger affine augmentation, and evaluate per source",
    (
        "histogram",
        "before",
    ): "expected where scanners, contrast or file formats differ; normalization takes a part of it",
    (
        "histogram",
        "after",
    ): "contrast separates the {many}: mix sources within each class, use intensity augmentation "
    "(make_augmentation, strength 1 or more), and test on a source that was not trained on",
}


def audit(
    datalist: dict[str, Any],
    dataset_dir: str | Path,
    spatial_size: int = 256,
    limit: int | None = None,
    seed: int = 0,
    parts: Sequence[str] = datalists.SPLITS,
    progress: bool = True,
) -> dict[str, Any]:
    """Audit a datalist.

    Args:
        datalist: validated.
        dataset_dir: folder that its paths are relative to.
        spatial_size: side of the network's grid, pixels.
        limit: at most so many items, drawn by the seed.
        seed: of subsample and folds.
        parts: parts of the datalist to take together.
        progress: show a progress bar.

    Returns:
        ``{"name", "n", "clusters", "limits", "rows", "unusable"}``. A row: target ("source" or "diagnosis"), value
        (name of the source or class, "tumor" for any tumor against none), features (one of air, size, geometry,
        histogram), stage ("before": the raw file, "after": what the network gets), the figures of
        ``scripts.measures.shortcuts.auc_by_value``, ``limit`` and ``flagged``.

    Raises:
        ValueError: when no item can be used, or there is one source and one diagnosis only.
    """
    items = chosen_items(datalist, parts, limit, seed)
    one = observer(items, dataset_dir, spatial_size)
    seen = [one(number) for number in tqdm(range(len(items)), desc="Auditing", disable=not progress)]
    return audit_of(datalist, items, seen, spatial_size, seed)


def audit_of(
    datalist: dict[str, Any],
    items: Sequence[dict[str, Any]],
    seen: Sequence[dict[str, Any]],
    spatial_size: int,
    seed: int,
) -> dict[str, Any]:
    """What `audit` returns, of what was seen of the items.

    Raises:
        ValueError: when no item can be used, or there is one source and one diagnosis only.
    """
    kept = [item for item, seen_of in zip(items, seen, strict=True) if "reason" not in seen_of]
    observed = [seen_of for seen_of in seen if "reason" not in seen_of]
    unusable = [
        {"image": item["image"], "reason": seen_of["reason"]}
        for item, seen_of in zip(items, seen, strict=True)
        if "reason" in seen_of
    ]
    if not kept:
        raise ValueError(f"none of the {len(items)} items of {datalist.get('name')!r} can be used")
    clusters = clusters_of(kept)
    targets = _targets(kept, observed, datalist["classes"])
    rows = [
        row
        for name, values in targets
        for row in _rows(name, values, observed, clusters, seed, datalist["classes"]["0"])
    ]
    if not rows:
        raise ValueError("nothing to audit: one source and one diagnosis only, so there is nothing to separate")
    return {
        "name": datalist.get("name", ""),
        "n": len(kept),
        "clusters": len(set(clusters)),
        "spatial_size": spatial_size,
        "limits": LIMITS,
        "rows": rows,
        "unusable": unusable,
    }


def _targets(
    items: Sequence[dict[str, Any]], observed: Sequence[dict[str, Any]], classes: dict[str, str]
) -> list[tuple[str, list[str | None]]]:
    """(target, value of each item or None where it is not known)."""
    known = [int(item.get("diagnosis", -1)) for item in items]
    voxels = [one["tumor"]["label"]["voxels"] for one in observed]
    any_tumor = ["tumor" if d > 0 or v > 0 else "none" if d == 0 or v == 0 else None
                 for d, v in zip(known, voxels, strict=True)]  # fmt: skip
    targets: list[tuple[str, list[str | None]]] = [
        ("source", [str(item.get("source", "unknown")) for item in items]),
        ("diagnosis", list(any_tumor)),
    ]
    if len(classes) > 2:
        targets.append(("diagnosis", [classes[str(d)] if d >= 0 else None for d in known]))
    return targets


def _rows(
    target: str,
    values: Sequence[str | None],
    observed: Sequence[dict[str, Any]],
    clusters: Sequence[str],
    seed: int,
    without: str,
) -> list[dict[str, Any]]:
    at = [k for k, value in enumerate(values) if value is not None]
    rows = []
    for kind in KINDS:
        for stage in STAGES:
            features = [observed[k][kind][stage] for k in at]
            for row in auc_by_value(features, [values[k] for k in at], [clusters[k] for k in at], seed) if at else []:
                if target == "diagnosis" and row["value"] == without:
                    continue  # the same as any tumor against none
                limit, low = LIMITS[kind], row["auc_ci95"][0]
                flagged = row["auc"] is not None and row["auc"] > limit and low > 0.5
                rows.append({"target": target, "features": kind, "stage": stage, **row, "limit": limit,
                             "flagged": flagged})  # fmt: skip
    return rows


def figure(result: dict[str, Any]) -> bytes:
    """Draw the AUCs, before and after the pipeline, with intervals and limits; returns a PNG."""
    values = list(dict.fromkeys((row["target"], row["value"]) for row in result["rows"]))
    with matplotlib.rc_context(STYLE):
        chart = Figure(figsize=(12.5, 1.9 + 0.62 * len(values)), dpi=150, layout="constrained")
        panels = chart.subplots(1, len(KINDS), sharey=True, squeeze=False)[0]
        for panel, kind in zip(panels, KINDS, strict=True):
            _draw_panel(panel, kind, values, result["rows"])
        panels[0].set_yticks(range(len(values)), [_label(target, value) for target, value in values])
        panels[0].set_ylim(len(values) - 0.5, -0.5)
        handles, labels = panels[0].get_legend_handles_labels()
        chart.legend(handles, labels, loc="outside lower center", ncols=4)
        chart.suptitle(
            f"Predicted without the brain: {result['name']}, {result['n']} images, {result['clusters']} patients "
            "or groups",
            fontsize=11, x=0.01, ha="left",
        )  # fmt: skip
        return png(chart)


def _label(target: str, value: str) -> str:
    return f"source: {value}" if target == "source" else "any tumor" if value == "tumor" else f"class: {value}"


def _draw_panel(panel: Any, kind: str, values: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]]) -> None:
    panel.set_title(f"{kind} only")
    panel.axvline(0.5, color="#888888", linewidth=1, label="chance")
    styles = {"before": (COLORS[5], "o", -0.17, "raw file"), "after": (COLORS[0], "s", 0.17, "after the pipeline")}
    for stage, (color, marker, shift, name) in styles.items():
        points = [row for row in rows if row["features"] == kind and row["stage"] == stage and row["auc"] is not None]
        y = [values.index((row["target"], row["value"])) + shift for row in points]
        x = [row["auc"] for row in points]
        low = [max(0.0, row["auc"] - row["auc_ci95"][0]) for row in points]
        high = [max(0.0, row["auc_ci95"][1] - row["auc"]) for row in points]
        panel.errorbar(x, y, xerr=[low, high], fmt=marker, color=color, markersize=6, capsize=2.5, label=name)
        for row, place in zip(points, y, strict=True):
            weight = "bold" if row["flagged"] else "normal"
            text = f"{row['auc']:.2f}" + (" !" if row["flagged"] else "")
            panel.annotate(text, (1.06, place), va="center", ha="left", fontsize=8.5, weight=weight, color=color)
    limit = LIMITS[kind]
    for place in range(len(values)):
        panel.plot([limit] * 2, [place - 0.38, place + 0.38], color=COLORS[1], linewidth=1.4, linestyle=":",
                   label="limit" if place == 0 else None)  # fmt: skip
    panel.set_xlim(0.35, 1.24)
    panel.set_xticks([0.4, 0.6, 0.8, 1.0])
    panel.set_xlabel("AUC, cross-validated")
    panel.grid(axis="y", visible=False)


def summary(result: dict[str, Any]) -> str:
    """A table of the AUCs, what is flagged and what to do about it, in plain words."""
    lines = [f"{result['name']}: {result['n']} images of {result['clusters']} patients or groups", ""]
    lines.append(f"{'':<20}" + "".join(f"{kind + ' ' + stage:<19}" for kind in KINDS for stage in STAGES).rstrip())
    by_place = {(r["target"], r["value"], r["features"], r["stage"]): r for r in result["rows"]}
    for target, value in dict.fromkeys((row["target"], row["value"]) for row in result["rows"]):
        cells = [by_place[target, value, kind, stage] for kind in KINDS for stage in STAGES]
        lines.append(f"{_label(target, value)[:19]:<20}" + "".join(f"{_cell(row):<19}" for row in cells).rstrip())
    lines += [
        "",
        "AUC (95 % interval); 0.50 is chance; ! is above the limit. Before: the file; after: the network's input.",
    ]
    for stage in ("after", "before"):
        flagged = [row for row in result["rows"] if row["flagged"] and row["stage"] == stage]
        title = {"after": "Remains after the pipeline", "before": "In the raw files"}[stage]
        lines += ["", f"{title}: {'nothing above the limits' if not flagged else ''}".rstrip()]
        for row in flagged:
            lines.append(
                f"  {_label(row['target'], row['value'])} from {row['features']}: AUC {row['auc']:.2f} (limit "
                f"{row['limit']:.2f}); strongest alone: {row['strongest']} ({row['strongest_auc']:.2f})"
            )
        for kind, target in dict.fromkeys((row["features"], row["target"]) for row in flagged):
            lines.append(f"  -> {kind}: {ADVICE[kind, stage].format(many=PLURAL[target])}")
    unmeasured = [row for row in result["rows"] if row["auc"] is None and row["stage"] == "after"]
    for name in dict.fromkeys(_label(row["target"], row["value"]) for row in unmeasured):
        lines.append(f"not measured: {name}: fewer than {MIN_UNITS} patients or groups on one side")
    if result["unusable"]:
        lines += ["", f"{len(result['unusable'])} images could not be used; audit.json lists them with the reason"]
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["auc"] is None:
        return "-"
    low, high = row["auc_ci95"]
    return f"{row['auc']:.2f} ({low:.2f}-{high:.2f})" + (" !" if row["flagged"] else "")


def write_audit(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write audit.json and audit.png of a result of `audit` into a folder; their paths."""
    written = [folder / "audit.json", folder / "audit.png"]
    write_json(result, written[0])
    write_bytes(figure(result), written[1])
    return written


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``audit``; fails when an image was skipped, with ``--strict`` also if anything is flagged at the end."""
    datalist = datalists.read(arguments.datalist_file, arguments.dataset_dir)
    size, seed = arguments.spatial_size, arguments.seed
    chosen = (arguments.limit, seed, tuple(arguments.parts))
    job = AuditJob(arguments.datalist_file, arguments.dataset_dir, size, *chosen)
    seen = in_shards(arguments, job, arguments.datalist_file, arguments.out, lambda: len(job.items()))
    if isinstance(seen, str):
        return Outcome(seen, [arguments.out])
    if seen is None:
        result = audit(datalist, arguments.dataset_dir, size, *chosen)
    else:
        result = audit_of(datalist, job.items(), seen, size, seed)
    written = write_audit(result, arguments.out)
    flagged = any(row["flagged"] and row["stage"] == "after" for row in result["rows"])
    failed = bool(result["unusable"]) or (arguments.strict and flagged)
    return Outcome(summary(result) + "\n", written, failed)
