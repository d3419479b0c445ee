"""Ship a run's weights with the repository: ``models`` gets what inference needs, ``docs/training`` how they were made.

    python -m scripts ship runs/weights [runs/weights_continued ...]

The last run's selected weights become ``models/model.pt``, and its network, input size and classes the values of
``configs/inference.yaml``. Of every stage of every run config, manifest and curves are kept, without paths of this
machine and without pictures of the data set.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from bundle.model_card import data_description
from bundle.release import OF_VOLUMES, Weights, write_inference_config
from scripts.command.files import write_bytes
from scripts.command.verbs import Outcome
from scripts.data.datalists import schema as datalists
from scripts.inference import scope
from scripts.runs import folder as runs
from scripts.runs.checkpoint_files import WEIGHTS
from scripts.runs.prevalence import training_prevalence

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
TRAINING = Path("docs", "training")
DATALIST, EVENTS = "datalist.json", "events.out.tfevents.0.scalars"
DATASET_DIR = "DATASET_DIR"


def stage_folders(run: Path) -> list[Path]:
    """Folders of a run's finished stages, in the order of training.

    Raises:
        FileNotFoundError: when there is none.
    """
    folders = []
    for stage in (*runs.STAGES, runs.JOINT):
        manifest = run / stage / runs.MANIFEST
        if manifest.is_file() and "finished" in json.loads(manifest.read_text(encoding="utf-8")):
            folders.append(run / stage)
    if not folders:
        raise FileNotFoundError(f"{run} holds no finished stage; train it first")
    return folders


def replaced(text: str, names: Mapping[str, str]) -> str:
    """The text with each path replaced by its name, longer paths first."""
    for path in sorted(names, key=len, reverse=True):
        text = text.replace(path, names[path])
    return text


def portable_command(command: str) -> str:
    """A command line as a shell takes it from the checkout; earlier manifests held a script's path and bare values.

    >>> print(portable_command("/home/me/checkout/scripts/train.py --joint --stage3_joint {'max_epochs': 20}"))
    python -m scripts train --joint --stage3_joint "{'max_epochs': 20}"
    """
    script, _, arguments = command.partition(" ")
    if not script.endswith(".py"):
        return command
    pairs = (pair.partition(" ") for pair in f" {arguments}".split(" --")[1:])
    options = [
        f"--{key} {json.dumps(value)}" if value and shlex.quote(value) != value else f"--{key} {value}".strip()
        for key, _, value in pairs
    ]
    return " ".join([f"python -m scripts {Path(script).stem}", *options])


def _checkout(command: str, config: Mapping[str, Any]) -> Path:
    """Folder of the code that trained a run: that of the script, or the bundle's root."""
    script = Path(command.split()[0])
    return script.parents[1] if len(script.parents) > 2 else Path(config.get("bundle_root", ROOT)).resolve()


def keep_curves(stage: Path, target: Path) -> None:
    """One event file with the scalars of all of a stage's event files; pictures show the data set and stay out."""
    target.mkdir(parents=True, exist_ok=True)
    events = EventAccumulator(str(stage), size_guidance={"scalars": 0}).Reload()
    with SummaryWriter(str(target)) as writer:
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                writer.add_scalar(tag, event.value, event.step, walltime=event.wall_time)
    written = max(target.glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    os.replace(written, target / EVENTS)  # its own name holds the machine's


def datalist_of(run: Path) -> bytes:
    """The file of the datalist that a run's last stage was trained on, byte for byte: the manifest has its checksum.

    Raises:
        FileNotFoundError: when it is not there any more.
    """
    config = yaml.safe_load((stage_folders(run)[-1] / runs.CONFIG).read_text(encoding="utf-8"))
    return Path(config["datalist_file"]).read_bytes()


def keep_run(run: Path, root: Path, datalist: bytes) -> None:
    """Keep datalist, configs, manifests and curves of a run in ``docs/training/<run>``."""
    kept = root / TRAINING / run.name
    shutil.rmtree(kept, ignore_errors=True)
    for stage in stage_folders(run):
        text = (stage / runs.CONFIG).read_text(encoding="utf-8")
        config = yaml.safe_load(text)
        manifest = json.loads((stage / runs.MANIFEST).read_text(encoding="utf-8"))
        names = {
            str(config["dataset_dir"]): DATASET_DIR,
            str(config["datalist_file"]): (TRAINING / run.name / DATALIST).as_posix(),
            str(config["run_dir"]): f"runs/{run.name}",
            # Another run of the same folder, whose weights this one started from.
            f"{Path(config['run_dir']).resolve().parent}/": "runs/",
            f"{_checkout(manifest['command'], config)}/": "",
        }
        cache = config.get("cache_dir")
        if isinstance(cache, str) and Path(cache).is_absolute():  # neither none nor an expression
            names[cache] = "runs/cache"
        target = kept / stage.name
        keep_curves(stage, target)
        manifest["command"] = portable_command(manifest["command"])
        for name, content in ((runs.CONFIG, text), (runs.MANIFEST, json.dumps(manifest, indent=1) + "\n")):
            (target / name).write_text(replaced(content, names), encoding="utf-8")
    write_bytes(datalist, kept / DATALIST)


def ship(
    run_dirs: Sequence[Path], root: Path = ROOT, data_source: str | None = None, keep_earlier: bool = False
) -> Path:
    """Make the last run's weights those of the repository.

    Args:
        run_dirs: runs in the order of training, each but the first started from the weights of the one before it.
        root: checkout.
        data_source: a sentence on the training data for ``metadata.json``; None: made from the datalist.
        keep_earlier: the first run started from the weights shipped before: the runs behind those stay in
            ``docs/training``.

    Returns:
        ``models/model.pt``.

    Raises:
        FileNotFoundError: when a run has no finished stage.
    """
    # Read before anything is deleted: a run may have been trained on the very list that is kept.
    lists = [datalist_of(run) for run in run_dirs]
    if not keep_earlier:
        shutil.rmtree(root / TRAINING, ignore_errors=True)
    for run, datalist in zip(run_dirs, lists, strict=True):
        keep_run(run, root, datalist)
    stage = stage_folders(run_dirs[-1])[-1]
    config = yaml.safe_load((stage / runs.CONFIG).read_text(encoding="utf-8"))
    config["datalist_file"] = str(root / TRAINING / run_dirs[-1].name / DATALIST)
    values = {key: config[key] for key in ("spatial_size", "num_classes", "network_def")}
    values |= {key: config.get(key) for key in OF_VOLUMES}
    values["training_prevalence"] = training_prevalence(stage)
    values["classes"] = dict(datalists.read(config["datalist_file"])["classes"])
    write_inference_config(root, Weights(stage / WEIGHTS, values, data_source or data_description(config)))
    models = root / "models"
    write_bytes((stage / WEIGHTS).read_bytes(), models / WEIGHTS)
    # What the images of other weights were like; python -m scripts card measures it again.
    (models / scope.FILE).unlink(missing_ok=True)
    return models / WEIGHTS


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``ship``."""
    runs_given = [run.resolve() for run in arguments.runs]
    path = ship(runs_given, data_source=arguments.data_source, keep_earlier=arguments.keep_earlier)
    text = f"{path.name}: {path.stat().st_size / 2**20:.1f} MB"
    return Outcome(text, [path, ROOT / "configs" / "inference.yaml", ROOT / TRAINING])
