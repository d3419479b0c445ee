"""What is read instead of the tumor: by a verdict, as the probes say, and by a mask, as its own place says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scripts.certificate.effects import Answers
from scripts.certificate.statement import CONTROL, LEAST, Statement, at_most, claim, percent
from scripts.measures.claims import Share
from scripts.measures.intervals import standard_error

# Verdicts that a probe must change for it to be named as what is read.
READ = 0.5
# What a mask marks without a tumor: of a picture's sides, how near its middle lies to one place; and share of the head
# that is darker.
NEAR, BRIGHTER = 0.05, 0.95


def named_shortcut(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What the verdict reads instead of the tumor, the most particular of what changes it; None: none of the probes.

    Args:
        rows: of `Answers.probes`, the most particular first.
    """
    for row in rows:
        changes = row["n_changed"] >= LEAST and row["changed"] >= READ
        if changes and (row["control"] is None or row["control"] <= CONTROL):
            return str(row["probe"])
    return None


def shortcut_statements(answers: Answers) -> list[Statement]:
    """What the verdict reads instead of the tumor, or that none of the probes is read; nothing where few were asked."""
    rows = [row for row in answers.probes() if row["n_changed"]]
    n = max((row["n_changed"] for row in rows), default=0)
    if n < LEAST:
        return []
    name = named_shortcut(rows)
    if name is None:
        worst = max(rows, key=lambda row: row["changed"])
        largest, stays = worst["changed"], worst["changed"] <= CONTROL
        sentence = (
            f"none of {', '.join(row['probe'] for row in rows)}, taken from a picture of the other side, changes more "
            f"than {percent(largest)} of {n} verdicts"
        )
        claimed = [
            at_most(row["changed"], row["changed_error"], row["groups_changed"], CONTROL, stays)
            for row in (rows if stays else [worst])
        ]
        conclusion = f"{'none' if stays else 'one'} of them changes more than {percent(CONTROL)}"
        verdict = "holds" if stays else "in part"
        return [claim("shortcut", "verdict", verdict, sentence, largest, n, conclusion, *claimed)]
    row = next(row for row in rows if row["probe"] == name)
    sentence = (
        f"the {name} of a picture of the other side changes {percent(row['changed'])} of {row['n_changed']} verdicts "
        f"(of the same side: {percent(row['control'] or 0)})"
    )
    claimed = [Share(row["changed"], row["changed_error"], row["groups_changed"], least=READ)]
    if row["control"] is not None:
        claimed.append(Share(row["control"], row["control_error"], row["groups_control"], most=READ))
    conclusion = f"the verdict reads the {name}"
    return [claim("shortcut", name, "fails", sentence, row["changed"], row["n_changed"], conclusion, *claimed)]


def mask_without_tumor(answers: Answers) -> dict[str, Any] | None:
    """What the mask marks where there is no tumor: in healthy heads, and where the tumor was painted out.

    Returns:
        {n, groups, marked: share with a mask, marked_error, masks: how many, of_masks: groups of them, place, bright:
        of the masks the share at one place of the picture, and the share on the brightest tissue, each with _error};
        None where no such picture was asked, or the model gives no masks.
    """
    ways = answers.ways("removal")[:1]
    asked = [
        (answer, answers.cases[name].group) for name, answer in answers.as_is.items() if not answers.cases[name].kind
    ]
    for how in ways:
        gone = answers.asked.get(("removal", how, False), {})
        asked += [(answer, answers.cases[name].group) for name, (_, answer) in gone.items() if name in answers.cases]
    asked = [(answer, group) for answer, group in asked if answer.mask_pixels is not None]
    if not asked:
        return None
    marked = np.array([bool(answer.mask_pixels) for answer, _ in asked])
    groups = [group for _, group in asked]
    row: dict[str, Any] = {"n": len(asked), "groups": len({*groups}), "marked": float(marked.mean())}
    row |= {"marked_error": standard_error(marked.astype(float), groups), "masks": int(marked.sum())}
    kept = [(answer, group) for (answer, group), m in zip(asked, marked, strict=True) if m and answer.mask_center]
    if not kept:
        return row
    groups_of_masks = [group for _, group in kept]
    centers = np.array([answer.mask_center for answer, _ in kept])
    near = np.abs(centers - np.median(centers, axis=0)).max(axis=1) <= NEAR
    bright = np.array([(answer.mask_brighter_than or 0.0) >= BRIGHTER for answer, _ in kept])
    row["of_masks"] = len({*groups_of_masks})
    for name, values in (("place", near), ("bright", bright)):
        row |= {name: float(values.mean()), f"{name}_error": standard_error(values.astype(float), groups_of_masks)}
    return row


MARKED = {
    "place": ("place in the picture", "lie at one place of the picture (within 5 % of its sides)"),
    "bright": ("brightest tissue", "lie on tissue brighter than 95 % of the head"),
}


def named_mark(row: Mapping[str, Any] | None) -> str | None:
    """Key of `MARKED` that says what most masks of tumor-free pictures mark; None: they are empty, or mark neither."""
    if row is None or row["masks"] < LEAST or row["marked"] < READ:
        return None
    return next((name for name in MARKED if row.get(name, 0.0) >= READ), None)


def mask_statements(answers: Answers) -> list[Statement]:
    """What the mask marks instead of a tumor; nothing where most masks are empty without one."""
    row = mask_without_tumor(answers)
    name = named_mark(row)
    if row is None or name is None:
        return []
    of, words = MARKED[name]
    sentence = (
        f"{percent(row['marked'])} of {row['n']} pictures without a tumor have a mask, and {percent(row[name])} of "
        f"these masks {words}"
    )
    claimed = (
        Share(row["marked"], row["marked_error"], row["groups"], least=READ),
        Share(row[name], row[f"{name}_error"], row["of_masks"], least=READ),
    )
    conclusion = f"the mask marks the {of} where there is no tumor"
    return [claim("shortcut", f"mask: {of}", "fails", sentence, row[name], row["n"], conclusion, *claimed)]
