"""Arguments of the verbs ``verify``, ``audit`` and ``fingerprint``."""

from __future__ import annotations

from scripts.command.verbs import PARTS, Parser, Verb, add_data, add_limit, add_out, add_seed, add_shards, add_size

__all__ = ["VERBS"]


def _verify(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "folder of the results (default: <list>_verification beside the list)")
    parser.add_argument("--allow", nargs="+", default=[], metavar="RULE", help="rules that may fail")
    parser.add_argument("--write_passing", metavar="LIST.json", help="write the list without its failing items here")
    add_size(parser, default=256)
    add_shards(parser)


def _audit(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "folder of audit.json and audit.png", required=True)
    add_limit(parser, "images, drawn by --seed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the datalist (default: all)")
    add_size(parser, default=256)
    parser.add_argument("--strict", action="store_true", help="fail where something is flagged after the pipeline")
    add_seed(parser, "subset and folds")
    add_shards(parser)


def _fingerprint(parser: Parser) -> None:
    add_data(parser)
    add_out(parser, "folder of fingerprints.npz", required=True)
    add_shards(parser)


VERBS = (
    Verb(
        "verify", "verify the images of a datalist against stated rules", "scripts.checks.verify_data", _verify,
        "  python -m scripts verify --dataset_dir DIR --datalist_file data/mine.json --out runs/verified\n\n"
        "Writes verification.csv (one line an item), verification.json and worst.png; exit status 1 when a rule fails\n"
        "that is not allowed.",
    ),
    Verb(
        "audit", "measure what air, geometry and histogram alone say about source and diagnosis",
        "scripts.checks.audit", _audit,
        "  python -m scripts audit --dataset_dir DIR --datalist_file data/mine.json --out runs/audit --limit 1000\n\n"
        "Exit status 1 when an image was skipped; with --strict also when anything is flagged after the pipeline.",
    ),
    Verb(
        "fingerprint", "read the images of a datalist once for all merges: what tells near-duplicates",
        "scripts.checks.fingerprinting", _fingerprint,
        "  python -m scripts fingerprint --dataset_dir DIR --datalist_file data/a.json --processes 8 \\\n"
        "      --out runs/prints\n"
        "  python -m scripts datalist merge data/a.json data/b.json --dataset_dir A B --fingerprints runs/prints \\\n"
        "      --out data/both.json\n\n"
        "Exit status 1 when an image was skipped.",
    ),
)  # fmt: skip
