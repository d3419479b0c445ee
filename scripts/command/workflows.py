"""Run one of the bundle's configs from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.command.config_files import META, literal, read_config
from scripts.command.locations import CONFIGS, ROOT
from scripts.command.overrides import check_overrides

__all__ = ["make_workflow", "run_config"]


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
