"""Evaluation by several processes: each batch is computed as one process would compute it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from scripts.command.config_files import read_config
from scripts.command.files import file_sha256
from scripts.command.locations import CONFIGS
from scripts.command.overrides import check_overrides
from scripts.command.workflows import make_workflow
from scripts.evaluation.evaluation import CaseResults
from scripts.inference.item_shards import gathered
from scripts.runs.artifacts import weights_sha256

__all__ = ["EvaluationJob", "take"]

CONFIG = "evaluate.yaml"


@dataclass(frozen=True)
class EvaluationJob:
    """The cases of one batch after the other.

    Attributes:
        values: of the config, by id.
        overlays: config files merged over it.
    """

    values: Mapping[str, Any]
    overlays: tuple[Path, ...] = field(default_factory=tuple)

    def settings(self) -> dict[str, Any]:
        """What decides about a result beside the list."""
        overlays = [file_sha256(path) for path in self.overlays]
        values = {name: str(value) for name, value in self.values.items()}
        return {"values": values, "overlays": overlays, "weights": weights_sha256(self.values["run_dir"])}

    def parser(self) -> ConfigParser:
        """The parsed config, before anything is computed."""
        files = [CONFIGS / CONFIG, *self.overlays]
        check_overrides(read_config(files).get(), self.values)
        workflow = make_workflow("infer", files, self.values)
        workflow.initialize()
        return workflow.parser

    def count(self) -> int:
        """Number of batches."""
        parser = self.parser()
        items, size = (parser.get_parsed_content(name) for name in ("items", "batch_size"))
        return math.ceil(len(items) / size)

    def start(self) -> Callable[[int], Any]:
        """Cases of a batch, by its number."""
        parser = self.parser()
        names = ("evaluator", "results", "dataset", "dataloader", "batch_size")
        evaluator, results, dataset, loader, size = (parser.get_parsed_content(name) for name in names)

        def one(number: int) -> dict[str, Any]:
            cases = range(number * size, min((number + 1) * size, len(dataset)))
            evaluator.data_loader = [loader.collate_fn([dataset[k] for k in cases])]
            evaluator.state.epoch_length = 1
            evaluator.run()
            return {"rows": results.rows, "people": results.people}

        return one


def take(results: CaseResults, folder: str | Path) -> None:
    """Take the cases that the shards below a folder collected, in place of running the evaluator.

    Raises:
        ValueError: when some are missing.
    """
    batches = gathered(Path(folder))
    results.rows[:] = [row for batch in batches for row in batch["rows"]]
    results.people[:] = [who for batch in batches for who in batch["people"]]
    results.join()
