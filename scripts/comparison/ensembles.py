"""A run folder for the ensemble of trained classifiers: their weights together, calibrated on validation as they were.

Example::

    python -m scripts ensemble runs/densenet121 runs/efficientnet_b0 --run_dir runs/ensemble --dataset_dir DIR \
        --datalist_file LIST.json
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from monai.data import DataLoader, Dataset

from scripts.command.devices import chosen_device
from scripts.command.files import write_json, write_text
from scripts.command.verbs import Outcome
from scripts.comparison.trained_models import training_seconds
from scripts.data.datalists import schema as datalists
from scripts.data.preprocessing import collate, make_training_pipeline
from scripts.measures.metrics import fit_temperature, tumor_probability
from scripts.measures.thresholds import choose_threshold
from scripts.networks.classifiers import ClassifierEnsemble, ImageClassifier
from scripts.runs import folder as runs
from scripts.runs import lock
from scripts.training.checkpoints import WEIGHTS, save_atomic

logger = logging.getLogger(__name__)


def make_ensemble(
    members: Sequence[str | Path],
    run_dir: str | Path,
    dataset_dir: str,
    datalist_file: str,
    batch_size: int = 16,
    device: str | None = None,
) -> Path:
    """Write config.yaml, manifest.json, model.pt and network.yaml of an ensemble; nothing is trained.

    Temperature and threshold are fitted on the validation part, as every stage fits its own.

    Args:
        members: trained runs of `ImageClassifier`.
        run_dir: folder to write; it is a run and its only stage in one.
        dataset_dir, datalist_file: of the members.
        batch_size: validation cases at once.
        device: of the validation; None: CUDA where there is one.

    Raises:
        ValueError: when a member is no stand-alone classifier, or members differ in input size, classes or datalist.
    """
    loaded = [runs.load_run(folder) for folder in members]
    networks, manifests = [], []
    for folder, (network, config, stage) in zip(members, loaded, strict=True):
        if not isinstance(network, ImageClassifier):
            raise ValueError(f"{folder} is a {type(network).__name__}; an ensemble is made of stand-alone classifiers")
        if config["spatial_size"] != loaded[0][1]["spatial_size"]:
            raise ValueError(f"{members[0]} and {folder} were trained at different sizes; an ensemble needs one")
        manifest = runs.read_manifest(stage)
        if not datalists.same_content(datalist_file, str(manifest["datalist_sha256"])):
            raise ValueError(f"{folder} was trained on another datalist than {datalist_file}; give the one it knows")
        networks.append(network)
        manifests.append(manifest)
    place = chosen_device(device)
    ensemble = ClassifierEnsemble(networks).eval().to(place)
    first = loaded[0][1]
    datalist = runs.read_datalist(datalist_file, dataset_dir)
    items = runs.stage_items(datalist, "validation", dataset_dir, "diagnosis", {"mask": False, "diagnosis": True})
    pipeline = make_training_pipeline(
        spatial_size=first["spatial_size"], augment=False, num_classes=ensemble.num_classes
    )
    loader = DataLoader(Dataset(items, pipeline), batch_size=batch_size, num_workers=0, collate_fn=collate)
    batches = list(loader)
    with torch.no_grad():
        logits = torch.cat([ensemble(batch["image"].to(place)) for batch in batches]).numpy(force=True)
    diagnosis = np.concatenate([np.asarray(batch["diagnosis"]) for batch in batches]).astype(int)
    temperature = fit_temperature(logits, diagnosis)
    ensemble.temperature.fill_(temperature)
    ensemble.threshold.fill_(choose_threshold(tumor_probability(logits, temperature), diagnosis > 0))

    run = Path(run_dir)
    config = {
        **{key: first[key] for key in ("spatial_size", "seed")},
        **{key: first.get(key) for key in ("regions", "spacing_mm")},
        "num_classes": ensemble.num_classes,
        "dataset_dir": str(dataset_dir),
        "datalist_file": str(datalist_file),
        "members": [str(folder) for folder in members],
        "network_def": {
            "_target_": "scripts.networks.ClassifierEnsemble",
            "members": [config["network_def"] for _, config, _ in loaded],
        },
        "train_segmentation": False,
    }
    runs.start_stage(run, str(datalist_file), first["seed"], config=config)
    save_atomic(ensemble.cpu().state_dict(), run / WEIGHTS)
    written = runs.read_manifest(run)
    seconds = sum(training_seconds(stage) for _, _, stage in loaded)
    write_json({**written, "training_seconds": seconds, "finished": written["started"]}, run / runs.MANIFEST)
    write_text(
        yaml.safe_dump({"classes": datalist["classes"]}, sort_keys=False, allow_unicode=True), run / "network.yaml"
    )
    lock.release(run)
    logger.info("ensemble of %s in %s", ", ".join(map(str, members)), run)
    return run


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``ensemble``."""
    paths = arguments.members, arguments.run_dir, arguments.dataset_dir, arguments.datalist_file
    run = make_ensemble(*paths, device=arguments.device)
    return Outcome(written=[run])
