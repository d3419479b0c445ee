"""The patient of file and folder names: docs/patients.md, whole folders, warnings, and what overrules them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.data.datalists.clusters import clusters
from scripts.data.datalists.patients import MOST_SCANS, find_patients

DOCS = Path(__file__).parents[2] / "docs" / "patients.md"
TABLE = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| `([^`]+)` \|$", DOCS.read_text(encoding="utf-8"), re.M)


def test_the_table_holds_many_collections():
    assert len(TABLE) >= 60
    assert len({name for _, name, _ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("collection", "name", "patient"), TABLE, ids=[name for _, name, _ in TABLE])
def test_the_patient_of_public_names_is_what_the_table_says(collection, name, patient):
    assert find_patients([name]).of[name] == patient, collection


# Whole folders: files of one person in one inner list.


@pytest.mark.parametrize(
    "people",
    [
        [["UPENN-GBM-00001_11/a_FLAIR", "UPENN-GBM-00001_21/a_FLAIR"], ["UPENN-GBM-00002_11/b_FLAIR"]],
        [["BraTS-MET-00002-000", "BraTS-MET-00002-001"], ["BraTS-MET-00003-000"]],
        [["P-7-0/flair", "P-7-1/flair"], ["P-8-0/flair"]],  # doubtful, fewer
        [["s1/flair", "s1/t1"], ["s2/flair"]],
        [["s1/scan_flair"], ["s2/scan_flair"], ["s3/other"]],
        [["s1/visit1_flair", "s1/visit2_flair"], ["s2/visit1_flair"]],
        [["s1/visit1/flair", "s1/visit2/flair"], ["s2/visit1/flair"]],
        [["ses-1/sub-01_flair", "ses-2/sub-01_flair"], ["ses-1/sub-02_flair"]],
        [["a12/2019-01-01/flair", "a12/2020-02-03/flair"], ["b7/2019-01-01/flair"]],
        [["Patient-001/week-000-1/FLAIR", "Patient-001/week-044/FLAIR"], ["Patient-002/week-000/FLAIR"]],
        [["anna/scan_1", "anna/scan_2"], ["bert/scan_1"]],
        [["anna/x7", "anna/x8"], ["bert/x7"]],
        [["HG/0001/VSD.Brain.1/a", "HG/0001/VSD.Brain.2/a"], ["LG/0001/VSD.Brain.3/a"], ["LG/0002/VSD.Brain.4/a"]],
        [["site1/p01"], ["site2/p01"], ["site2/p02"]],
        [["train/p01_t1", "test/p01_t2"], ["train/p02_t1"]],
        [["T1/k01", "FLAIR/k01"], ["T1/k02", "FLAIR/k02"], ["T1/k03", "FLAIR/k03"]],
        [["Utrecht/0/pre/FLAIR"], ["Utrecht/2/pre/FLAIR"], ["GE3T/100/pre/FLAIR"], ["GE3T/101/pre/FLAIR"]],
        [["Subject 4 (1)", "subject_4"], ["subject-5"]],
    ],
)  # fmt: skip
def test_each_person_of_a_folder_is_one_patient(people):
    found = find_patients([f"{path}.nii.gz" for own in people for path in own])
    patients = [{found.of[f"{path}.nii.gz"] for path in own} for own in people]
    assert [len(own) for own in patients] == [1] * len(people), found.of
    assert len(set.union(*patients)) == len(people), found.of


@pytest.mark.parametrize(
    "name",
    ["scan_{}", "mydata/flair_{}", "images/study1_{}", "x1_{}", "set7/s1_{}", "2024data/scan_{}", "mine/k-{}-t1"],
)
def test_a_flat_folder_of_volumes_does_not_become_one_patient(name):
    paths = [name.format(f"{k:03d}") + ".nii.gz" for k in range(30)]
    assert len(set(find_patients(paths).of.values())) == 30


def test_many_names_in_few_folders_are_people():
    paths = [f"london{a}/q{k}.nii.gz" for a in range(3) for k in range(a * 30, a * 30 + MOST_SCANS + 5)]
    assert len(set(find_patients(paths).of.values())) == len(paths)


def test_what_was_found_and_what_is_doubtful_is_said():
    plain = [f"sub-{k:02d}_ses-{visit}_T1w.nii.gz" for k in range(1, 13) for visit in range(4)]
    assert (
        find_patients(plain).sentence() == "48 images of 12 patients; patient = 'sub-01' from sub-01_ses-0_T1w.nii.gz"
    )
    found = find_patients(["x1_0.nii", "x1_1.nii", "x2_0.nii"])
    assert found.sentence("volumes") == (
        "3 volumes of 2 patients; patient = 'x1' from x1_0.nii. doubtful: the number at the end of 'x1_0' is taken "
        "for a time point of 'x1', likewise in 2 more files. --patient_pattern or --patients says otherwise"
    )
    assert (
        "'q1' is taken for the patient of q1/a1.nii"
        in find_patients(["q1/a1.nii", "q1/a2.nii", "q2/b1.nii"]).sentence()
    )
    assert "taken for a person's" in find_patients([f"x1_{k}.nii" for k in range(30)]).sentence()
    assert (
        "are taken for one patient, 'k01'" in find_patients(["raw/k01.nii", "clean/k01.nii", "raw/k2.nii"]).sentence()
    )
    assert find_patients(["T1/k01.nii", "test/k01.nii"]).warnings == ()
    assert find_patients([]).sentence("cases") == "0 cases"


def test_of_pictures_only_known_names_count():
    found = find_patients(["no/Tr-no_0010.jpg", "gl/TCGA_CS_4941_19960909_12.tif", "gl/x1_1.png"], known_only=True)
    assert found.of == {"gl/TCGA_CS_4941_19960909_12.tif": "TCGA_CS_4941"}


def test_a_pattern_overrules_the_rule():
    paths = ["hospital/k7-b.nii.gz", "hospital/k7-c.nii.gz", "hospital/k8-b.nii.gz"]
    assert list(find_patients(paths, pattern=r"k\d").of.values()) == ["k7", "k7", "k8"]
    found = find_patients(paths, pattern=r"(hospital)/k(?P<patient>\d)")
    assert list(found.of.values()) == ["7", "7", "8"]
    assert found.sentence().endswith(r"by --patient_pattern (hospital)/k(?P<patient>\d)")
    with pytest.raises(ValueError, match=r"^--patient_pattern k\(7\) says no patient for 1 of 3 files, first: .*k8-b"):
        find_patients(paths, pattern="k(7)")
    with pytest.raises(ValueError, match="is no regular expression"):
        find_patients(paths, pattern="k(")


def test_a_table_overrules_the_rule(tmp_path):
    table = tmp_path / "people.csv"
    table.write_text("\ufeffPatient,File,age\nanna,a/one.nii.gz,40\nanna,two,40\nbert,b,50\n", encoding="utf-8")
    paths = ["a/one.nii.gz", "a/two.nii.gz", "b/three.nii.gz", "c/b/four.nii.gz"]
    found = find_patients(paths, table=table)
    assert list(found.of.values()) == ["anna", "anna", "bert", "bert"]
    with pytest.raises(ValueError, match=r"^--patients people.csv says no patient for 1 of 5 files, first: c/five.nii"):
        find_patients([*paths, "c/five.nii"], table=table)
    with pytest.raises(ValueError, match="not both"):
        find_patients(paths, table=table, pattern="x")
    table.write_text("file,patient\na,1\na,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="'a' has two patients, '1' and '2'"):
        find_patients(paths, table=table)
    table.write_text("name,who\na,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a CSV file with the columns file,patient"):
        find_patients(paths, table=table)


# In the builders.


def write_scans(folder: Path, names: list[str]) -> None:
    for k, name in enumerate(names):
        volume = np.random.default_rng(k).integers(100, 200, (40, 40, 6)).astype(np.int16)
        volume[:5] = volume[:, :5] = 0
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / name)


def patients_of(out: Path) -> dict[str, str]:
    listed = datalists.read(out)
    return {item["image"]: item["patient"] for split in datalists.SPLITS for item in listed[split]}


def test_every_builder_takes_a_pattern_and_a_table_and_prints_what_it_found(tmp_path, capsys):
    names = [f"{a}{visit}/flair.nii.gz" for a in "abc" for visit in (1, 2)]
    write_scans(tmp_path / "scans", names)
    masks = [name.replace("flair", "seg") for name in names]
    for name in masks:
        mask = np.zeros((40, 40, 6), np.uint8)
        mask[15:25, 15:25, 2:4] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / "scans" / name)
    entries = [{"image": name, "label": mask} for name, mask in zip(names, masks, strict=True)]
    (tmp_path / "scans" / "dataset.json").write_text(json.dumps({"training": entries}), encoding="utf-8")
    (tmp_path / "people.csv").write_text("file,patient\n" + "".join(f"{a}{v},{a}\n" for a in "abc" for v in (1, 2)))
    for k, name in enumerate(names):
        kind = tmp_path / "pictures" / "images" / ("glioma" if k % 2 else "no_tumor")
        kind.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 255, (64, 64), np.uint8)
        Image.fromarray(pixels).save(kind / f"{name.split('/')[0]}.png")
    (tmp_path / "pictures.csv").write_text("file,patient\n" + "".join(f"{a}{v},{a}\n" for a in "abc" for v in (1, 2)))
    commands = {
        "nifti_cases": ["--folder", "scans"],
        "nifti_volumes": ["--folder", "scans"],
        "decathlon": ["--file", "scans/dataset.json"],
        "image_folder": ["--folder", "pictures"],
    }
    for name, (flag, where) in commands.items():
        out = tmp_path / f"{name}.json"
        for options, ending in (
            (["--patient_pattern", r"([abc])[12](/|\.png)"], r"--patient_pattern ([abc])[12](/|\.png)"),
            (["--patients", str(tmp_path / "people.csv")], "--patients people.csv"),
        ):
            command(["datalist", name, flag, str(tmp_path / where), "--out", str(out), *options])
            found = patients_of(out)
            assert all(f"{own}1" in image or f"{own}2" in image for image, own in found.items()), found
            assert set(found.values()) == set("abc")
            printed = capsys.readouterr().out
            assert " of 3 patients; patient = 'a' from " in printed
            assert f" by {ending}" in printed


def test_what_limits_leave_out_is_counted_by_reason(tmp_path, capsys):
    write_scans(tmp_path, [f"sub-{k:02d}_ses-{visit}_FLAIR.nii.gz" for k in range(3) for visit in (1, 2)])
    out = tmp_path / "x.json"
    command(
        [
            "datalist",
            "nifti_volumes",
            "--folder",
            str(tmp_path),
            "--out",
            str(out),
            "--normal_slices",
            "2",
            "--seed",
            "1",
        ]
    )
    printed = capsys.readouterr().out
    assert "6 volumes of 3 patients; patient = 'sub-00' from sub-00_ses-1_FLAIR.nii.gz" in printed
    # Two volumes of six slices a patient, two slices of them.
    assert "left out: 30 slices without tumor beyond 2 of each patient" in printed
    listed = datalists.read(out)
    assert listed["left_out"] == {"slices without tumor beyond 2 of each patient": 30}
    report = json.loads(out.with_name("x.report.json").read_text(encoding="utf-8"))
    assert report["left_out"] == listed["left_out"]


def test_pictures_beyond_the_limit_are_counted_by_class(tmp_path):
    for kind in ("no_tumor", "glioma"):
        (tmp_path / "images" / kind).mkdir(parents=True)
        for k in range(10):
            pixels = np.random.default_rng(k + 50 * (kind == "glioma")).integers(0, 255, (64, 64), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / kind / f"TCGA_CS_{4900 + k}_19960909_{k}.png")
    listed, report = datalists.image_folder(tmp_path, limit=12, progress=False)
    reasons = {f"images of class {kind} beyond the limit of 12": 4 for kind in ("no_tumor", "glioma")}
    assert listed["left_out"] == dict(report.left_out) == reasons
    # A patient whose slices with and without tumor lie in two class folders is one, on one side.
    items = [item for split in datalists.SPLITS for item in listed[split]]
    assert all(item["patient"] == Path(item["image"]).name[:12] for item in items)
    sides = {item["patient"]: set() for item in items}
    for split in datalists.SPLITS:
        for item in listed[split]:
            sides[item["patient"]].add(split)
    assert max(map(len, sides.values())) == 1


def test_units_join_patients_and_groups():
    items = [
        {"image": "a", "patient": "p1", "group": "g"},
        {"image": "b", "patient": "p2", "group": "g"},
        {"image": "c", "group": "h"},
        {"image": "d"},
    ]
    assert clusters(items) == ["patient p1", "patient p1", "group h", "image d"]
    listed = datalists.assemble("x", ["no", "yes"], [{**item, "diagnosis": k % 2} for k, item in enumerate(items)])
    sides = {item["image"]: split for split in datalists.SPLITS for item in listed[split]}
    assert sides["a"] == sides["b"]
