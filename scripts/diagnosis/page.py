"""diagnosis.html: one self-contained page with a verdict, a figure and a picture a cause."""

from __future__ import annotations

from pathlib import Path

import jinja2
import matplotlib

from scripts.command.files import write_text
from scripts.diagnosis.examination import Examination
from scripts.diagnosis.pictures import map_picture, picture_of
from scripts.explain.diagnosis import CAUSES
from scripts.explain.findings import CANNOT_TELL, DOES_NOT_HOLD, FOLLOWS, HOLDS
from scripts.pictures.figures import STYLE
from scripts.pictures.overlays import png_uri

__all__ = ["write_page"]

TEMPLATES = Path(__file__).parent / "templates"
ALTERNATIVES = {HOLDS: "bad", FOLLOWS: "after", DOES_NOT_HOLD: "good", CANNOT_TELL: "open"}


def _shown(png: bytes | None) -> str | None:
    return None if png is None else png_uri(png)


def write_page(examination: Examination, path: str | Path) -> Path:
    """Write the page, whole or not at all; it needs no other file and no network."""
    with matplotlib.rc_context(STYLE):
        overview = map_picture(examination)
    causes = [
        {
            "id": finding.cause.replace(" ", "-"),
            "finding": finding,
            "kind": ALTERNATIVES[finding.verdict],
            "question": CAUSES[finding.cause][0],
            "limit": CAUSES[finding.cause][1],
            "picture": _shown(picture_of(examination, finding.cause)),
        }
        for finding in examination.findings
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    counts = {verdict: sum(c["kind"] == kind for c in causes) for verdict, kind in ALTERNATIVES.items()}
    html = environment.get_template("diagnosis.html.j2").render(
        examination=examination,
        subject=examination.subject,
        samples=examination.subject.samples,
        causes=causes,
        counts=counts,
        overview=_shown(overview),
        measures=examination.measures,
    )
    return write_text(html, path)
