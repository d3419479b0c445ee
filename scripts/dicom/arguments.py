"""Arguments of the verb ``archive``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_port

__all__ = ["VERBS"]


def _archive(parser: Parser) -> None:
    add_port(parser, 8042)
    parser.add_argument("--viewer", action="store_true", help="serve OHIF beside it; make viewer fetches it once")
    parser.add_argument("--samples", type=int, default=4, help="series of drawn heads in it (default: 4)")


VERBS = (
    Verb(
        "archive", "run Orthanc on this machine with drawn heads, to try DICOM with", "scripts.dicom.archive", _archive,
        "  python -m scripts archive --port 8042\n\nNeeds Debian's orthanc and orthanc-dicomweb. Ends with Ctrl-C.",
    ),
)  # fmt: skip
