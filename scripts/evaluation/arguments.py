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
    folder,
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


def _explain_nnunet(parser: Parser) -> None:
    parser.add_argument(
        "input",
        type=folder,
        metavar="INPUT",
        help="folder of images named as nnU-Net names them (CASE_0000.nii.gz, a file a channel), or a file of one case",
    )
    parser.add_argument(
        "--results",
        type=folder,
        metavar="FOLDER",
        required=True,
        help="trained folder, with plans.json, dataset.json and fold_*",
    )
    add_out(parser, "folder of the results", required=True)
    parser.add_argument("--region", help="label or region of dataset.json (default: the first that is no background)")
    parser.add_argument(
        "--method",
        choices=("hirescam", "layercam", "gradient"),
        metavar="METHOD",
        default="hirescam",
        help="method of the map: hirescam, layercam or gradient (default: hirescam)",
    )
    parser.add_argument(
        "--layer",
        metavar="LAYER",
        help="layer of the map: dotted name (default: the last features in front of the output)",
    )
    parser.add_argument("--fold", help="number, or all (default: the first that was trained)")
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="file of the fold (default: %(default)s)")
    parser.add_argument("--no_mirroring", action="store_true", help="windows as they are, four to eight times faster")
    add_compute(parser)


def _scope(parser: Parser) -> None:
    add_data(parser)
    add_weights(parser)
    add_limit(parser, "training and so many validation images (default: 400)")


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
        "explain-nnunet", "explain a trained results folder of nnU-Net v2 for images, without converting it",
        "scripts.evaluation.nnunet_folders", _explain_nnunet,
        "  python -m scripts explain-nnunet nnUNet_raw/Dataset001_Heads/imagesTs --region tumor --out runs/nnunet \\\n"
        "      --results nnUNet_results/Dataset001_Heads/nnUNetTrainer__nnUNetPlans__2d\n\n"
        "Of each case: CASE_map.nii.gz and CASE_region.nii.gz on the grid of its file, CASE.png; of all: summary.json.",
    ),
    Verb(
        "scope", "fit what the training images look like, so that unlike ones are not assessed",
        "scripts.evaluation.scope_fit", _scope,
        "  python -m scripts scope --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json\n"
        "  python -m scripts scope --dataset_dir BRISC --datalist_file docs/training/RUN/datalist.json\n\n"
        "Once after every training (evaluate does it too, for a run's own datalist); it lies beside the weights.",
    ),
)  # fmt: skip
