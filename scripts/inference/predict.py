"""Predict every image of a folder or manifest: mask, evidence, overlay and result of each, and one table of all.

    python -m scripts predict FOLDER --out runs/predicted --run_dir runs/mine
    python -m scripts predict manifest.csv --out runs/predicted --processes 2
    python -m scripts predict manifest.csv --out runs/predicted --shard 3/8
    python -m scripts predict manifest.csv --out runs/predicted --processes 2 --results_to s3://bucket/prefix
    python -m scripts predict http://HOST/dicom-web/studies/UID --series UID --out runs/predicted --dicom --store

Pictures and volumes are found in all subfolders; a folder of DICOM files is one volume. The folder structure is kept
under ``--out``: ``<name>_mask``, ``<name>_evidence.nii.gz``, ``<name>_overlay.png`` and ``<name>_result.json``; the
name is the file's without its suffix, or with it where another image has the same. The table is results.csv, .json and,
with the pictures, .html. With ``--dicom``, each DICOM series also gets ``<name>_segmentation.dcm``,
``<name>_evidence.dcm`` and ``<name>_report.dcm``; see `scripts.inference.dicom_inputs` for series that are chosen by
UID, fetched, nameless, or whose objects are stored. A file that can not be used is named in the table with the reason,
and the others go on. Interrupted or run again, it continues: images whose result is there, of the same file, weights,
config and options, are not read again.

By manifest, in several processes or shard by shard, a ledger says what became of every input (see
`scripts.inference.ledger`), results lie in numbered folders, and ``--merge`` makes the one table. With ``--results_to``
these folders are in a store by its address, see `scripts.inference.stores`; ledger and table are not.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.command.files import file_sha256
from scripts.command.locations import ROOT
from scripts.command.verbs import Outcome, inference_overlays
from scripts.dicom.web import is_address
from scripts.dicom.writing import check_available
from scripts.inference.batches import BatchPrediction, summary
from scripts.inference.dicom_inputs import inputs, is_called, object_writer, store_objects
from scripts.inference.engines import by_shards, run_shards
from scripts.inference.manifest import LEDGER, is_manifest, opened, prepare
from scripts.inference.merging import merge
from scripts.inference.pipeline import Inference
from scripts.inference.stores import ResultStore

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
        backend: what runs the network's passes.
        options: values by config id.
        pictures: write overlays.
        readers: threads that read ahead.
        dicom: write DICOM objects.
        anonymous: that say nothing of the patient.
        evidence_segments: and the evidence as a Segmentation.
        results_to: address of a store that takes the files of each image; None: they stay below ``out``.
    """

    out: Path
    bundle_root: Path = ROOT
    weights: Path | None = None
    overlays: tuple[Path, ...] = ()
    device: str | None = None
    backend: str = "torch"
    options: dict[str, Any] = field(default_factory=dict)
    pictures: bool = True
    readers: int = 1
    dicom: bool = False
    anonymous: bool = False
    evidence_segments: bool = False
    results_to: str | None = None

    def __call__(self, called: Mapping[Path, str] | None = None) -> BatchPrediction:
        """Load the network.

        Args:
            called: see `BatchPrediction`.
        """
        store = None if self.results_to is None else ResultStore(self.results_to)
        inference = Inference(self.bundle_root, self.weights, self.overlays, self.device, self.options, self.backend)
        options, objects = dict(self.options), None
        if self.dicom:
            objects = object_writer(inference, options, self.anonymous, self.evidence_segments)
            options |= {"dicom": True, "anonymous": self.anonymous, "evidence_segments": self.evidence_segments}
        job = BatchPrediction(inference, self.out, options, self.pictures, self.readers, objects, called, store)
        if store is not None:
            store.claim({"inputs": file_sha256(opened(self.out).path), **job.made_by})
        return job


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``predict``; fails when some images were skipped."""
    if arguments.merge:
        manifest = opened(arguments.out)
        if arguments.folder != manifest.path:
            prepare(arguments.folder, arguments.out)
        return _merged(arguments.out)
    if arguments.readers < 1:
        raise ValueError(f"--readers is at least 1, got {arguments.readers}")
    for name in ("anonymous", "evidence_segments", "store"):
        if getattr(arguments, name) and not arguments.dicom:
            raise ValueError(f"--{name} is for the objects that --dicom writes; give both")
    if arguments.dicom:
        check_available()
    large = not is_address(arguments.folder) and (by_shards(arguments) or is_manifest(arguments.folder))
    if large and (arguments.anonymous or arguments.series or arguments.store):
        raise ValueError(
            "--series, --store and --anonymous go with a folder, a file or an address, in one process; leave out "
            "manifest, --shard and --processes"
        )
    if arguments.results_to and not large:
        raise ValueError("--results_to goes with a manifest, --shard or --processes; a folder alone keeps its results")
    if arguments.results_to:
        ResultStore(arguments.results_to).probe()  # refused here rather than in every process
    recipe = Recipe(
        out=arguments.out,
        bundle_root=arguments.bundle_root or ROOT,
        weights=arguments.weights,
        overlays=tuple(inference_overlays(arguments)),
        device=arguments.device,
        backend=arguments.backend,
        options={
            key: value
            for key in ("plane", "channel", "slice_batch_size", "mirror_axes", "assess_anyway", "prevalence")
            if (value := getattr(arguments, key)) is not None
        },
        pictures=not arguments.no_overlays,
        readers=arguments.readers,
        dicom=arguments.dicom,
        anonymous=arguments.anonymous,
        evidence_segments=arguments.evidence_segments,
        results_to=arguments.results_to,
    )
    if not large:
        return _folder(arguments, recipe)
    text = run_shards(arguments, recipe, lambda: prepare(arguments.folder, arguments.out))
    return Outcome(text, [arguments.out / LEDGER]) if text else _merged(arguments.out)


def _folder(arguments: argparse.Namespace, recipe: Recipe) -> Outcome:
    """A folder in this process, its structure kept."""
    if arguments.tries is not None:
        raise ValueError("--tries goes with --shard, --processes or a manifest; a folder is tried again each time")
    if arguments.store is True and not is_address(arguments.folder):
        raise ValueError("--store alone is for series of a DICOMweb server; give the address to store at after it")
    started = time.monotonic()
    with inputs(arguments.folder, arguments.out, arguments.series, arguments.dicom, arguments.anonymous) as sources:
        _check_others(arguments.out, [sources.called.get(image, str(image.resolve())) for image in sources.listed])
        rows = recipe(sources.called).run(sources.images, sources.stems, sources.failed)
        text = summary(rows, 0, time.monotonic() - started)
        if arguments.store:
            place = arguments.store if isinstance(arguments.store, str) else arguments.folder
            text += f"; {store_objects(arguments.out, rows, place)}"
    written = [arguments.out / name for name in ("results.csv", "results.html")]
    return Outcome(text, written, any(row["error"] for row in rows))


def _merged(out: Path) -> Outcome:
    table, counts = merge(out)
    text = ", ".join(f"{counts[name]} {name}" for name in ("done", "refused", "failed"))
    return Outcome(f"{sum(counts.values())} inputs: {text}", [table], counts["done"] < sum(counts.values()))


def _check_others(out: Path, images: Sequence[str]) -> None:
    """Refuse a folder of results whose table lists others: it would be written over.

    Args:
        out: folder of the results.
        images: whole paths of what is predicted, or what it is called.

    Raises:
        ValueError: names one of them; an image that does not exist any more counts as none.
    """
    if (out / LEDGER).is_dir():
        raise ValueError(f"{out} holds the ledger of a prediction by manifest or shards; choose another --out")
    try:
        listed = [str(row["image"]) for row in json.loads((out / "results.json").read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):  # no table, or none that was written here
        return
    for image in listed:
        path = Path(image)
        if (path.exists() and str(path.resolve()) not in images) or (is_called(image) and image not in images):
            raise ValueError(f"{out} holds the table of other images (first: {image}); choose another --out")
