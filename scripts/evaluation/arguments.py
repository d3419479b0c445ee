"""Arguments of the verbs ``evaluate`` and ``explain``."""

from __future__ import annotations

from scripts.command.verbs import (
    Parser,
    Verb,
    add_compute,
    add_data,
    add_limit,
    add_out,
    add_overlay,
    add_part,
    add_run,
    add_seed,
    add_shards,
    add_weights,
)

__all__ = ["VERBS"]

VALUES = "\n\nFurther values: every value of configs/{0} can be given by its id: {1}"


def _evaluate(parser: Parser) -> None:
    add_run(parser)
    add_data(parser)
    add_part(parser)
    add_out(parser, "folder of the results (default: evaluation in the run, or a folder of its own for another list)")
    add_overlay(parser, "evaluate.yaml")
    add_compute(parser)
    add_shards(parser)


def _explain(parser: Parser) -> None:
    add_run(parser)
    add_data(parser)
    add_part(parser)
    add_out(parser, "folder of the results (default: explanations in the run)")
    add_overlay(parser, "explain.yaml")
    add_seed(parser, "the cases for slow methods and tests", None)
    add_compute(parser)


def _scope(parser: Parser) -> None:
    add_data(parser)
    add_weights(parser)
    add_limit(parser, "at most so many training and so many validation images (default: 400)")


VERBS = (
    Verb(
        "evaluate", "measure a trained run on a part of any datalist", "scripts.evaluation.running", _evaluate,
        "  python -m scripts evaluate --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json"
        + VALUES.format("evaluate.yaml", "--extras \"['scope']\" --batch_size 4"),
        overrides=True,
    ),
    Verb(
        "explain", "explain a trained run and score its maps against the masks", "scripts.evaluation.running", _explain,
        "  python -m scripts explain --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json"
        + VALUES.format("explain.yaml", "--methods all --slow_cases 8"),
        overrides=True,
    ),
    Verb(
        "scope", "fit what the training images look like, so that unlike ones are not assessed",
        "scripts.evaluation.scope_fit", _scope,
        "  python -m scripts scope --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json\n"
        "  python -m scripts scope --dataset_dir BRISC --datalist_file docs/training/RUN/datalist.json\n\n"
        "Once after every training (evaluate does it too, for a run's own datalist); it lies beside the weights.",
    ),
)  # fmt: skip
