"""Arguments of the verb ``certify``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_data, add_out, add_part, add_run, add_seed

__all__ = ["VERBS"]


def _certify(parser: Parser) -> None:
    add_run(parser)
    add_data(parser)
    add_part(parser)
    add_out(parser, "folder of the results (default: certificate in the run)")
    parser.add_argument("--tumors", type=int, metavar="N", default=120, help="at most so many (default: 120)")
    parser.add_argument("--healthy", type=int, metavar="N", default=60, help="at most so many heads (default: 60)")
    text = "ways of painting out (default: those that no training uses)"
    parser.add_argument("--infills", nargs="+", metavar="WAY", default=(), help=text)
    text = "ways of moving in (default: those that no training uses)"
    parser.add_argument("--blends", nargs="+", metavar="WAY", default=(), help=text)
    add_seed(parser, "the draw of cases")


VERBS = (
    Verb(
        "certify", "say whether verdict, mask and map follow the tumor: painted out, moved, faded, with controls",
        "scripts.certificate.certify", _certify,
        "  python -m scripts certify --run_dir runs/mine --dataset_dir DIR --datalist_file LIST.json\n\n"
        "What each sentence can and cannot conclude: docs/certificate.md.",
    ),
)  # fmt: skip
