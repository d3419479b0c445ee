"""Arguments of the verb ``phantoms``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_out, add_seed

__all__ = ["VERBS"]


def _phantoms(parser: Parser) -> None:
    add_out(parser, "folder to write; appears only when it is whole", required=True)
    add_seed(parser, "heads and tumors")
    parser.add_argument("--patients", type=int, default=60, help="NIfTI volumes with masks (default: 60)")
    parser.add_argument("--singles", type=int, default=160, help="single images without masks, even (default: 160)")
    parser.add_argument("--volumes", type=int, default=0, help="heads in 3D, with and without tumor (default: 0)")
    text = "voxels of the volumes, one number or three (default: 1)"
    parser.add_argument("--spacing_mm", type=float, nargs="+", default=[1.0], metavar="MM", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace phantoms made with other arguments")


VERBS = (
    Verb(
        "phantoms", "draw seeded, FLAIR-like heads with and without tumors", "scripts.phantoms.dataset", _phantoms,
        "  python -m scripts phantoms --out data/phantoms\n"
        "  python -m scripts phantoms --out data/volumes --patients 0 --singles 0 --volumes 12 --spacing_mm 3",
    ),
)  # fmt: skip
