"""Run one of the bundle's configs from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

from scripts.command.locations import CONFIGS, ROOT
from scripts.command.overrides import merged_config

__all__ = ["run_config"]


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
    merged_config(files, values)
    workflow = ConfigWorkflow(
        workflow_type="infer",
        config_file=[str(file) for file in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(ROOT),
        **values,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow.parser
