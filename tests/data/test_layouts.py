"""Layouts of public collections: each is recognized by its real names, and says what it took for what."""

from __future__ import annotations

from pathlib import Path

from scripts.__main__ import main as command
from scripts.data.datalists.plans import took
from tests.data.test_datalists_sources import save, scan, tumor


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
