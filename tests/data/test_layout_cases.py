"""Files of a folder as cases: which belong together, what each is, and which channel is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.data.datalists.layouts import (
    BY_NAME,
    FOLDERS,
    Layout,
    choose_channels,
    find_layouts,
    group_files,
    make_case,
    sort_roles,
    stands_for_file,
)

ROOT = Path("root")
MADE = Layout(
    "made", "a made one", r"(?P<home>x/)?(c\d+)",
    (("FLAIR", "*_best.nii*"), ("", "*_no.nii*"), ("FLAIR", "*_flair.nii*"), ("label", "*/masks/*"), ("T1", "t1.nii")),
)  # fmt: skip
BARE = Layout("bare", "no groups", r".*?c\d+", (("label", "*seg*"),))


def files(*names: str) -> list[Path]:
    return [ROOT / name for name in names]


def test_a_case_is_what_the_groups_match_else_all_of_it():
    assert MADE.case_of("x/c12_flair.nii") == "x//c12"
    assert MADE.case_of("C12_flair.nii") == "C12", "case is ignored, from the start on"
    assert MADE.case_of("y/c12_flair.nii") is None
    assert BARE.case_of("y/c12_flair.nii") == "y/c12"


def test_the_first_pattern_that_fits_says_the_role():
    for path, rank in {
        "c1_best.nii": 0, "c1_no.nii": None, "c1_FLAIR.nii.gz": 2, "a/masks/c1.nii": 3, "c1/t1.nii/x.mha": 4,
        "t1.nii/c1/x.mha": None, "c1/t1.nii": 4, "c1.nii": None,
    }.items():  # fmt: skip
        assert MADE.rank_of(path) == rank, path


def test_cases_are_counted_where_an_image_of_a_channel_is_there():
    names = [f"BRATS_HG{k:04d}_{what}.mha" for k in (1, 2) for what in ("FLAIR", "truth")]
    assert find_layouts([*names, "BRATS_HG0003_truth.mha"]) == {"brats_2012": 2}
    assert find_layouts(["BRATS_HG0003_truth.mha", "a.nii"]) == {}


def grouped(layout: Layout, *names: str):
    members, rest = group_files(ROOT, files(*names), layout)
    return {key: [p.relative_to(ROOT).as_posix() for p in own] for key, own in members.items()}, [
        p.relative_to(ROOT).as_posix() for p in rest
    ]


def test_files_of_no_case_and_cases_without_a_volume_are_the_rest():
    members, rest = grouped(MADE, "c2_flair.nii", "c1_flair.nii", "c1_about.txt", "c3.txt", "z.nii", "a.txt")
    assert members == {"c1": ["c1_flair.nii", "c1_about.txt"], "c2": ["c2_flair.nii"]}
    assert list(members) == ["c1", "c2"]
    assert rest == ["a.txt", "c3.txt", "z.nii"]


def test_each_folder_is_a_case_and_one_named_like_a_file_stands_for_it():
    assert stands_for_file(ROOT / "p1" / "p1_flair")
    assert not stands_for_file(ROOT / "p1" / "p2")
    members, rest = grouped(
        FOLDERS,
        "a.nii", "p1/t1.nii", "p1/p1_flair/x.nii", "p1/p1_flair/x.json", "p2/flair/x.nii", "p2/flair/y.nii", "p3/b.txt",
    )  # fmt: skip
    assert members == {
        ".": ["a.nii"],
        "p1": ["p1/t1.nii", "p1/p1_flair/x.nii", "p1/p1_flair/x.json"],
        "p2/flair": ["p2/flair/x.nii", "p2/flair/y.nii"],
    }
    assert rest == ["p3/b.txt"]


def roles(layout: Layout, *names: str, label: str | None = None) -> dict[str, list[str]]:
    found = sort_roles(ROOT, files(*names), layout, label)
    return {what: [p.relative_to(ROOT).as_posix() for p in paths] for what, paths in found.items()}


def test_a_case_takes_the_files_of_the_first_pattern_that_it_has():
    assert roles(MADE, "c1_flair.nii", "c1_no.nii", "c1.txt") == {"FLAIR": ["c1_flair.nii"]}
    assert roles(MADE, "c1_flair.nii", "c1_best.nii") == {"FLAIR": ["c1_best.nii"]}
    assert roles(MADE, "c1_flair.nii", "a/c1_flair.nii.gz")["FLAIR"] == ["c1_flair.nii", "a/c1_flair.nii.gz"]


def test_words_say_the_role_where_each_folder_is_a_case():
    names = ("p1/p1_flair.nii", "p1/t1c.nii", "p1/p1_seg.nii", "p1/about.txt", "p1/scan.nii")
    assert roles(FOLDERS, *names) == {"FLAIR": ["p1/p1_flair.nii"], "T1ce": ["p1/t1c.nii"], "label": ["p1/p1_seg.nii"]}
    assert roles(FOLDERS, "p1/p1_flair/x.nii") == {"FLAIR": ["p1/p1_flair/x.nii"]}
    assert roles(FOLDERS, "p1/flair/t1.nii", "p1/flair/t2.nii") == {
        "T1": ["p1/flair/t1.nii"],
        "T2": ["p1/flair/t2.nii"],
    }
    assert roles(FOLDERS, "t1.nii") == {"T1": ["t1.nii"]}


def test_a_pattern_of_the_masks_names_replaces_the_known_ones():
    names = ("p1/p1_flair.nii", "p1/p1_seg.nii", "p1/p1_lesion.nii")
    assert roles(FOLDERS, *names, label="*_LESION*") == {"FLAIR": ["p1/p1_flair.nii"], "label": ["p1/p1_lesion.nii"]}
    assert roles(FOLDERS, *names, label="_seg*")["label"] == ["p1/p1_seg.nii"], "the folder's name is not looked at"
    assert roles(FOLDERS, *names, label="p1_seg*")["label"] == ["p1/p1_seg.nii"]
    assert roles(FOLDERS, *names, label="*_flair*") == {"label": ["p1/p1_flair.nii"]}
    assert "label" not in roles(MADE, "c1_flair.nii", "a/masks/c1.nii", label="*nothing*")


def test_flair_is_taken_or_the_only_channel():
    flair, t1, both = {"FLAIR": []}, {"T1": [], "label": []}, {"FLAIR": [], "T2": []}
    assert choose_channels([t1, flair]) == choose_channels([both]) == choose_channels([]) == ("FLAIR",)
    assert choose_channels([t1, {"label": []}]) == ("T1",)
    with pytest.raises(ValueError, match="no case has FLAIR, but T1 in 2, T2 in 1 of 3 cases: choose with --channels"):
        choose_channels([t1, t1, {"T2": []}])


def test_a_case_needs_one_file_of_each():
    one, two = files("a.nii", "b.nii")
    case = make_case({"T1": [one], "T2": [two], "label": [one], "foreground": [two]}, ["T2", "T1"], None)
    assert (case.images, case.label, case.foreground, case.patient) == ([two, one], one, two, "")
    assert make_case({"T1": [one], "label": [two]}, ["T1"], None).foreground is None
    for given, reason in (
        ({"T1": [one]}, r"expected one mask \(x\*\) file, found 0: \[\]; there are T1"),
        ({"label": [one], "T2": [one]}, r"expected one T1 file, found 0: \[\]; there are T2"),
        ({"T1": [one, two], "label": [one]}, r"expected one T1 file, found 2: \['a\.nii', 'b\.nii'\]$"),
        ({"T1": [one], "label": [one], "foreground": [one, two]}, "expected one brain mask file, found 2"),
    ):
        with pytest.raises(ValueError, match=reason):
            make_case(given, ["T1"], "x*")


def test_every_layout_is_known_by_a_name_of_its_own():
    assert len(BY_NAME) == len({layout.title for layout in BY_NAME.values()})
    for layout in BY_NAME.values():
        named = {what for what, _ in layout.names}
        assert named <= {"", "FLAIR", "T1", "T1ce", "T2", "label", "foreground"}
        assert layout is FOLDERS or {"FLAIR", "T1", "T1ce", "T2", "label"} <= named
