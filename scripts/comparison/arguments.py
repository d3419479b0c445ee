"""Arguments of the verbs that put runs beside each other."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_compute, add_data, add_out, add_overlay, add_part, add_run, folder

__all__ = ["VERBS"]

RUN = "folder of a run, or of its seed<k> folders"
VALUES = "\n\nFurther values: every value of configs/train.yaml by its id, as python -m scripts train --help says."


def _compare(parser: Parser) -> None:
    parser.add_argument("runs", type=folder, nargs="+", metavar="RUN", help=RUN)
    add_out(parser, "folder of the results (default: comparison beside the first run)")
    parser.add_argument("--reference", help="name of the row to compare with (default: the first run)")
    parser.add_argument("--no_stages", action="store_true", help="no rows for stages before the last")
    add_part(parser)
    add_data(parser, required=False, extra="; with --datalist_file: evaluate what was not")


def _ablation(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "folder of the runs and tables", "runs/ablation")
    add_overlay(parser, "that of each variant")
    parser.add_argument(
        "--seeds", type=int, nargs="+", metavar="N", default=[0, 1, 2], help="of the trainings (default: 0 1 2)"
    )
    parser.add_argument("--epochs", type=float, metavar="FACTOR", default=1.0, help="factor of the epochs (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these variants, and the reference")
    parser.add_argument("--joint", action="store_true", help="one stage from random weights instead of the three")
    parser.add_argument("--certify", action="store_true", help="certify each, and write a table of the interventions")
    parser.add_argument("--table_only", action="store_true", help="train nothing, compare what is finished")
    add_compute(parser, precision=True)


def _ensemble(parser: Parser) -> None:
    parser.add_argument("members", type=folder, nargs="+", metavar="RUN", help="runs of stand-alone classifiers")
    add_run(parser, "folder to write the run to")
    add_data(parser)
    add_compute(parser)


def _sources(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "folder of the runs and the table", required=True)
    add_overlay(parser)
    add_compute(parser, precision=True)


VERBS = (
    Verb(
        "compare", "put trained runs beside each other, differences paired", "scripts.comparison.compare", _compare,
        "  python -m scripts compare runs/demo/ours runs/demo/baseline --out runs/compared",
    ),
    Verb(
        "ablation", "train the design without each of its parts, and what one would otherwise take",
        "scripts.comparison.ablation", _ablation,
        "  python -m scripts ablation --dataset_dir DIR --datalist_file LIST.json --only baseline densenet121" + VALUES,
        overrides=True,
    ),
    Verb(
        "ensemble", "join trained classifiers to a run of their own", "scripts.comparison.ensembles", _ensemble,
        "  python -m scripts ensemble runs/a runs/b --run_dir runs/both --dataset_dir DIR --datalist_file LIST.json",
    ),
    Verb(
        "leave-one-source-out", "train without each source and test on it", "scripts.comparison.leave_one_source_out",
        _sources,
        "  python -m scripts leave-one-source-out --dataset_dir DIR --datalist_file LIST.json --out runs/sources"
        + VALUES,
        overrides=True,
    ),
)  # fmt: skip
