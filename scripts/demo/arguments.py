"""Arguments of the verb ``demo``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_folder, add_limit, add_out, add_seed

__all__ = ["VERBS"]


def _demo(parser: Parser) -> None:
    text = "images/<class>/* with optional masks/<same stem>.png (default: phantoms)"
    add_folder(parser, text, earlier="--data")
    add_limit(parser, "images of --folder, drawn by --seed")
    add_out(parser, "folder of runs and report (default: runs/demo, or runs/demo-<folder> with --folder)")
    text = "factor of the epochs (default: 1, and 2 with --folder)"
    parser.add_argument("--epochs", type=float, metavar="FACTOR", help=text)
    parser.add_argument("--precision", default="auto", help="float32, bfloat16, float16 or auto (default: auto)")
    add_seed(parser, "phantoms, split and training")


VERBS = (
    Verb(
        "demo", "the whole way in one command, on phantoms or on your own images", "scripts.demo.demo", _demo,
        "  python -m scripts demo\n  python -m scripts demo --folder DIR --limit 400",
    ),
)  # fmt: skip
