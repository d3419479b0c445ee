"""The run folder: what a stage is given, what it writes beside its weights, and how a finished one is read."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser

from scripts import datalists, parallel
from scripts.checkpoint_files import CHECKPOINT, WEIGHTS, load_weights
from scripts.networks import MultiTaskDynUNet
from scripts.preprocessing import resolve_items

logger = logging.getLogger(__name__)

CHANGES = "+changes"  # behind the commit of a checkout that is not as committed
PACKAGES = ("torch", "monai", "numpy", "pytorch-ignite", "nibabel", "itk", "scikit-learn", "scikit-image", "scipy")
STAGES = ("stage1_segmentation", "stage2_classification", "stage3_joint")
JOINT = "joint"  # one stage in place of the three, from random weights
CONFIG, MANIFEST = "config.yaml", "manifest.json"


def read_datalist(datalist_file: str | None, dataset_dir: str | None) -> dict[str, Any]:
    """The validated datalist of a run.

    Raises:
        ValueError: when one of the two required paths is not given.
        FileNotFoundError: when one of them does not exist.
    """
    for name, value in (("dataset_dir", dataset_dir), ("datalist_file", datalist_file)):
        if value is None:
            raise ValueError(f"{name} is required; give it as --{name} PATH")
    if not Path(str(dataset_dir)).is_dir():
        raise FileNotFoundError(f"dataset_dir {dataset_dir} is not a folder")
    return datalists.read(str(datalist_file))


def num_classes(datalist: dict[str, Any]) -> int:
    """Number of classes K of a datalist, "no tumor" included."""
    return len(datalist["classes"])


def count_classes(datalist_file: str | None, dataset_dir: str | None, classes: dict[str, str]) -> int:
    """Number of classes of a datalist file; without one (MONAI Label gives none), of the config's classes."""
    return len(classes) if datalist_file is None else num_classes(read_datalist(datalist_file, dataset_dir))


def stage_items(datalist: dict[str, Any], part: str, dataset_dir: str, need: str = "any") -> list[dict[str, Any]]:
    """Items of a part with absolute paths.

    Args:
        datalist: from `read_datalist`.
        part: "training", "validation" or "test".
        dataset_dir: folder that the paths are relative to.
        need: "any", "mask" (items with a mask) or "diagnosis" (items whose class is known or follows from a mask).

    Raises:
        ValueError: when nothing is left.
    """
    tests = {
        "any": lambda item: True,
        "mask": lambda item: "label" in item,
        "diagnosis": lambda item: "diagnosis" in item or "label" in item,
    }
    if need not in tests:
        raise ValueError(f"items is one of {', '.join(tests)}, got {need!r}")
    chosen = [item for item in datalist.get(part, []) if tests[need](item)]
    if not chosen:
        raise ValueError(
            f"the {part!r} part of datalist {datalist.get('name')!r} has no item"
            + ("" if need == "any" else f" with a {need}")
        )
    return resolve_items(chosen, dataset_dir)


def start_stage(
    stage_dir: str | Path,
    datalist_file: str | None,
    seed: int,
    config: dict[str, Any] | None = None,
    items: Sequence[dict[str, Any]] = (),
    bundle_root: str | None = None,
    **resolved: Any,
) -> None:
    """Write config.yaml and manifest.json of a stage, in the first process; the others wait.

    Without a config it is that of the ``monai.bundle run`` command in ``sys.argv``, or what the folder holds (see
    `write_config`), or, where MONAI Label starts the stage from its own program, the bundle's train.yaml.

    Args:
        stage_dir: made if absent.
        datalist_file: its hash goes into the manifest; None: that of the items.
        seed: of the run.
        config: the merged config, or None.
        items: of the training part.
        bundle_root: of the bundle.
        resolved: values that replace expressions in the saved config, so that it can be read without the data.
    """
    if parallel.first():
        folder = Path(stage_dir)
        config = dict(config if config is not None else bundle_config(sys.argv))
        if (folder / CONFIG).is_file() and not config:
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        if not config and datalist_file is None and bundle_root is not None:
            config = merged_config([str(Path(bundle_root) / "configs" / "train.yaml")], {"bundle_root": bundle_root})
        if config:
            write_config(folder, {**config, **resolved})
        write_json(_manifest(folder, datalist_file, seed, items), folder / MANIFEST)
    parallel.wait()


def write_config(stage_dir: str | Path, config: dict[str, Any]) -> None:
    """Write the merged config of a stage, in the first process."""
    if parallel.first():
        write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), Path(stage_dir) / CONFIG)


def machine() -> str:
    """System, processor, cores and GPU of this machine."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {gpu}"


def command_line() -> str:
    """This process as a shell takes it: ``python -m`` where a module was started, arguments quoted."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = sys.argv[:1] if spec is None else ["python", "-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*program, *sys.argv[1:]])


def _manifest(folder: Path, datalist_file: str | None, seed: int, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    now, before = time.strftime("%Y-%m-%dT%H:%M:%S"), {}
    if (folder / MANIFEST).is_file():
        before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    content = json.dumps(list(items)).encode() if datalist_file is None else Path(datalist_file).read_bytes()
    manifest = {
        "started": before.get("started", now),
        "seed": seed,
        "command": command_line(),
        "commit": commit(),
        "datalist": f"{len(items)} items given" if datalist_file is None else str(datalist_file),
        "datalist_sha256": hashlib.sha256(content).hexdigest(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
        "processes": parallel.world(),
    }
    if (folder / CHECKPOINT).is_file():
        manifest["continued"] = [*before.get("continued", []), now]
    return manifest


def finished(stage_dir: str | Path, config: dict[str, Any], datalist_file: str) -> bool:
    """Whether a stage ran to its end with this config and datalist.

    Args:
        stage_dir: folder of the stage; may be absent.
        config: merged config, as it would be saved.
        datalist_file: its content is compared, not its path.

    Raises:
        ValueError: when the folder holds a stage of another config or datalist, finished or not.
    """
    folder = Path(stage_dir)
    if not (folder / MANIFEST).is_file() or not (folder / CONFIG).is_file():
        return False
    manifest, saved = (
        json.loads((folder / MANIFEST).read_text(encoding="utf-8")),
        yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")),
    )
    places = ("dataset_dir", "datalist_file", "run_dir", "bundle_root")
    other = [k for k in sorted(saved.keys() | config.keys()) if k not in places and saved.get(k) != config.get(k)]
    if manifest["datalist_sha256"] != hashlib.sha256(Path(datalist_file).read_bytes()).hexdigest():
        other.append("the datalist")
    if other:
        raise ValueError(
            f"{folder} holds a stage trained with another config ({', '.join(other)}); choose another run_dir, or "
            "delete the folder"
        )
    return "finished" in manifest


def finish_stage(stage_dir: str | Path, best_metric: float, best_epoch: int, **facts: Any) -> None:
    """Mark a stage as run to its end in its manifest, in the first process; the others wait."""
    if parallel.first():
        path = Path(stage_dir) / MANIFEST
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest.update(
            {"finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "best_metric": best_metric, "best_epoch": best_epoch}
        )
        write_json({**manifest, **facts}, path)
    parallel.wait()


def bundle_config(argv: Sequence[str]) -> dict[str, Any]:
    """Merged config of a ``python -m monai.bundle run`` command line; empty for another program."""
    if "run" not in argv or "bundle" not in argv[0]:
        return {}
    values: dict[str, Any] = {}
    tokens = list(argv[argv.index("run") + 1 :])
    while tokens:
        token = tokens.pop(0)
        if token.startswith("--"):
            name, found, value = token[2:].partition("=")
            values[name] = DefaultParseValue(value if found else tokens.pop(0))
    for name in ("meta_file", "logging_file", "run_id", "init_id", "final_id", "tracking"):
        values.pop(name, None)
    files = values.pop("config_file", None)
    if files is None:
        return {}
    return merged_config([files] if isinstance(files, str) else list(files), values)


def merged_config(config_files: Sequence[str], overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """Config files merged in order, then single values replaced; expressions stay as they are written."""
    parser = ConfigParser()
    parser.read_config([str(f) for f in config_files])
    parser.update(pairs=overrides or {})
    parser.resolve_macro_and_relative_ids()
    return {key: value for key, value in parser.get().items() if key != "_meta_"}


def write_json(value: Any, path: str | Path) -> None:
    """Write JSON whole or not at all; NaN is refused.

    Raises:
        ValueError: when a number is not finite.
    """
    write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def commit() -> str | None:
    """Commit of the bundle's checkout, with CHANGES if it is not clean; None outside git."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, encoding="utf-8")
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, encoding="utf-8"
    )
    if head.returncode:
        return None
    return head.stdout.strip() + (CHANGES if status.stdout.strip() else "")


def last_stage(run_dir: str | Path) -> Path:
    """Folder of the last stage of a run that has selected weights.

    Raises:
        FileNotFoundError: when there is none.
    """
    run = Path(run_dir)
    candidates = [run, *(run / stage for stage in (JOINT, *STAGES))]
    found = [folder for folder in candidates if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{run} holds no trained stage ({WEIGHTS} beside {CONFIG} in it or in {', '.join((*STAGES, JOINT))}); "
            "train it first"
        )
    return found[-1]


def load_run(run_dir: str | Path) -> tuple[MultiTaskDynUNet, dict[str, Any], Path]:
    """Network in evaluation mode, config and folder of the last trained stage of a run (or of the stage given)."""
    folder = last_stage(run_dir)
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    network = ConfigParser(config).get_parsed_content("network_def")
    load_weights(network, folder / WEIGHTS)
    return network.eval(), config, folder


def trained_tasks(stage_dir: str | Path) -> set[str]:
    """What a stage and the stages before it were trained for: of "segmentation" and "classification".

    Args:
        stage_dir: folder with a config.yaml.
    """
    folder = Path(stage_dir)
    config = ConfigParser(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
    flags = {"segmentation": "seg_weight", "classification": "cls_weight"}
    found = {task for task, weight in flags.items() if config.get(f"train_{task}", True) and config.get(weight, 1.0)}
    before = config.get_parsed_content("initial_weights") if config.get("initial_weights") else None
    if before is not None:
        # A run may have been moved: its stages are looked for beside each other first.
        for earlier in (folder.parent / Path(before).parent.name, Path(before).parent):
            if (earlier / CONFIG).is_file():
                return found | trained_tasks(earlier)
    return found


def bootstrap_unit(datalist: dict[str, Any]) -> str:
    """What cases are resampled by: "patient", "near-duplicate group" where patients are unknown, or both."""
    items = [item for part in ("training", "validation", "test") for item in datalist.get(part, [])]
    known = [bool(item.get("patient")) for item in items]
    if all(known):
        return "patient"
    return "patient, or near-duplicate group where it is unknown" if any(known) else "near-duplicate group"


def write_network_overlay(run_dir: str | Path, classes: dict[str, str]) -> Path:
    """Write ``network.yaml`` of a run: an overlay of ``configs/inference.yaml`` with its network, size and weights.

    Args:
        run_dir: the run (or the stage) whose last trained stage is taken.
        classes: names by index, of the datalist.

    Returns:
        the file.
    """
    folder = last_stage(run_dir)
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    overlay = {key: config[key] for key in ("spatial_size", "num_classes", "network_def")}
    overlay |= {"classes": classes, "weights": str(folder / WEIGHTS)}
    path = Path(run_dir) / "network.yaml"
    write_text(
        "# Overlay of configs/inference.yaml: the network, its input size and its weights as this run trained them.\n"
        + yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True),
        path,
    )
    return path
