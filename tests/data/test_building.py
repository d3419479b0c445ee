"""The verb `datalist`: what reaches the builders, what is said, what is written."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from scripts.__main__ import main as command
from scripts.data.datalists import building
from scripts.data.datalists.building import BUILDERS, chosen_regions, execute
from scripts.data.datalists.plans import Plan
from scripts.data.datalists.regions import SCHEMES
from scripts.data.datalists.schema import Report
from scripts.data.datalists.slices import SliceRule
from tests.data.lists import minimal


class Recorded:
    """A builder that notes its options and finishes with the least list there is."""

    def __init__(self, report: Report | None = None):
        self.report, self.options, self.finished = report or Report(quiet=True), {}, False

    def plan(self, source, **options):
        self.options = {"source": source, **options}
        return Plan(["taken for granted"], self.report, self.finish)

    def finish(self):
        self.finished = True
        return minimal()


@pytest.fixture
def recorded(monkeypatch):
    def of(name: str, report: Report | None = None) -> Recorded:
        monkeypatch.setitem(BUILDERS, name, Recorded(report))
        return BUILDERS[name]

    return of


def run(name: str, tmp_path: Path, *more: str) -> int:
    source = "--file" if name == "decathlon" else "--folder"
    return command(["datalist", name, source, str(tmp_path), "--out", str(tmp_path / "lists" / "x.json"), *more])


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_what_is_not_given_is_left_to_the_builder(recorded, tmp_path, name):
    builder = recorded(name)
    assert run(name, tmp_path) == 0
    unpacks = {"unpack": tmp_path / "lists" / "x_pictures"} if name in ("build", "decathlon") else {}
    assert builder.options == {"source": tmp_path, **unpacks}
    assert json.loads((tmp_path / "lists" / "x.json").read_text()) == minimal()
    assert (tmp_path / "lists" / "x.report.json").is_file()


def test_options_reach_the_builder_as_it_takes_them(recorded, tmp_path):
    builder = recorded("nifti_cases")
    run("nifti_cases", tmp_path, "--planes", "axial", "coronal", "--tumor_slices", "2", "--regions", "brats2023")
    assert builder.options["rule"] == SliceRule(("axial", "coronal"), 2, regions=SCHEMES["brats2023"])
    run("nifti_cases", tmp_path, "--whole_volumes", "--planes", "coronal")
    assert builder.options["rule"] == SliceRule(())
    run("nifti_cases", tmp_path, "--normal_slices", "0", "--channels", "T1", "T2", "--name", "n", "--seed", "3")
    assert builder.options["rule"] == SliceRule(normal_slices=0)
    assert (builder.options["channels"], builder.options["name"], builder.options["seed"]) == (["T1", "T2"], "n", 3)
    for text, value in (("no_tumor", 0), ("unknown", -1)):
        volumes = recorded("nifti_volumes")
        run("nifti_volumes", tmp_path, "--diagnosis", text, "--min_foreground", "0.2", "--shifted_air")
        assert volumes.options["diagnosis"] == value
        assert volumes.options["rule"] == SliceRule(min_foreground=0.2, shifted_air=True)
    folder = recorded("image_folder")
    run("image_folder", tmp_path, "--limit", "9", "--max_distance", "30", "--fractions", "0", "0", "1")
    assert folder.options == {"source": tmp_path, "limit": 9, "max_distance": 30, "fractions": [0, 0, 1]}


def test_an_unknown_channel_is_refused_before_anything_is_read(recorded, tmp_path):
    builder = recorded("nifti_cases")
    with pytest.raises(ValueError, match="no channel 'T9'; there are FLAIR, T1, T1ce, T2"):
        run("nifti_cases", tmp_path, "--channels", "FLAIR", "T9")
    assert not builder.options


def test_a_dry_run_says_what_is_taken_and_finishes_nothing(recorded, tmp_path, capsys):
    builder = recorded("build", Report(unusable=[("a.png", "torn"), ("b.png", "torn")], quiet=True))
    assert run("build", tmp_path, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "taken for granted" in said
    assert "nothing was read (--dry_run); refused so far: 2" in said
    assert not builder.finished
    assert not (tmp_path / "lists").exists()


def options_of(**given) -> argparse.Namespace:
    return argparse.Namespace(verb="datalist", parser=None, overrides=[], chosen=None, **given)


def test_strict_makes_a_file_that_cannot_be_used_an_error_and_keeps_the_report(recorded, tmp_path):
    given = {"command": "build", "source": tmp_path, "dry_run": False, "out": tmp_path / "x.json"}
    recorded("build", Report(unusable=[("a.png", "torn")], quiet=True))
    with pytest.raises(ValueError, match=r"1 files cannot be used, first: a\.png, torn"):
        execute(options_of(**given, strict=True))
    assert (tmp_path / "x.report.json").is_file()
    assert not (tmp_path / "x.json").exists()
    recorded("build")
    assert execute(options_of(**given, strict=True)).written == [tmp_path / "x.json", tmp_path / "x.report.json"]


def test_figures_labels_and_absent_classes_are_said(recorded, tmp_path, caplog):
    report = Report(figures={"used": 3, "labels": [0, 1, 2, 4]}, quiet=True)
    report.leave_out("slices beyond 5", 7)
    recorded("build", report)
    given = {"command": "build", "source": tmp_path, "dry_run": False, "strict": False, "out": tmp_path / "x.json"}
    said = execute(options_of(**given)).text
    assert said.splitlines()[0].split() == ["split", "source", "class", "items", "with_mask", "clusters"]
    assert "used 3" in said
    assert "left out: 7 slices beyond 5" in said
    assert "(found: 1, 2, 4); several are stated by --regions, never guessed: brats2012, brats2017, brats2024" in said
    assert "the training part has no item of class tumor" in caplog.text
    report.figures["labels"] = [0, 1]
    assert "regions" not in execute(options_of(**given)).text, "one value says nothing of regions"


def test_regions_that_are_stated_are_said(tmp_path):
    datalist = {**minimal(), "regions": {"whole": [1, 2], "core": [1]}}
    said = building._regions_words(datalist, Report(figures={"labels": [1, 2]}))
    assert said == "\nregions: whole = [1, 2], core = [1]"
    assert "(found: 2, 4)" in building._regions_words(minimal(), Report(figures={"labels": [0, 2, 4]}))
    assert building._regions_words(minimal(), Report(figures={"labels": [0, 4]})) == ""
    assert building._regions_words(minimal(), Report()) == ""


def test_regions_are_a_scheme_or_a_file(tmp_path):
    regions = chosen_regions("brats2017")
    assert regions == SCHEMES["brats2017"]
    regions["whole_tumor"].append(9)
    assert 9 not in SCHEMES["brats2017"]["whole_tumor"], "a copy"
    (tmp_path / "r.json").write_text('{"mass": [2, 3]}')
    assert chosen_regions(str(tmp_path / "r.json")) == {"mass": [2, 3]}
    (tmp_path / "r.json").write_text('{"mass": []}')
    with pytest.raises(ValueError, match=r"r\.json"):
        chosen_regions(str(tmp_path / "r.json"))
    with pytest.raises(ValueError, match="no scheme 'brats1999'; there are tumor, brats2012"):
        chosen_regions("brats1999")


def test_lists_are_joined_without_images_and_options_that_need_them_are_refused(tmp_path, caplog):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        datalist = minimal()
        for split in ("training", "validation", "test"):
            for item in datalist[split]:
                item |= {"image": f"{path.stem}/{item['image']}", "source": path.stem}
        path.write_text(json.dumps(datalist))
    given = {"command": "merge", "lists": paths, "dataset_dir": None, "out": tmp_path / "both.json"}
    outcome = execute(options_of(**given))
    assert outcome.written == [tmp_path / "both.json"]
    assert len(json.loads((tmp_path / "both.json").read_text())["training"]) == 2
    assert json.loads((tmp_path / "both.json").read_text())["name"] == "both"
    assert "near-duplicates across the lists are not looked for" in caplog.text
    with pytest.raises(ValueError, match="--binary needs --dataset_dir"):
        execute(options_of(**given, binary=True))


def test_a_list_is_checked_with_its_files(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(minimal()))
    given = options_of(command="check", datalist_file=tmp_path / "x.json", dataset_dir=tmp_path, out=None)
    with pytest.raises(FileNotFoundError, match="4 files missing"):
        execute(given)
    for name in ("a.png", "b.png", "c.png", "m.png"):
        (tmp_path / name).touch()
    rows = execute(given).text.splitlines()
    assert [row.split()[0] for row in rows] == ["split", "training", "validation", "test"]
    assert len({len(row) for row in rows}) == 1, "columns stand under each other"
