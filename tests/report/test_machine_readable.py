"""report.json: its schema, that each number stands once, and that the page shows what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from scripts.command.files import write_json
from scripts.report import report
from scripts.runs.documents import Document
from tests.report.demo_runs import RUNS
from tests.report.pages import look_up, read

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


@pytest.fixture(scope="module")
def twin(demo):
    return json.loads((demo / "report.json").read_text(encoding="utf-8"))


def test_it_follows_its_schema_and_the_schema_refuses_what_it_does_not_name(twin):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(twin, schema)
    for broken in ({**twin, "more": 1}, {**twin, "figures": [{**twin["figures"][0], "unit": "furlong"}]}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


def test_each_number_stands_once_and_equals_its_file(demo, twin):
    places = [(figure["file"], figure["pointer"]) for figure in twin["figures"]]
    assert len(set(places)) == len(places) > 200
    for figure in twin["figures"]:
        stored = look_up(demo, f"{figure['file']}#{figure['pointer']}")
        assert figure["value"] == (None if stored is None else float(stored)), figure
    assert not [pointer for _, pointer in places if "ci95" in pointer], "limits stand with their value"


def test_every_number_of_the_page_is_one_of_it(demo, twin):
    held = {(figure["file"], figure["pointer"]): figure for figure in twin["figures"]}
    seen = set()
    for number in read(demo).numbers:
        file, _, pointer = number["data-source"].partition("#")
        if file == "report.json":
            continue  # of the claims, which stand in it by themselves
        shown = None if number["data-value"] == "" else float(number["data-value"])
        head, _, last = pointer.rpartition("/")
        if last in ("0", "1") and head.endswith("ci95"):
            owner = head.removesuffix("_ci95") if head.endswith("_ci95") else head.removesuffix("ci95") + "mean"
            figure = held[file, owner]
            assert figure["interval"][int(last)] == shown
        elif (file, pointer) in held:
            figure = held[file, pointer]
            assert figure["value"] == shown
        else:
            figure = held[file, f"{head}/mean"]
            assert (last, figure["n"]) == ("n", shown)
        seen.add((figure["file"], figure["pointer"]))
    assert seen == held.keys(), "and it holds no other"


def test_dice_with_interval_n_unit_and_file(demo, twin):
    stored = look_up(demo, "ours/evaluation/metrics.json#/test/overall/segmentation/dice")
    (dice,) = [f for f in twin["figures"] if f["name"] == "test overall segmentation dice mean" and "ours" in f["file"]]
    assert dice == {
        **{"name": "test overall segmentation dice mean", "value": stored["mean"], "interval": stored["ci95"]},
        **{"n": 12, "unit": "1", "file": "ours/evaluation/metrics.json"},
        "pointer": "/test/overall/segmentation/dice/mean",
    }
    by_pointer = {f["pointer"]: f for f in twin["figures"] if f["file"] == "ours/evaluation/metrics.json"}
    assert by_pointer["/test/overall/segmentation/hd95/mean"]["unit"] == "pixels"
    assert by_pointer["/test/overall/segmentation/hd95_missed"]["unit"] == "count"
    assert by_pointer["/test/overall/classification/threshold"]["n"] is None, "it is set, not counted over cases"
    assert [run["title"] for run in twin["runs"]] == list(RUNS.values())
    assert any("No shortcut audit lies in the run" in text for text in twin["findings"])


def test_rows_are_named_by_what_tells_them_apart(tmp_path):
    row = {"method": "gradcam", "layer": "bottleneck", "source": "", "strength": 0.5, "energy": 0.25}
    write_json({"rows": [row | {"energy_ci95": [0.1, None], "n": 7}]}, tmp_path / "a.json")
    document = Document(tmp_path, "a.json")
    assert 'data-value="0.1"' in document.number("/rows/0/energy_ci95/0", "percent")
    assert 'data-value="0.5"' in document.number("/rows/0/strength", "plain")
    energy, strength = (figure.as_dict() for figure in document.figures.values())
    assert energy["name"] == "rows gradcam, bottleneck, strength 0.5 energy"
    assert (energy["value"], energy["interval"], energy["n"]) == (0.25, [0.1, None], 7)
    assert (strength["value"], strength["interval"], strength["n"]) == (0.5, None, None)


def test_a_page_that_is_no_html_file_is_refused(demo):
    with pytest.raises(ValueError, match=r"expected a file ending in \.html, got .*page\.json"):
        report.write_report(demo, RUNS, out="page.json")
