"""What the report says of two runs: by the claims function alone, with the numbers of their cases."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from scripts.measures.claims import ALLOWED
from scripts.report.claims import claims_of
from scripts.runs.reading import Run
from tests.report.demo_runs import RUNS
from tests.report.pages import read

ROOT = Path(__file__).parents[2]
# Words that say which of two is better, or that they are alike.
COMPARING = re.compile(r"\b(better|worse|outperforms?|superior|beats|improve[sd]?|no air)\b", re.IGNORECASE)
# Which way a measure points, and where a claim is asked what it says.
DIRECTION = re.compile(r'(is|scores) better|"lower is worse"|claim')


@pytest.fixture(scope="module")
def loaded(demo):
    return [Run(demo, key, title, "test") for key, title in RUNS.items()]


def dice_of(demo, run):
    with open(demo / run / "evaluation" / "cases.csv", encoding="utf-8", newline="") as file:
        return {row["name"]: float(row["dice"]) for row in csv.DictReader(file) if row["dice"]}


def test_differences_are_those_of_the_cases_and_claims_hold(demo, loaded):
    claims, why = claims_of(loaded)
    assert why == ""
    by_name = {claim["measure"]: claim for claim in claims}
    ours, stock = (dice_of(demo, run) for run in RUNS)
    change = [ours[name] - stock[name] for name in ours]
    assert by_name["dice"]["difference"] == pytest.approx(sum(change) / len(change))
    assert (by_name["dice"]["n"], by_name["dice"]["groups"]) == (12, 12)
    energy = by_name["tumor_energy"]
    assert energy["claim"] == "better", "the stock design's maps of the made runs lie in the air"
    assert energy["false_probability"] <= ALLOWED
    assert energy["sentence"].startswith("Energy in tumor of TumorLens is better than that of stock design; the")
    assert by_name["background_energy"]["claim"] == "better", "less is better there"
    assert by_name["background_energy"]["difference"] < 0
    withheld = [claim for claim in claims if claim["claim"] == "not settled"]
    assert withheld
    assert all(" is not settled; " in claim["sentence"] for claim in withheld)
    assert all(claim["false_probability"] > ALLOWED for claim in withheld)


def test_the_page_says_each_claim_as_it_is(demo):
    claims = json.loads((demo / "report.json").read_text(encoding="utf-8"))["claims"]
    text = " ".join(read(demo).text.split())
    assert len(claims) > 4
    for claim in claims:
        assert claim["sentence"] in text
    shown = {number["data-source"]: number["data-value"] for number in read(demo).numbers}
    assert float(shown["report.json#/claims/0/difference"]) == claims[0]["difference"]


def test_runs_that_can_not_be_compared_have_no_claims_but_the_reason(demo, loaded):
    assert claims_of(loaded[:1]) == ([], "")
    other = Run(demo, "baseline", "stock design", "test")
    other.stages[-1].manifest.content["datalist_sha256"] = "cd" * 32
    claims, why = claims_of([loaded[0], other])
    assert claims == []
    assert "were trained on different datalists (abababab and cdcdcdcd)" in why


def test_no_template_says_better_without_a_claim():
    """The sentences with such a word are made by `scripts.measures.claims`; the rest say which way a measure points."""
    templates = [path for root in ("scripts", "bundle") for path in (ROOT / root).rglob("*.j2")]
    assert len(templates) > 10
    lines = [(path.name, line) for path in templates for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(name, line) for name, line in lines if COMPARING.search(line) and not DIRECTION.search(line)] == []
