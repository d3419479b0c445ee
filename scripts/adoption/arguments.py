"""Arguments of the verb ``adopt``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_data, add_out, add_overlay, add_run, folder

__all__ = ["VERBS"]


def _adopt(parser: Parser) -> None:
    parser.add_argument("checkpoint", type=folder, help="of a stock MONAI DynUNet")
    parser.add_argument(
        "--spatial_size", type=int, nargs="+", metavar="N", required=True,
        help="side of the network's input in pixels, one number an axis, 2 or 3",
    )  # fmt: skip
    add_run(parser, "folder to write the run to", required=False)
    parser.add_argument(
        "--num_classes",
        type=int,
        metavar="K",
        help="number of classes with 'no tumor'; else 2, or those of the datalist",
    )
    parser.add_argument("--foreground_norm", action="store_true", help="normalization that ignores air")
    parser.add_argument("--tumor_channel", type=int, help="output channel of the tumor, where there are more than 2")
    parser.add_argument("--evidence_levels", type=int, default=2, help="encoder levels that the evidence head fuses")
    parser.add_argument("--evidence_channels", type=int, default=64, help="width of the evidence head")
    parser.add_argument("--train", action="store_true", help="run stages 2 and 3 on --datalist_file")
    add_data(parser, required=False)
    add_overlay(parser)
    parser.add_argument("--explain", nargs="+", metavar="IMAGE", help="explain the segmentation of an image as it is")
    parser.add_argument(
        "--method", metavar="METHOD", default="gradcam", help="method of the map of --explain (default: gradcam)"
    )
    parser.add_argument(
        "--layer", metavar="LAYER", default="decoder_last", help="layer of the map of --explain (default: decoder_last)"
    )
    parser.add_argument("--slice", type=int, help="of a volume; else the one with the largest mask")
    add_out(parser, "folder of what --explain writes", "runs/explained")


VERBS = (
    Verb(
        "adopt", "take over a segmentation network of your own", "scripts.adoption.adopt", _adopt,
        "  python -m scripts adopt mine.pt --run_dir runs/mine --spatial_size 256 256",
    ),
)  # fmt: skip
