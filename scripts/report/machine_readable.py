"""report.json beside the page: what the page says, for programs; each number once, with all that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from scripts.runs.documents import Document
from scripts.runs.reading import Run

__all__ = ["machine_readable"]


def machine_readable(
    loaded: Sequence[Run],
    documents: Sequence[Document],
    title: str,
    findings: Sequence[Markup],
    next_step: Markup,
    claims: Sequence[Mapping[str, Any]],
    cases: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Content of report.json, as docs/report.schema.json describes it.

    Args:
        loaded: the runs, after the page was made.
        documents: all that the page's numbers were taken from; a file may stand there twice.
        title: of the page.
        findings, next_step: what the page says first.
        claims: of `scripts.report.claims.claims_of`.
        cases: rows of `scripts.report.case_browser`.
    """
    figures = {(document.name, pointer): f for document in documents for pointer, f in document.figures.items()}
    return {
        "title": title,
        "part": loaded[0].part,
        "runs": [
            {"folder": run.key, "title": run.title, "map": run.map_title, "weights_sha256": run.current}
            for run in loaded
        ],
        "intervals": loaded[0].metrics.content.get("intervals", "not known"),
        "findings": [_plain(finding) for finding in findings],
        "next_step": _plain(next_step),
        "claims": list(claims),
        "cases": list(cases),
        "figures": [figure.as_dict() for _, figure in sorted(figures.items(), key=lambda item: item[0][0])],
    }


def _plain(text: Markup) -> str:
    return Markup(text).striptags()
