"""Predict every image of a folder or manifest: mask, evidence, overlay and result of each, and one table of all.

    python -m scripts predict FOLDER --out runs/predicted --run_dir runs/mine
    python -m scripts predict manifest.csv --out runs/predicted --processes 2
    python -m scripts predict manifest.csv --out runs/predicted --shard 3/8

Pictures and volumes are found in all subfolders; a folder of DICOM files is one volume. The folder structure is kept
under ``--out``: ``<name>_mask``, ``<name>_evidence.nii.gz``, ``<name>_overlay.png`` and ``<name>_result.json``; the
name is the file's without its suffix, or with it where another image has the same. The table is results.csv, .json and,
with the pictures, .html. With ``--dicom``, each DICOM series also gets ``<name>_segmentation.dcm``,
``<name>_evidence.dcm`` and ``<name>_report.dcm``. A file that can not be used is named in the table with the reason,
and the others go on. Interrupted or run again, it continues: images whose result is there, of the same file, weights,
config and options, are not read again.

By manifest, in several processes or shard by shard, a ledger says what became of every input (see
`scripts.inference.ledger`), results lie in numbered folders, and ``--merge`` makes the one table.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.command.locations import ROOT
from scripts.command.verbs import Outcome, inference_overlays
from scripts.dicom.writing import ObjectWriter, check_available, only_series
from scripts.inference.batches import BatchPrediction, summary
from scripts.inference.image_files import find_images
from scripts.inference.ledger import TRIES
from scripts.inference.manifest import LEDGER, is_manifest, opened, prepare
from scripts.inference.merging import merge
from scripts.inference.pipeline import Inference
from scripts.inference.result_names import result_stems
from scripts.inference.shards import run_local, run_shard
from scripts.inference.slurm_jobs import check_available as check_submitit
from scripts.inference.slurm_jobs import run_slurm, settings_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What a process needs to predict like every other; plain values, to be sent to it.

    Attributes:
        out: folder of the results.
        bundle_root: folder with ``configs`` and ``models``.
        weights: state dict; None: as the config says.
        overlays: config files merged over the inference config.
        device: "cpu", "cuda", ...; None: as the config says.
        options: values by config id.
        pictures: write overlays.
        readers: threads that read ahead.
        dicom: write DICOM objects.
        anonymous: that say nothing of the patient.
    """

    out: Path
    bundle_root: Path = ROOT
    weights: Path | None = None
    overlays: tuple[Path, ...] = ()
    device: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    pictures: bool = True
    readers: int = 1
    dicom: bool = False
    anonymous: bool = False

    def __call__(self) -> BatchPrediction:
        """Load the network."""
        inference = Inference(self.bundle_root, self.weights, self.overlays, self.device, self.options)
        options, objects = dict(self.options), None
        if self.dicom:
            made_by = {**inference.identity(), "options": dict(options)}
            objects = ObjectWriter(made_by, inference.metadata["intended_use"], self.anonymous)
            options |= {"dicom": True, "anonymous": self.anonymous}
        return BatchPrediction(inference, self.out, options, self.pictures, self.readers, objects=objects)


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``predict``; fails when some images were skipped."""
    if arguments.merge:
        found = opened(arguments.out)
        if arguments.folder != found.path:
            prepare(arguments.folder, arguments.out)
        return _merged(arguments.out)
    if arguments.readers < 1:
        raise ValueError(f"--readers is at least 1, got {arguments.readers}")
    if arguments.anonymous and not arguments.dicom:
        raise ValueError("--anonymous is for the objects that --dicom writes; give both")
    if arguments.dicom:
        check_available()
    recipe = Recipe(
        out=arguments.out,
        bundle_root=arguments.bundle_root or ROOT,
        weights=arguments.weights,
        overlays=tuple(inference_overlays(arguments)),
        device=arguments.device,
        options={
            key: value
            for key in ("plane", "channel", "slice_batch_size", "assess_anyway", "prevalence")
            if (value := getattr(arguments, key)) is not None
        },
        pictures=not arguments.no_overlays,
        readers=arguments.readers,
        dicom=arguments.dicom,
        anonymous=arguments.anonymous,
    )
    if arguments.shard is not None:
        return _one_shard(arguments, recipe)
    if arguments.engine or arguments.processes is not None or is_manifest(arguments.folder):
        return _all_shards(arguments, recipe)
    return _folder(arguments, recipe)


def _folder(arguments: argparse.Namespace, recipe: Recipe) -> Outcome:
    """A folder in this process, its structure kept."""
    if arguments.tries is not None:
        raise ValueError("--tries goes with --shard, --processes or a manifest; a folder is tried again each time")
    job = recipe()
    started = time.monotonic()
    found = find_images(arguments.folder, arguments.out)
    for note in found.notes():
        logger.info("%s", note)
    _check_others(arguments.out, [*found.images, *(path for path, _ in found.failed)])
    if arguments.dicom:
        found.images, others = only_series(found.images)
        found.failed += others
    rows = job.run(found.images, result_stems(found.images, arguments.folder), found.failed)
    text = summary(rows, 0, time.monotonic() - started)
    written = [arguments.out / name for name in ("results.csv", "results.html")]
    return Outcome(text, written, any(row["error"] for row in rows))


def _one_shard(arguments: argparse.Namespace, recipe: Recipe) -> Outcome:
    shard = _shard(arguments.shard)
    if arguments.processes is not None or arguments.engine:
        raise ValueError("--processes and --engine run all shards; give them or --shard")
    manifest = prepare(arguments.folder, arguments.out)
    counted = Counter[str]()

    def report(count: int) -> None:
        counted["settled"] += count

    run_shard(recipe(), manifest, shard, _tries(arguments), report)
    text = f"shard {shard[0]} of {shard[1]}: {counted['settled']} of {manifest.rows} inputs; --merge makes the table"
    return Outcome(text, [manifest.path.parent])


def _all_shards(arguments: argparse.Namespace, recipe: Recipe) -> Outcome:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = cores if arguments.processes is None else arguments.processes
    if processes < 1:
        raise ValueError(f"--processes is at least 1, got {processes}")
    settings = settings_of(arguments.slurm)
    if arguments.engine == "slurm":
        check_submitit()
    elif settings:
        raise ValueError("--slurm is for the jobs of --engine slurm; give both")
    manifest = prepare(arguments.folder, arguments.out)
    processes = min(processes, manifest.rows)
    if arguments.engine == "slurm":
        run_slurm(recipe, manifest, processes, _tries(arguments), settings)
    else:
        run_local(recipe, manifest, processes, _tries(arguments), max(1, cores // processes))
    return _merged(arguments.out)


def _merged(out: Path) -> Outcome:
    table, counts = merge(out)
    text = ", ".join(f"{counts[name]} {name}" for name in ("done", "refused", "failed"))
    return Outcome(f"{sum(counts.values())} inputs: {text}", [table], counts["done"] < sum(counts.values()))


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"--shard is a number and how many there are, 1/8 to 8/8, got {text!r}")
    return number, count


def _tries(arguments: argparse.Namespace) -> int:
    tries = TRIES if arguments.tries is None else arguments.tries
    if not 1 <= tries <= 1000:
        raise ValueError(f"--tries is from 1 to 1000, got {tries}")
    return tries


def _check_others(out: Path, images: Sequence[Path]) -> None:
    """Refuse a folder of results whose table lists other images that still exist: it would be written over.

    Raises:
        ValueError: names one of them.
    """
    if (out / LEDGER).is_dir():
        raise ValueError(f"{out} holds the ledger of a prediction by manifest or shards; choose another --out")
    try:
        listed = [Path(row["image"]) for row in json.loads((out / "results.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):  # no table, or none that was written here
        return
    own = {str(image.resolve()) for image in images}
    for image in listed:
        if image.exists() and str(image.resolve()) not in own:
            raise ValueError(f"{out} holds the table of other images (first: {image}); choose another --out")
