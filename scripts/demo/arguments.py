"""Arguments of the verb ``demo``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_limit, add_out, add_seed, folder

__all__ = ["VERBS"]


def _demo(parser: Parser) -> None:
    text = "folder images/<class>/* with optional masks/<same stem>.png (default: phantoms)"
    parser.add_argument("--data", type=folder, metavar="DIR", help=text)
    add_limit(parser, "use at most so many images of --data")
    add_out(parser, "folder of runs and report (default: runs/demo, or runs/demo-<folder> with --data)")
    text = "factor of the demo's epochs (default: 1, and 2 with --data)"
    parser.add_argument("--epochs", type=float, metavar="FACTOR", help=text)
    parser.add_argument("--precision", default="auto", help="float32, bfloat16, float16 or auto (default: auto)")
    add_seed(parser, "phantoms, split and training")


VERBS = (
    Verb(
        "demo", "the whole way in one command, on phantoms or on your own images", "scripts.demo.demo", _demo,
        "  python -m scripts demo\n  python -m scripts demo --data FOLDER --limit 400",
    ),
)  # fmt: skip
