"""The verbs ``evaluate`` and ``explain``: a trained run through its config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from scripts.command.overrides import parse_overrides
from scripts.command.verbs import Outcome, compute_values
from scripts.command.workflows import run_config
from scripts.evaluation.items import output_folder
from scripts.evaluation.shards import CONFIG, EvaluationJob
from scripts.inference.item_shards import asked, forget, run_items

__all__ = ["execute"]


def execute(arguments: argparse.Namespace) -> Outcome:
    """Run the config that is named as the verb."""
    values = {name: str(getattr(arguments, name)) for name in ("run_dir", "dataset_dir", "datalist_file", "part")}
    if arguments.out is not None:
        values["output_dir"] = str(arguments.out)
    values |= {**compute_values(arguments), **parse_overrides(arguments.overrides)}
    if arguments.verb == "evaluate" and asked(arguments):
        return _by_shards(arguments, values)
    parser = run_config(f"{arguments.verb}.yaml", arguments.overlay, **values)
    return Outcome(written=[parser.get_parsed_content("output_dir")])


def _by_shards(arguments: argparse.Namespace, values: dict[str, Any]) -> Outcome:
    """The cases by several processes; what is made of them, by this one."""
    folder = values.get("output_dir") or output_folder(*(values[name] for name in ("run_dir", "datalist_file", "part")))
    out = Path(folder)
    job = EvaluationJob(values, tuple(map(Path, arguments.overlay)))
    text = run_items(arguments, job, Path(values["datalist_file"]), out, job.count)
    if text is None:
        run_config(CONFIG, arguments.overlay, **values, collected=str(out))
        forget(out)
    return Outcome(text or "", [out])
