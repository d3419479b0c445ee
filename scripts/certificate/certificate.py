"""A whole certificate: questions, answers, effects, sentences; written as causal.json, causal.csv and one page."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from scripts.certificate.answers import Answer, CachedModel, Subject
from scripts.certificate.cases import Case, draw
from scripts.certificate.effects import Answers
from scripts.certificate.exact import Pair, agreement, exact_questions
from scripts.certificate.pictures import example_sheet
from scripts.certificate.questions import Plan
from scripts.certificate.realism import Realism
from scripts.certificate.verdicts import statements
from scripts.command.files import write_json, write_text
from scripts.interventions.insertion import HELD_OUT_BLENDS
from scripts.pictures.overlays import png_bytes, png_uri
from scripts.runs import provenance
from scripts.runs.folder import write_csv

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 5


def certify(
    subject: Subject,
    cases: Sequence[Case],
    out: Path,
    name: str,
    clustered_by: str,
    tumors: int | None = 120,
    healthy: int | None = 60,
    harmless: int = 25,
    probes: int = 20,
    infills: Sequence[str] = (),
    blends: Sequence[str] = (),
    left_out: Mapping[str, int] | None = None,
    seed: int = 0,
    batch_size: int = 16,
    pairs: Sequence[Pair] = (),
) -> dict[str, Any]:
    """Ask a model everything and write what follows.

    Args:
        subject: the model.
        cases: pictures, tumors with masks and healthy heads.
        out: gets causal.json, causal.csv, certificate.html, pictures and answers.json, from which a run that was
            interrupted continues.
        name: of the subject, for the page.
        clustered_by: what intervals are resampled by, in words.
        tumors, healthy: at most so many of each.
        harmless: so many of each get harmless changes.
        probes: so many of each get probes.
        infills, blends: () for those kept out of training.
        left_out: reasons why pictures were not taken, counted.
        seed: of the draw of cases.
        batch_size: pictures at once.
        pairs: of these phantoms, all among ``cases``, the exact counterfactual is asked as well.

    Returns:
        the content of causal.json.

    Raises:
        ValueError: when there is no picture at all.
    """
    if not cases:
        reasons = "; ".join(f"{count} times {reason}" for reason, count in (left_out or {}).items())
        raise ValueError(f"no picture can be used for a certificate{': ' + reasons if reasons else ''}")
    chosen = draw([case for case in cases if case.kind > 0], tumors, seed)
    heads = draw([case for case in cases if case.kind == 0], healthy, seed)
    plan = Plan(chosen, heads, tuple(infills), tuple(blends) or HELD_OUT_BLENDS, harmless, probes)
    realism = Realism()
    kept = CachedModel(subject, out / "answers.json", batch_size)
    known: dict[tuple[str, str, bool, str], Answer] = {}
    answered = []
    asked = itertools.chain(realism.watch(plan), exact_questions(pairs))
    for question, answer in kept.ask(asked, plan.count() + 4 * len(pairs)):
        known[question.key] = answer
        answered.append((question.slim(), answer))
    answers = Answers(answered, subject.classes, subject.threshold)
    without = Counter({("pictures", reason): count for reason, count in (left_out or {}).items()})
    without.update(plan.left_out)
    without.update({(test, f"refused: {reason}"): count for (test, reason), count in answers.refused.items()})
    realism_rows = realism.rows()
    content: dict[str, Any] = {
        "subject": name,
        "identity": subject.identity,
        "clustered_by": clustered_by,
        "counts": {
            "tumors": len(chosen),
            "healthy": len(heads),
            "pictures": len(answered),
            "asked": kept.asked,
            "known": kept.kept,
            "by_class": dict(Counter(subject.classes[c.kind] for c in (*chosen, *heads))),
        },
        "options": {"tumors": tumors, "healthy": healthy, "harmless": harmless, "probes": probes, "seed": seed},
        "threshold": subject.threshold,
        "classes": list(subject.classes),
        "infills": list(plan.infills),
        "blends": list(plan.blends),
        "statements": [statement.as_dict() for statement in statements(answers, realism_rows)],
        "rows": answers.rows(),
        "dose": answers.doses(),
        "checks": answers.harmless(),
        "probes": answers.probes(),
        "realism": realism_rows,
        "exact": agreement(answers),
        "left_out": [{"what": what, "reason": reason, "n": n} for (what, reason), n in sorted(without.items())],
        "made_by": provenance.circumstances(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(content, out / "causal.json")
    write_csv([_flat(row) for row in content["rows"]], out / "causal.csv")
    sheet = example_sheet(plan, known, _telling(plan, known), subject.classes, subject.threshold)
    pictures = []
    if sheet is not None:
        Image.fromarray(sheet).save(out / "examples.png")
        pictures.append(("Pictures that show it most", sheet))
    write_page(content, pictures, out / "certificate.html")
    return content


def _telling(plan: Plan, known: Mapping[tuple[str, str, bool, str], Answer]) -> list[Case]:
    """Tumors whose answer follows least, different classes in turn."""
    scores = []
    for case in plan.tumors:
        gone = known.get(("removal", plan.infills[0], False, case.name))
        moved = known.get(("transplant", plan.blends[0], False, case.name))
        if gone is None or moved is None or gone.refused or moved.refused:
            continue
        scores.append((gone.tumor() - moved.tumor(), case))
    scores.sort(key=lambda pair: -pair[0])
    turn: Counter[int] = Counter()
    ranked = []
    for _, case in scores:
        ranked.append((turn[case.kind], case))
        turn[case.kind] += 1
    return [case for _, case in sorted(ranked, key=lambda pair: pair[0])][:EXAMPLES]


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key.endswith("_ci95"):
            flat[f"{key}_low"], flat[f"{key}_high"] = value
        else:
            flat[key] = value
    return flat


def write_page(content: Mapping[str, Any], pictures: Sequence[tuple[str, Any]], path: Path) -> Path:
    """One page that needs no other file and no network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(share=_share, interval=_interval)
    html = environment.get_template("certificate.html.j2").render(
        content=content, pictures=[(title, png_uri(png_bytes(picture))) for title, picture in pictures]
    )
    write_text(html, path)
    return path


def _share(value: float) -> str:
    return f"{value:.2f}"


def _interval(bounds: Sequence[float | None]) -> str:
    return "" if bounds[0] is None or bounds[1] is None else f"[{bounds[0]:.2f}, {bounds[1]:.2f}]"


def table(content: Mapping[str, Any]) -> str:
    """The statements, one a line, for the terminal."""
    lines = [(s["verdict"], s["property"], s["of"], s["sentence"]) for s in content["statements"]]
    widths = [max(len(line[k]) for line in lines) for k in range(3)] if lines else []
    said = ["  ".join([*(t.ljust(w) for t, w in zip(line, widths, strict=False)), line[3]]) for line in lines]
    for row in content["exact"]:
        bounds = _interval(row["agrees_ci95"])
        said.append(
            f"{row['test']} ({row['how']}) and drawing called alike: {row['agrees']:.2f} {bounds}, n = {row['n']}"
        )
    return "\n".join(said)
