"""Arguments of the verbs ``train``, ``plan`` and ``infill``."""

from __future__ import annotations

from scripts.command.verbs import (
    Parser,
    Verb,
    add_compute,
    add_data,
    add_out,
    add_overlay,
    add_part,
    add_run,
    add_seed,
    folder,
)

__all__ = ["VERBS"]

OVERRIDES = """\
  python -m scripts train --dataset_dir DIR --datalist_file LIST.json --run_dir runs/mine
  torchrun --nproc_per_node=2 -m scripts train --overlay configs/multi_gpu_train.yaml ...

Further values: every value of configs/train.yaml can be given by its id, for all stages or for one alone. An id that no
config file has is refused.
  --max_epochs 20 --learning_rate 0.0005            for all stages
  --class_shares "{0: 0.5, 1: 0.5}"                 lists and mappings as in Python, quoted
  --network_def#dropout 0.1                         inside a mapping: its parts divided by #
  --stage3_joint "{'max_epochs': 20}"               for one stage: stage1_segmentation, stage2_classification,
                                                    stage3_joint; its values win over those for all stages
"""


def _train(parser: Parser) -> None:
    add_data(parser)
    add_run(parser, "folder to write the run to, a stage in each of its folders")
    add_overlay(parser)
    parser.add_argument("--joint", action="store_true", help="one stage from random weights instead of the three")
    parser.add_argument("--tracking", help="mlflow, or a file of MONAI's tracking settings")
    add_seed(parser, "weights, batches and augmentation", None)
    add_compute(parser, precision=True)


def _plan(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "file of the plan, an overlay of train.yaml", required=True)
    parser.add_argument(
        "--hours", type=float, metavar="H", default=8.0, help="that the training may take on this machine (default: 8)"
    )
    add_compute(parser, precision=True)


def _infill(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "folder of learned.pt and infill.json", required=True)
    text = "to fit it by (default: 3000); 0: measure the weights that are shipped"
    parser.add_argument("--batches", type=int, metavar="N", default=3000, help=text)
    parser.add_argument("--cache_dir", type=folder, metavar="DIR", help="keep prepared images here")
    add_part(parser)
    add_seed(parser, "weights and holes")
    add_compute(parser)


VERBS = (
    Verb(
        "train", "train all stages in one command, resumable", "scripts.training.train", _train, OVERRIDES,
        overrides=True,
    ),
    Verb(
        "plan", "choose input, network, batch and epochs by the images and this machine, each with its reason",
        "scripts.training.planning", _plan,
        "  python -m scripts plan --dataset_dir DIR --datalist_file LIST.json --out runs/mine/plan.yaml --hours 8\n"
        "  python -m scripts train --overlay runs/mine/plan.yaml --dataset_dir DIR --datalist_file LIST.json "
        "--run_dir runs/mine",
    ),
    Verb(
        "infill", "fit the infill that learned healthy tissue, and measure every infill on tissue it never saw",
        "scripts.training.infill", _infill,
        "  python -m scripts infill --dataset_dir DIR --datalist_file LIST.json --out runs/infill\n\n"
        "What it is for: docs/certificate.md.",
    ),
)  # fmt: skip
