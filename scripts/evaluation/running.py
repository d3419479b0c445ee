"""The verbs ``evaluate`` and ``explain``: a trained run through its config."""

from __future__ import annotations

import argparse

from scripts.command.overrides import parse_overrides
from scripts.command.verbs import Outcome, compute_values
from scripts.command.workflows import run_config

__all__ = ["execute"]


def execute(arguments: argparse.Namespace) -> Outcome:
    """Run the config that is named as the verb."""
    values = {name: str(getattr(arguments, name)) for name in ("run_dir", "dataset_dir", "datalist_file", "part")}
    if arguments.out is not None:
        values["output_dir"] = str(arguments.out)
    parser = run_config(
        f"{arguments.verb}.yaml", arguments.overlay,
        **values, **compute_values(arguments), **parse_overrides(arguments.overrides),
    )  # fmt: skip
    return Outcome(written=[parser.get_parsed_content("output_dir")])
