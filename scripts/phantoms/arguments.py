"""Arguments of the verb ``phantoms``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_out, add_seed

__all__ = ["VERBS"]


def _phantoms(parser: Parser) -> None:
    add_out(parser, "folder to write; appears only when it is whole", required=True)
    add_seed(parser, "heads and tumors")
    for name, default, text in (
        ("patients", 60, "patients, each a NIfTI volume with a mask"),
        ("singles", 160, "single images without masks, an even number"),
        ("volumes", 0, "heads in 3D, with and without tumor"),
    ):
        text = f"number of {text} (default: {default})"
        parser.add_argument(f"--n_{name}", type=int, metavar="N", default=default, help=text)
    text = "voxels of the volumes, one number or three (default: 1)"
    parser.add_argument("--spacing_mm", type=float, nargs="+", default=[1.0], metavar="MM", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace phantoms made with other arguments")


VERBS = (
    Verb(
        "phantoms", "draw seeded, FLAIR-like heads with and without tumors", "scripts.phantoms.dataset", _phantoms,
        "  python -m scripts phantoms --out data/phantoms\n"
        "  python -m scripts phantoms --out data/volumes --n_patients 0 --n_singles 0 --n_volumes 12 --spacing_mm 3",
    ),
)  # fmt: skip
