"""Arguments of the verb ``phantoms``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_out, add_seed

__all__ = ["VERBS"]


def _phantoms(parser: Parser) -> None:
    add_out(parser, "folder to write; appears only when it is whole", required=True)
    add_seed(parser, "heads and tumors")
    parser.add_argument("--patients", type=int, default=60, help="NIfTI volumes with masks (default: 60)")
    parser.add_argument("--singles", type=int, default=160, help="single images without masks, even (default: 160)")
    parser.add_argument("--overwrite", action="store_true", help="replace phantoms made with other arguments")


VERBS = (
    Verb(
        "phantoms", "draw seeded, FLAIR-like heads with and without tumors", "scripts.phantoms.dataset", _phantoms,
        "  python -m scripts phantoms --out data/phantoms",
    ),
)  # fmt: skip
