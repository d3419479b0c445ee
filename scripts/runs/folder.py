"""The run folder: what a stage is given, what it writes beside its weights, and how a finished one is read."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scripts.command import yaml_text
from scripts.command.config_files import parser_of, read_mapping
from scripts.command.files import whole, write_json, write_text
from scripts.command.overrides import bundle_command, differing, merged_config
from scripts.command.workflows import as_plain, running_config
from scripts.data.datalists import schema as datalists
from scripts.data.preprocessing import resolve_items
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.runs import lock, parallel
from scripts.runs.checkpoint_files import CHECKPOINT, CONFIG, PREVIOUS, WEIGHTS, load_weights, load_whole
from scripts.runs.provenance import circumstances
from scripts.runs.tasks import trained_tasks

logger = logging.getLogger(__name__)

STAGES = ("stage1_segmentation", "stage2_classification", "stage3_joint")
JOINT = "joint"  # one stage in place of the three, from random weights
MANIFEST, ADOPTED = "manifest.json", "adopted.yaml"
DESIGN = ("network_def", "spatial_size", "num_classes", "regions")  # of a config: what weights have to fit


def read_datalist(datalist_file: str | None, dataset_dir: str | None) -> dict[str, Any]:
    """The validated datalist of a run.

    Raises:
        ValueError: when one of the two required paths is not given.
        FileNotFoundError: when one of them does not exist.
    """
    folder, file = given(dataset_dir=dataset_dir), given(datalist_file=datalist_file)
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"dataset_dir {folder} is not a folder")
    return datalists.read(file)


def given(**values: str | None) -> str:
    """The one value given by name.

    Raises:
        ValueError: when it is None; names it.
    """
    ((name, value),) = values.items()
    if value is None:
        raise ValueError(f"{name} is required; give it as --{name} PATH")
    return str(value)


def num_classes(datalist: dict[str, Any]) -> int:
    """Number of classes K of a datalist, "no tumor" included."""
    return len(datalist["classes"])


def count_classes(datalist_file: str | None, dataset_dir: str | None, classes: dict[str, str]) -> int:
    """Number of classes of a datalist file; without one (MONAI Label gives none), of the config's classes."""
    return len(classes) if datalist_file is None else num_classes(read_datalist(datalist_file, dataset_dir))


def stage_items(
    datalist: dict[str, Any],
    part: str,
    dataset_dir: str,
    need: str = "any",
    targets: Mapping[str, bool] | None = None,
    empty_masks: bool = False,
) -> list[dict[str, Any]]:
    """Items of a part with absolute paths.

    Args:
        datalist: from `read_datalist`.
        part: "training", "validation" or "test".
        dataset_dir: folder that the paths are relative to.
        need: "any", "mask" (items whose mask is known, be it empty) or "diagnosis" (items with a class or a mask, from
            which it may follow).
        targets: what the items are trained on, {"mask": bool, "diagnosis": bool}: items that have none of it would
            train nothing, they are left out and counted in the log. None: all are kept.
        empty_masks: items of class 0 without a mask get ``lesion_free``: their mask is known, it is empty; unless the
            datalist says that "no tumor" does not mean "no lesion".

    Raises:
        ValueError: when nothing is left.
    """
    tests = {
        "any": lambda item: True,
        "mask": lambda item: "label" in item or "lesion_free" in item,
        "diagnosis": lambda item: item.get("diagnosis", -1) != -1 or "label" in item,
    }
    if need not in tests:
        raise ValueError(f"items is one of {', '.join(tests)}, got {need!r}")
    free = empty_masks and datalist.get(datalists.NO_LESION, True)
    every = [
        {**item, "lesion_free": True} if free and item.get("diagnosis") == 0 and "label" not in item else item
        for item in datalist.get(part, [])
    ]
    chosen = [item for item in every if tests[need](item)]
    if not chosen:
        raise ValueError(
            f"the {part!r} part of datalist {datalist.get('name')!r} has no item"
            + ("" if need == "any" else f" with a {need}")
        )
    if targets is not None:
        classes = num_classes(datalist)
        used = [
            item
            for item in chosen
            if (targets["mask"] and tests["mask"](item)) or (targets["diagnosis"] and _has_class(item, classes))
        ]
        trained = " or ".join(
            {"mask": "a mask", "diagnosis": "a known class"}[name] for name in targets if targets[name]
        )
        if not used:
            raise ValueError(
                f"no item in the {part!r} part of datalist {datalist.get('name')!r} has what this stage is trained on "
                f"({trained or 'no loss has a weight'})"
            )
        if len(used) < len(every):
            logger.info(
                "%s: %d of %d items; left out: %d by items: %s, %d that have not %s",
                part, len(used), len(every), len(every) - len(chosen), need, len(chosen) - len(used), trained,
            )  # fmt: skip
        chosen = used
        absent = datalists.absent_classes({**datalist, "training": chosen}) if targets["diagnosis"] else []
        if part == "training" and absent:
            logger.warning(
                "training: no item of class %s (classes: %s); the network cannot learn what it never sees",
                " and ".join(absent), ", ".join(datalist["classes"].values()),
            )  # fmt: skip
    chosen = [{**item, "regions": datalist["regions"]} if datalist.get("regions") else item for item in chosen]
    return resolve_items(chosen, dataset_dir)


def _has_class(item: Mapping[str, Any], classes: int) -> bool:
    """Whether the class of an item is known; of two classes it follows from a mask where no diagnosis is given."""
    return item["diagnosis"] != -1 if "diagnosis" in item else "label" in item and classes == 2


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

    A finished stage is kept as it is, an unfinished one continues; both with the config and datalist that it was
    started with alone. Without a config it is that of the ``monai.bundle run`` command in ``sys.argv``, or what the
    folder holds (see `write_config`), or, where MONAI Label starts the stage from its own program, the bundle's
    train.yaml.

    Args:
        stage_dir: made if absent.
        datalist_file: its hash goes into the manifest; None: that of the items.
        seed: of the run.
        config: the merged config, or None.
        items: of the training part.
        bundle_root: of the bundle.
        resolved: values that replace expressions in the saved config, so that it can be read without the data.

    Raises:
        ValueError: when another process trains there, or the folder holds weights or checkpoints of another config or
            datalist; names what differs.
    """
    if parallel.first():
        folder = Path(stage_dir)
        config = dict(config if config is not None else bundle_config(sys.argv))
        if not config and datalist_file is not None:  # a program of its own made the workflow
            running = running_config()
            config = {} if "MLFlowHandler" in str(running) else as_plain(running)  # tracking adds handlers
        if (folder / CONFIG).is_file() and not config:
            config = yaml_text.load((folder / CONFIG).read_text(encoding="utf-8"))
        if not config and datalist_file is None and bundle_root is not None:
            config = merged_config([str(Path(bundle_root) / "configs" / "train.yaml")], {"bundle_root": bundle_root})
        config = {**config, **resolved} if config else {}
        lock.acquire(folder)
        try:
            kept = finished(folder, config, datalist_file, items)
        except ValueError:
            lock.release(folder)
            raise
        if kept:
            logger.info("%s: finished before, kept", folder)
        else:
            if config:
                write_config(folder, config)
            write_json(_manifest(folder, datalist_file, seed, items), folder / MANIFEST)
    parallel.wait()


def write_config(stage_dir: str | Path, config: dict[str, Any]) -> None:
    """Write the merged config of a stage, in the first process."""
    if parallel.first():
        write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), Path(stage_dir) / CONFIG)


def _manifest(folder: Path, datalist_file: str | None, seed: int, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    now, before = time.strftime("%Y-%m-%dT%H:%M:%S"), read_manifest(folder)
    manifest = {
        "started": before.get("started", now),
        "seed": seed,
        **circumstances(),
        "datalist": f"{len(items)} items given" if datalist_file is None else str(datalist_file),
        "datalist_sha256": _datalist_hash(datalist_file, items),
        "processes": parallel.world(),
    }
    if (folder / CHECKPOINT).is_file():
        manifest["continued"] = [*before.get("continued", []), now]
    return manifest


def finished(
    stage_dir: str | Path, config: Mapping[str, Any], datalist_file: str | None, items: Sequence[dict[str, Any]] = ()
) -> bool:
    """Whether a stage ran to its end with this config and datalist.

    Args:
        stage_dir: folder of the stage; may be absent, or hold a stage that ended before anything was trained.
        config: merged config, as it would be saved; empty: not compared. What cannot change the result
            (`scripts.command.overrides.FREE`) may differ.
        datalist_file: its content is compared, not its path; None: that of the items.
        items: of the training part, where there is no datalist.

    Raises:
        ValueError: when the folder holds a stage of another config or datalist, finished or not.
    """
    folder = Path(stage_dir)
    if not any((folder / name).is_file() for name in (WEIGHTS, CHECKPOINT, PREVIOUS)):
        return False
    if (folder / WEIGHTS).is_file():
        _check_weights(folder)
    if not (folder / MANIFEST).is_file() or not ((folder / CONFIG).is_file() or not config):
        raise ValueError(
            f"{folder} holds trained weights, and {CONFIG} or {MANIFEST}, which say with what settings, is missing; "
            "choose another run_dir, or delete the folder"
        )
    manifest = read_manifest(folder)
    saved = yaml_text.load((folder / CONFIG).read_text(encoding="utf-8")) if config else {}
    if "adopted" in manifest:  # not trained here, with no datalist: the network alone has to be the same
        if config and (unlike := differing(*({key: c.get(key) for key in DESIGN} for c in (saved, config)))):
            raise ValueError(
                f"{folder} holds a network adopted from {manifest['adopted']}, and the config describes another one "
                f"({', '.join(unlike)}); add --overlay {folder.parent / ADOPTED}; other classes: adopt it again"
            )
        return True
    other = differing(saved, config) if config else []
    known = str(manifest["datalist_sha256"])
    if datalist_file is None:
        same = known == _datalist_hash(None, items)
    else:
        same = datalists.same_content(datalist_file, known)
    if not same:
        other.append("the datalist")
    if other:
        raise ValueError(
            f"{folder} holds a stage trained with another config ({', '.join(other)}); choose another run_dir, or "
            "delete the folder"
        )
    return "finished" in manifest


def _check_weights(folder: Path) -> None:
    """See that the selected weights of a stage are whole.

    Raises:
        ValueError: when they are not.
    """
    try:
        load_whole(folder / WEIGHTS)
    except ValueError as error:
        raise ValueError(f"weights {error}; delete {folder} to train this stage again") from error


def _datalist_hash(datalist_file: str | None, items: Sequence[dict[str, Any]]) -> str:
    if datalist_file is not None:
        return datalists.content_sha256(datalist_file)
    return hashlib.sha256(json.dumps(list(items)).encode()).hexdigest()


def read_manifest(stage_dir: str | Path) -> dict[str, Any]:
    """Manifest of a stage; empty where there is none.

    Raises:
        ValueError: when the file is empty or damaged; names it.
    """
    path = Path(stage_dir) / MANIFEST
    content = datalists.read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no manifest: expected an object, got {type(content).__name__}")
    return content


def finish_stage(stage_dir: str | Path, best_metric: float, best_epoch: int, **facts: Any) -> None:
    """Mark a stage as run to its end in its manifest, in the first process, once; the others wait."""
    if parallel.first() and "finished" not in (manifest := read_manifest(stage_dir)):
        _check_weights(Path(stage_dir))
        manifest.update(
            {"finished": time.strftime("%Y-%m-%dT%H:%M:%S"), "best_metric": best_metric, "best_epoch": best_epoch}
        )
        write_json({**manifest, **facts}, Path(stage_dir) / MANIFEST)
    lock.release(stage_dir)
    parallel.wait()


def bundle_config(argv: Sequence[str]) -> dict[str, Any]:
    """Merged config of a ``python -m monai.bundle run`` command line; empty for another program."""
    command = bundle_command(argv)
    return {} if command is None else merged_config(command.files, command.values)


def last_stage(run_dir: str | Path | None) -> Path:
    """Folder of the last stage of a run that has selected weights.

    Raises:
        ValueError: when no run is given.
        FileNotFoundError: when it has no such stage.
    """
    run = Path(given(run_dir=None if run_dir is None else str(run_dir))).expanduser()
    candidates = [run, *(run / stage for stage in (JOINT, *STAGES))]
    stages = [folder for folder in candidates if (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()]
    if not stages:
        raise FileNotFoundError(
            f"{run} holds no trained stage ({WEIGHTS} beside {CONFIG} in it or in {', '.join((*STAGES, JOINT))}); "
            "train it first"
        )
    return stages[-1]


class LoadedRun(NamedTuple):
    """A trained stage.

    Attributes:
        network: with its weights, in evaluation mode.
        config: of the stage, as it was resolved.
        folder: of the stage.
    """

    network: MultiTaskDynUNet
    config: dict[str, Any]
    folder: Path


def load_run(run_dir: str | Path | None) -> LoadedRun:
    """The last trained stage of a run, or the stage whose folder it is.

    The network knows what it was trained for, see `scripts.runs.tasks.is_trained`.
    """
    folder = last_stage(run_dir)
    config = read_mapping(folder / CONFIG)
    network = parser_of(config).get_parsed_content("network_def")
    load_weights(network, folder / WEIGHTS)
    network.trained_tasks = tuple(sorted(trained_tasks(folder)))
    return LoadedRun(network.eval(), config, folder)


def clustered_by(datalist: dict[str, Any]) -> str:
    """What cases belong together by: "patient", "near-duplicate group" where patients are unknown, or both."""
    items = [item for part in ("training", "validation", "test") for item in datalist.get(part, [])]
    known = [bool(item.get("patient")) for item in items]
    if all(known):
        return "patient"
    return "patient, or near-duplicate group where it is unknown" if any(known) else "near-duplicate group"


def write_csv(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write rows of equal keys whole or not at all; NaN and None become empty."""
    with whole(path) as place, open(place, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if v is None or v != v else v for k, v in row.items()})
