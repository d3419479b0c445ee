"""Arguments of the verb ``report``."""

from __future__ import annotations

from scripts.command.verbs import Parser, Verb, add_earlier, add_out, add_part, folder

__all__ = ["VERBS"]


def _report(parser: Parser) -> None:
    parser.add_argument("folder", type=folder, help="a run, or the folder that several runs lie in")
    text = "a run in the folder, repeatable (default: ours and baseline)"
    parser.add_argument("--run_dir", action="append", metavar="RUN[=TITLE]", help=text)
    add_out(parser, "file in the folder", "report.html")
    text = "folder of comparison.json, ablation.json or leave_one_source_out.json, repeatable"
    ending = " (default: comparison, ablation and sources in the folder)"
    parser.add_argument("--experiment", type=folder, action="append", metavar="FOLDER", help=text + ending)
    add_earlier(parser, "--study", "experiment", type=folder, action="append")
    text = "also write the maps of the runs side by side, a JPG or PNG"
    parser.add_argument("--picture", type=folder, metavar="FILE", help=text)
    text = "also write that checklist, filled from the files of the first run, as Markdown beside the page"
    parser.add_argument("--checklist", choices=("claim2024",), help=text)
    add_part(parser)


VERBS = (
    Verb(
        "report", "write one page about one or two runs, made from their files alone", "scripts.report.report", _report,
        "  python -m scripts report runs/mine\n  python -m scripts report runs/demo --experiment runs/ablation",
    ),
)  # fmt: skip
