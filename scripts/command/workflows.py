"""Run one of the bundle's configs from Python."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigWorkflow

from scripts.command.locations import CONFIGS, ROOT

__all__ = ["run_config"]


def run_config(name: str, **values: Any) -> None:
    """Run one of the bundle's configs in this process, as ``monai.bundle run`` would."""
    workflow = ConfigWorkflow(
        workflow_type="infer",
        config_file=str(CONFIGS / name),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        bundle_root=str(ROOT),
        **values,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()
