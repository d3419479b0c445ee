"""Run one of the bundle's configs from Python."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from scripts.command.config_files import META, check_order, literal, plain, read_config, read_mapping
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.overrides import check_overrides

__all__ = ["as_plain", "make_workflow", "run_config", "running", "running_config"]


def make_workflow(
    kind: str, files: Sequence[str | Path], values: Mapping[str, Any], tracking: str | None = None
) -> ConfigWorkflow:
    """MONAI's workflow of config files and values of this bundle, with every path as it was given.

    Args:
        kind: "train" or "infer".
        files: merged in order.
        values: by config id.
        tracking: as of ``monai.bundle run``.
    """
    check_order(files, [read_mapping(file) for file in files])
    workflow = ConfigWorkflow(
        tracking=tracking,
        workflow_type=kind,
        config_file=[str(Path(file).expanduser()) for file in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        **{"bundle_root": str(ROOT), **values},
    )
    content = workflow.parser.get()
    for name in [name for name in content if name != META]:
        content[name] = literal(content[name])
    return workflow


def running() -> ConfigWorkflow | None:
    """The workflow that is being initialized or run by this call; None outside of one.

    MONAI hands the expressions of a config nothing of it, and a program that makes the workflow itself has no command
    line that says what it is: it is found among the callers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller
        frame = frame.f_back
    return None


def running_config() -> dict[str, Any]:
    """Content of the config of `running`, values that were given included; empty outside of a workflow.

    Raises:
        ValueError: when its files were given in the wrong order, or a value addresses nothing in it.
    """
    workflow = running()
    if workflow is None:
        return {}
    content = {key: plain(value) for key, value in workflow.parser.get().items() if key != META}
    first = next(iter(content))
    if first != "imports":
        raise ValueError(
            f"the config begins with {first!r}, a value of an overlay: the whole config comes first, overlays behind it"
        )
    known = [read_mapping(path) for path in sorted(CONFIGS.glob("*.yaml"))]
    whole = [base for base in known if "imports" in base and base.keys() <= content.keys()]
    if whole:
        base = max(whole, key=len)
        text = yaml.safe_dump(content, default_flow_style=False) if _is_plain(content) else str(content)
        added = [key for key in content if key not in base and not re.search(rf"[@%]{re.escape(key)}\b", text)]
        check_overrides(base, added, set(DEFAULT_MLFLOW_SETTINGS["configs"]))
    return content


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def as_plain(value: Any) -> Any:
    """A config's content as YAML can hold it: paths and devices as text.

    Raises:
        ValueError: when it holds another object, with which nothing could be done again.
    """
    if isinstance(value, Mapping):
        return {key: as_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(inner) for inner in value]
    if isinstance(value, (os.PathLike, torch.device)):
        return str(value)
    if not _is_plain(value):
        raise ValueError(f"the config holds a {type(value).__name__}: give its place in the config as text or number")
    return value


def run_config(name: str, overlays: Sequence[str | Path] = (), **values: Any) -> ConfigParser:
    """Run one of the bundle's configs in this process, as ``monai.bundle run`` would.

    Args:
        name: file in ``configs``.
        overlays: config files merged over it, in order.
        values: by config id.

    Returns:
        the parser, with what was computed.

    Raises:
        ValueError: when a value is in none of the files; names the nearest id.
    """
    files = [CONFIGS / name, *overlays]
    check_overrides(read_config(files).get(), values)
    workflow = make_workflow("infer", files, values)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow.parser
