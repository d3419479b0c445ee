"""Which images the scope of the weights flags, of kinds that it was fitted with and of kinds left out of the fit.

    python -m benchmarks.scope --dataset_dir DIR --datalist_file LIST.json [--run_dir RUN] [--volumes A.nii.gz ...]

Needs the scope of the weights (``python -m scripts scope``). Inside are test pictures of the datalist; foreign are
drawn pictures, test pictures changed to other contrasts, and the slices of the given volumes. For each kind the AUROC
against the inside, by picture, and the share that is flagged or refused; for each volume the share of its slices that
is flagged, and whether the volume is.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.verbs import Parser, add_data, add_out, add_weights, folder, inference_overlays
from scripts.evaluation.items import evaluated_items
from scripts.evaluation.scope_evaluation import compare, foreign_images
from scripts.evaluation.scope_fit import item_features
from scripts.evaluation.uncertainty_evaluation import draw
from scripts.inference import scope
from scripts.inference.pipeline import Inference
from scripts.inference.scans import Scan
from scripts.runs.folder import read_datalist

FITTED, LEFT_OUT = "fitted with", "left out of the fit"


def pictures(inference: Inference, items: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """A row for the pictures inside, and one for each foreign kind that is made of them or drawn."""
    pipeline = inference.preprocessing[0].pipeline
    reference = scope.load(inference.weights.parent)
    values, kept, reasons = item_features(inference.network, items, pipeline)
    inside = reference.score(values)
    rows: list[dict[str, Any]] = [
        {"name": "inside", "kind": "inside", "n": len(items), "recognized": float((inside > 1).mean()), "auroc": None}
    ]
    rows[0]["refused"] = len(reasons)
    clusters = [str(i) for i in kept]
    every: dict[str, list[np.ndarray]] = {FITTED: [], LEFT_OUT: []}
    for foreign in foreign_images(inference.network, items, pipeline, {}, count=count):
        scores = reference.score(foreign.values) if len(foreign.values) else np.empty(0)
        kind = LEFT_OUT if foreign.left_out else FITTED
        every[kind].append(scores)
        figures = compare(inside, clusters, scores, foreign.clusters, len(foreign.refusals))
        rows.append({"name": foreign.name, "kind": kind, **figures})
    for kind, of_kind in every.items():
        away = np.concatenate(of_kind)
        figures = compare(inside, clusters, away, [str(i) for i in range(len(away))], 0)
        rows.append({"name": f"all {kind}", "kind": kind, **figures})
    return rows


def volumes(inference: Inference, files: Sequence[Path]) -> list[dict[str, Any]]:
    """A row a volume: slices that vote, share of them that is flagged, and whether the volume is."""
    rows = []
    for file in files:
        item = inference.prepare({"image": str(file)})
        scores = inference.infer(item)["scope_slice"].numpy()
        votes = scope.votes_of(Scan.of(item["image"]))
        counting = scope.voting(scores, votes)
        rows.append(
            {
                "volume": f"{file.parent.name}/{file.name}",
                "slices": len(counting),
                "flagged_share": float((counting > 1).mean()),
                "score": scope.vote(scores, votes),
            }
        )
    return rows


def table(of_pictures: Sequence[Mapping[str, Any]], of_volumes: Sequence[Mapping[str, Any]]) -> str:
    """Rows as two Markdown tables."""
    lines = ["| pictures | kind | n | flagged or refused | AUROC |", "|---|---|---|---|---|"]
    for row in of_pictures:
        auroc = "" if row["auroc"] is None else f"{row['auroc']:.3f}"
        lines.append(f"| {row['name']} | {row['kind']} | {row['n']} | {row['recognized']:.1%} | {auroc} |")
    if of_volumes:
        flagged = sum(row["score"] > 1 for row in of_volumes)
        lines += ["", "| volume | slices | of them flagged | flagged |", "|---|---|---|---|"]
        for row in of_volumes:
            said = "yes" if row["score"] > 1 else "no"
            lines.append(f"| {row['volume']} | {row['slices']} | {row['flagged_share']:.0%} | {said} |")
        lines.append(f"| all | {len(of_volumes)} volumes | | {flagged} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = Parser(prog="python -m benchmarks.scope", description=(__doc__ or "").partition("\n")[0])
    add_data(parser)
    add_weights(parser)
    parser.add_argument("--volumes", type=folder, nargs="*", default=[], help="volumes of other sequences")
    parser.add_argument("--cases", type=int, default=200, help="test pictures (default: 200)")
    parser.add_argument("--count", type=int, default=24, help="pictures of each foreign kind (default: 24)")
    add_out(parser, "file to write the rows to as JSON")
    measure(parser.parse_args(argv))


def measure(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    inference = Inference(weights=arguments.weights, overlay=inference_overlays(arguments), device=arguments.device)
    datalist = read_datalist(str(arguments.datalist_file), str(arguments.dataset_dir))
    items = evaluated_items(datalist, "test", str(arguments.dataset_dir))
    of_pictures = pictures(inference, [items[i] for i in draw(items, arguments.cases)], arguments.count)
    of_volumes = volumes(inference, arguments.volumes)
    if arguments.out:
        write_json({"pictures": of_pictures, "volumes": of_volumes}, arguments.out)
    print(table(of_pictures, of_volumes))


if __name__ == "__main__":
    with errors.one_sentence_errors():
        main()
