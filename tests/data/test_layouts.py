"""Layouts of public collections: each is recognized by its real names, and says what it took for what."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.__main__ import main as command
from scripts.data.datalists.layouts import BY_NAME, find_layouts
from scripts.data.datalists.plans import took
from scripts.data.datalists.recognition import NAMES, find, recognized
from scripts.data.datalists.schema import Report
from scripts.data.datalists.walking import walk
from tests.data.trees import LISTS, TREES, UCSF, UPENN, brats, touch
from tests.data.volume_files import save, scan, tumor


def make(tmp_path: Path, tree: str) -> Path:
    folder = touch(tmp_path / "data", *TREES[tree][0])
    if tree in LISTS:
        (folder / "dataset.json").write_text(json.dumps(LISTS[tree]), encoding="utf-8")
    return folder


@pytest.mark.parametrize("tree", TREES)
def test_a_layout_is_recognized_and_says_what_it_took_for_what(tmp_path, tree):
    _, layout, lines = TREES[tree]
    plan = recognized.plan(make(tmp_path, tree))
    assert plan.taken[0].startswith(f"layout = {layout}: ")
    for line in lines:
        assert line in plan.taken
    assert [name for name, _ in plan.report.unusable if not name.endswith((".csv", ".json", ".tsv"))] == []


@pytest.mark.parametrize("layout", [name for name in BY_NAME if name != "folders"])
def test_no_name_of_one_layout_is_taken_for_another(layout):
    """Each tree is of its own layout alone: a folder of which two could be right would be refused."""
    for files, own, _ in TREES.values():
        assert (layout in find_layouts(files)) == (own == layout)


def test_a_dry_run_says_what_is_taken_for_what_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "cases"
    for k in range(3):
        save(scan(k), folder / f"BraTS20_{k:03d}" / f"BraTS20_{k:03d}_flair.nii.gz")
        save(tumor(), folder / f"BraTS20_{k:03d}" / f"BraTS20_{k:03d}_seg.nii.gz")
    (folder / "BraTS20_000" / "BraTS20_000_flair.nii.gz").write_bytes(b"not read")
    arguments = ["nifti_cases", "--folder", str(folder), "--out", str(tmp_path / "a.json"), "--dry_run"]
    command(["datalist", *arguments])
    printed = capsys.readouterr().out.splitlines()
    assert "FLAIR = *_flair.nii.gz in 3 of 3 cases" in printed
    assert "mask = *_seg.nii.gz in 3 of 3 cases" in printed
    assert printed[-2:] == ["nothing was read (--dry_run); refused so far: 0", "written: nothing"]
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]


def test_patterns_of_names_are_listed_by_their_frequency():
    named = [(Path(f"{case}_{what}.nii"), case) for case, what in (("a", "t2"), ("b", "T2"), ("c", "T2"), ("d", "x"))]
    assert took("T2", named, 5) == "T2 = *_T2.nii or *_t2.nii or *_x.nii in 4 of 5 cases"
    assert (
        took("T2", [*named, (Path("e.nii"), "e")], 5)
        == "T2 = *_T2.nii or *_t2.nii or *_x.nii or 1 more patterns in 5 of 5 cases"
    )
    assert took("T1", [], 5) == "T1 = none of 5 cases"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "fits no known layout: it holds nothing"),
        (["a.pdf", "b.pdf", "c"], "fits no known layout: it holds 2 .pdf, 1 no suffix"),
        (["p1/flair.nii.gz", "p2/flair.nii.gz"], "holds 2 volumes of no known layout, and no folder with a mask"),
        ([*UCSF, *UPENN], r"may be of the layouts upenn_gbm \(2\) and ucsf_pdgm \(2\): choose with --layout NAME"),
        (
            ["Task01/imagesTr/a.nii.gz", "Task01/labelsTr/a.nii.gz"],
            "1 folders with imagesTr: give one of them, such as Task01",
        ),
        (
            ["p1/flair.nii", "p1/seg.nii", "p1/a.dcm"],
            r"may be of the layouts dicom_series \(1\) and folders \(1\): choose",
        ),
        (["p1/flair.nii", "p1/seg.nii", "no/1.png"], r"may be of the layouts folders \(1\) and pictures \(1\): choose"),
        (["imagesTr/a_0000.npz", "labelsTr/a.npz"], "lists no case: imagesTr holds no volume, but 1 .npz"),
        (
            ["a/1.jpg", "b/2.jpg"],
            "holds 2 pictures of no known layout: expected folders by class, one of them named no_t",
        ),
        (brats("BraTS-GLI-00002-000", "-", "t1c t2w seg"), "no case has FLAIR, but T1ce in 1, T2 in 1 of 1 cases"),
    ],
)
def test_what_is_unclear_is_refused(tmp_path, files, reason):
    with pytest.raises(ValueError, match=reason):
        recognized.plan(touch(tmp_path / "x", *files) if files else tmp_path)


def test_a_layout_may_be_given_and_takes_its_own_options_alone(tmp_path):
    folder = touch(tmp_path, *UCSF, *UPENN)
    assert recognized.plan(folder, layout="ucsf_pdgm").taken[0] == "layout = ucsf_pdgm, as given"
    with pytest.raises(ValueError, match="the layout ucsf_pdgm takes no --limit"):
        recognized.plan(folder, layout="ucsf_pdgm", limit=3)
    with pytest.raises(ValueError, match="no layout 'ucsf'; known are brats_2012, "):
        recognized.plan(folder, layout="ucsf")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("train/_annotations.coco.json", '{"images": [], "annotations": [], "categories": []}', "COCO"),
        ("labels/train/y1.txt", "0 0.5 0.5 0.25 0.125\n2 0.1 0.2 0.3 0.4\n", "YOLO"),
        ("labels/train/y1.txt", "1 0.5 0.5 0.25 0.125 0.7 0.8 1.0 1e-3\n", "YOLO"),
        ("annotations/y1.xml", "<annotation><object><bndbox></bndbox></object></annotation>", "Pascal VOC"),
    ],
)
def test_boxes_are_refused_with_what_to_do(tmp_path, name, content, kind):
    touch(tmp_path, "images/train/y1.jpg", name)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(
        ValueError, match=f"holds 1 pictures with boxes or polygons \\({kind}: .*draw them as mask pictures"
    ):
        find(tmp_path, walk(tmp_path, Report()))


def test_previews_beside_volumes_change_nothing(tmp_path):
    names = [f"p{k}/{name}" for k in (1, 2) for name in ("flair.nii", "seg.nii", "x.png")]
    plan = recognized.plan(touch(tmp_path, *names))
    assert "FLAIR = flair.nii in 2 of 2 cases" in plan.taken
    assert plan.report.unusable == []


def test_a_folder_of_dicom_files_is_taken_for_series(tmp_path):
    touch(tmp_path, "p1/s1/IM0001")
    (tmp_path / "p1" / "s1" / "IM0001").write_bytes(bytes(128) + b"DICM")
    assert find(tmp_path, walk(tmp_path, Report())) == "dicom_series"


def test_the_documentation_lists_every_layout():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("derivatives/tumor_study/sub-01/anat/sub-01_desc-brain_mask.nii.gz", "foreground"),
        ("derivatives/bet/sub-01/anat/sub-01_desc-brainTumor_mask.nii.gz", "label"),
        ("derivatives/fmriprep/sub-01/anat/sub-01_dseg.nii.gz", None),
        ("derivatives/fmriprep/sub-01/anat/sub-01_label-CSF_mask.nii.gz", None),
        ("derivatives/fmriprep/sub-01/anat/sub-01_desc-preproc_FLAIR.nii.gz", None),
        ("derivatives/manual/sub-01/anat/sub-01_dseg.nii.gz", None),
        ("derivatives/manual/sub-01/anat/sub-01_desc-tumor_dseg.nii.gz", "label"),
        ("sub-01/anat/sub-01_ce-gadolinium_T1w.nii.gz", "T1ce"),
        ("sub-01/func/sub-01_FLAIR.nii.gz", None),
    ],
)
def test_masks_of_bids_are_of_tumors_not_of_brains_or_tissues(path, what):
    rank = BY_NAME["bids"].rank_of(path)
    assert (None if rank is None else BY_NAME["bids"].names[rank][0]) == what
