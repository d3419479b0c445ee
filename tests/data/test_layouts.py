"""Layouts of public collections: each is recognized by its real names, and says what it took for what."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.__main__ import main as command
from scripts.data import datalists
from scripts.data.datalists.layouts import BY_NAME, find_layouts
from scripts.data.datalists.plans import took
from scripts.data.datalists.recognition import NAMES, find, recognized
from scripts.data.datalists.schema import Report
from scripts.data.datalists.walking import walk
from scripts.phantoms import phantom_slice
from tests.data.test_datalists_sources import items_of, save, scan, tumor
from transforms.loading import LoadCased


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def brats(case: str, joint: str, words: str, end: str = ".nii.gz") -> list[str]:
    """Files of a case in a folder of its own, named after it."""
    return [f"{case}/{case.rsplit('/', 1)[-1]}{joint}{word}{end}" for word in words.split()]


def vsd(case: str, numbered: bool = True) -> list[str]:
    """A case of BraTS 2013 to 2015: each file in a folder of its own, with a licence."""
    found = []
    for k, what in enumerate(("MR_Flair", "MR_T1", "MR_T1c", "MR_T2", "OT")):
        stem = f"VSD.Brain{'_3more' if what == 'OT' else ''}.XX.O.{what}"
        folder = f"{case}/{stem}.{54512 + k}" if numbered else f"{case}/{stem}"
        found += [f"{folder}/{stem}.{54512 + k}.mha", f"{folder}/license.txt"]
    return found


UPENN = [
    *(f"NIfTI-files/images_structural/UPENN-GBM-0000{k}_11/UPENN-GBM-0000{k}_11_{what}.nii.gz"
      for k in (1, 2) for what in ("FLAIR", "T1", "T1GD", "T2")),
    *(f"NIfTI-files/images_structural_unstripped/UPENN-GBM-0000{k}_11/UPENN-GBM-0000{k}_11_FLAIR_unstripped.nii.gz"
      for k in (1, 2)),
    "NIfTI-files/images_segm/UPENN-GBM-00002_11_segm.nii.gz",
    *(f"NIfTI-files/automated_segm/UPENN-GBM-0000{k}_11_automated_approx_segm.nii.gz" for k in (1, 2)),
]  # fmt: skip
UCSF = [
    f"UCSF-PDGM-{case}_nifti/UCSF-PDGM-{case}_{what}.nii.gz"
    for case in ("0004", "0391_FU007d")
    for what in (
        *("FLAIR", "FLAIR_bias", "T1", "T1_bias", "T1c", "T1c_bias", "T2", "T2_bias", "SWI", "DWI", "ADC", "ASL"),
        *("DTI_eddy_FA", "brain_segmentation", "brain_parenchyma_segmentation", "tumor_segmentation"),
    )
]
DERIVED = (
    "desc-brain_mask", "dseg", "space-MNI152NLin2009cAsym_label-lesion_mask", "label-GM_mask", "desc-preproc_FLAIR"
)  # fmt: skip
BIDS = [
    "dataset_description.json", "participants.tsv",
    *(f"sub-{k}/ses-{s}/anat/sub-{k}_ses-{s}_{what}" for k in ("01", "02") for s in ("1", "2")
      for what in ("FLAIR.nii.gz", "FLAIR.json", "T1w.nii.gz", "ce-gadolinium_T1w.nii.gz", "T2w.nii.gz")),
    *(f"sub-{k}/ses-1/dwi/sub-{k}_ses-1_dwi.nii.gz" for k in ("01", "02")),
    *(f"derivatives/manual/sub-{k}/ses-{s}/anat/sub-{k}_ses-{s}_label-lesion_mask.nii.gz"
      for k in ("01", "02") for s in ("1", "2")),
    *(f"derivatives/fmriprep/sub-{k}/ses-1/anat/sub-{k}_ses-1_{what}.nii.gz" for k in ("01", "02")
      for what in DERIVED),
]  # fmt: skip
EGD = [
    f"EGD-00{k}/{name}" for k in (11, 25)
    for name in ("1_T1/NIFTI/T1.nii.gz", "2_T1GD/NIFTI/T1GD.nii.gz", "3_T2/NIFTI/T2.nii.gz",
                 "4_FLAIR/NIFTI/FLAIR.nii.gz", "MASK/NIFTI/MASK.nii.gz", "METADATA/x.json")
]  # fmt: skip
TREES: dict[str, tuple[list[str], str, list[str]]] = {
    "BraTS 2012": (
        [*brats("BRATS-1/Images/BRATS_HG0001", "_", "FLAIR T1 T1C T2 truth", ".mha"),
         *brats("BRATS-2/Synthetic_Data/SimBRATS_LG0002", "_", "FLAIR T1 T1C T2 truth", ".mha")],
        "brats_2012", ["FLAIR = *_FLAIR.mha in 2 of 2 cases", "mask = *_truth.mha in 2 of 2 cases"],
    ),
    "BraTS 2013": (
        [*vsd("BRATS2013/Image_Data/HG/0001", False), *vsd("BRATS2013/Image_Data/LG/0001", False)],
        "brats_2013",
        ["FLAIR = VSD.Brain.XX.O.MR_Flair.#.mha in 2 of 2 cases",
         "mask = VSD.Brain_3more.XX.O.OT.#.mha in 2 of 2 cases"],
    ),
    "BraTS 2015": (
        [*vsd("HGG/brats_2013_pat0001_1"), *vsd("HGG/brats_tcia_pat117_0001"), *vsd("LGG/brats_tcia_pat117_0002")],
        "brats_2013", ["FLAIR = VSD.Brain.XX.O.MR_Flair.#.mha in 3 of 3 cases"],
    ),
    "BraTS 2017": (
        [*brats("HGG/Brats17_2013_2_1", "_", "flair t1 t1ce t2 seg"),
         *brats("HGG/Brats17_TCIA_607_1", "_", "flair t1 t1ce t2 seg")],
        "brats_2017", ["FLAIR = *_flair.nii.gz in 2 of 2 cases", "mask = *_seg.nii.gz in 2 of 2 cases"],
    ),
    "BraTS 2020 with its misnamed mask": (
        [*brats("MICCAI_BraTS2020_TrainingData/BraTS20_Training_001", "_", "flair t1 t1ce t2 seg", ".nii"),
         *brats("MICCAI_BraTS2020_TrainingData/BraTS20_Training_355", "_", "flair t1 t1ce t2", ".nii"),
         "MICCAI_BraTS2020_TrainingData/BraTS20_Training_355/W39_1998.09.19_Segm.nii",
         "MICCAI_BraTS2020_TrainingData/name_mapping.csv"],
        "brats_2017",
        ["FLAIR = *_flair.nii in 2 of 2 cases", "mask = *_seg.nii or W39_#.09.19_Segm.nii in 2 of 2 cases"],
    ),
    "BraTS 2021": (
        [*brats("BraTS2021_Training_Data/BraTS2021_00000", "_", "flair t1 t1ce t2 seg"),
         *brats("BraTS2021_Training_Data/BraTS2021_00002", "_", "flair t1 t1ce t2 seg")],
        "brats_2017", ["FLAIR = *_flair.nii.gz in 2 of 2 cases"],
    ),
    "BraTS 2021, files in folders of their names": (
        [name.replace(".nii.gz", ".nii/00000057_brain.nii") for k in (0, 2)
         for name in brats(f"BraTS2021_0000{k}", "_", "flair t1 t1ce t2 seg")],
        "brats_2017", ["FLAIR = #_brain.nii in 2 of 2 cases"],
    ),
    **{
        f"BraTS 2023 {kind}": (
            [*brats(f"data/BraTS-{kind}-00002-000", "-", "t1c t1n t2f t2w seg"),
             *brats(f"data/BraTS-{kind}-00002-001", "-", "t1c t1n t2f t2w seg")],
            "brats_2023", ["FLAIR = *-t2f.nii.gz in 2 of 2 cases", "mask = *-seg.nii.gz in 2 of 2 cases"],
        ) for kind in ("GLI", "MEN", "MET", "PED", "SSA")
    },
    "BraTS 2024 MEN-RT": (
        [*brats("BraTS-MEN-RT-0000-1", "_", "t1c gtv"), *brats("BraTS-MEN-RT-0001-1", "_", "t1c gtv")],
        "brats_2023", ["T1ce = *_t1c.nii.gz in 2 of 2 cases", "mask = *_gtv.nii.gz in 2 of 2 cases"],
    ),
    "TCGA of BraTS": (
        [*brats("TCGA-02-0006_1996.08.23", "_", "flair t1 t1Gd t2 GlistrBoost GlistrBoost_ManuallyCorrected"),
         *brats("TCGA-02-0009_1997.06.14", "_", "flair t1 t1Gd t2 GlistrBoost")],
        "tcga", ["mask = *_GlistrBoost_ManuallyCorrected.nii.gz or *_GlistrBoost.nii.gz in 2 of 2 cases"],
    ),
    "UPENN-GBM": (
        UPENN, "upenn_gbm",
        ["FLAIR = *_FLAIR.nii.gz in 2 of 2 cases",
         "mask = *_automated_approx_segm.nii.gz or *_segm.nii.gz in 2 of 2 cases"],
    ),
    "UCSF-PDGM": (
        UCSF, "ucsf_pdgm",
        ["FLAIR = *_FLAIR.nii.gz in 2 of 2 cases", "mask = *_tumor_segmentation.nii.gz in 2 of 2 cases",
         "brain mask = *_brain_segmentation.nii.gz in 2 of 2 cases"],
    ),
    "BraTS-GoAT": (
        [*brats("BraTS-GoAT-00000", "-", "t1c t1n t2f t2w seg"),
         *brats("BraTS-GoAT-00001", "-", "t1c t1n t2f t2w seg")],
        "brats_2023", ["FLAIR = *-t2f.nii.gz in 2 of 2 cases"],
    ),
    "UCSF-ALPTDG": (
        [f"10010{k}/10010{k}_time{s}_{what}.nii.gz" for k in (1, 2) for s in (1, 2)
         for what in ("flair", "t1", "t1ce", "t2", "seg")],
        "ucsf_alptdg", ["FLAIR = *_flair.nii.gz in 4 of 4 cases", "mask = *_seg.nii.gz in 4 of 4 cases"],
    ),
    "UCSD-PTGBM": (
        brats("UCSD-PTGBM-0002_01", "_", "FLAIR T1pre T1post T2 ADC BraTS_tumor_seg total_cellular_tumor_seg"),
        "ucsd_ptgbm", ["FLAIR = *_FLAIR.nii.gz in 1 of 1 cases", "mask = *_BraTS_tumor_seg.nii.gz in 1 of 1 cases"],
    ),
    "MU-Glioma-Post": (
        [f"PatientID_000{k}/Timepoint_{s}/PatientID_000{k}_Timepoint_{s}_{what}.nii.gz" for k in (3, 4) for s in (1, 2)
         for what in ("brain_t1c", "brain_t1n", "brain_t2f", "brain_t2w", "tumorMask")],
        "folders", ["FLAIR = *_brain_t2f.nii.gz in 4 of 4 cases", "mask = *_tumorMask.nii.gz in 4 of 4 cases"],
    ),
    "EGD": (EGD, "egd", ["FLAIR = FLAIR.nii.gz in 2 of 2 cases", "mask = MASK.nii.gz in 2 of 2 cases"]),
    "BIDS": (
        BIDS, "bids",
        ["FLAIR = *_FLAIR.nii.gz in 4 of 4 cases", "mask = *_label-lesion_mask.nii.gz in 4 of 4 cases",
         "brain mask = *_desc-brain_mask.nii.gz in 2 of 4 cases"],
    ),
    "LUMIERE": (
        [f"Patient-00{k}/week-000-{s}/{what}.nii.gz" for k in (1, 2) for s in (1, 2)
         for what in ("CT1", "FLAIR", "T1", "T2", "seg")],
        "folders", ["FLAIR = FLAIR.nii.gz in 4 of 4 cases", "mask = seg.nii.gz in 4 of 4 cases"],
    ),
    "RHUH-GBM": (
        [f"RHUH-000{k}/{s}/RHUH-000{k}_{s}_{what}.nii.gz" for k in (1, 2) for s in (0, 1)
         for what in ("adc", "flair", "t1", "t1ce", "t2w", "segmentations")],
        "folders", ["FLAIR = *_flair.nii.gz in 4 of 4 cases", "mask = *_segmentations.nii.gz in 4 of 4 cases"],
    ),
    "Task01": (
        ["dataset.json", *(f"{where}/BRATS_00{k}.nii.gz" for k in (1, 2) for where in ("imagesTr", "labelsTr"))],
        "decathlon", ["image (FLAIR, T1w, t1gd, T2w) = *.nii.gz in 2 of 2 entries", "mask = *.nii.gz in 2 of 2 entries",
                      'values of the masks, any from 1 up is tumor: {"0": "background", "1": "edema"}'],
    ),
    "imagesTr and labelsTr alone": (
        [f"{where}/BRATS_00{k}.nii.gz" for k in (1, 2) for where in ("imagesTr", "labelsTr")],
        "decathlon", ["image (MRI) = *.nii.gz in 2 of 2 entries"],
    ),
    "nnU-Net 1": (
        ["dataset.json", *(f"imagesTr/BRATS_00{k}_000{c}.nii.gz" for k in (1, 2) for c in range(4)),
         *(f"labelsTr/BRATS_00{k}.nii.gz" for k in (1, 2))],
        "decathlon", ["image (FLAIR, T1w, t1gd, T2w) = *.nii.gz in 2 of 2 entries"],
    ),
    "nnU-Net 2": (
        ["dataset.json", *(f"imagesTr/BraTS2021_0000{k}_000{c}.nrrd" for k in (1, 2) for c in range(2)),
         *(f"labelsTr/BraTS2021_0000{k}.nrrd" for k in (1, 2))],
        "decathlon", ["image (FLAIR, T1ce) = *.nrrd in 2 of 2 entries"],
    ),
}  # fmt: skip
LISTS = {
    "Task01": {
        "name": "BRATS", "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "edema"}, "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/BRATS_00{k}.nii.gz", "label": f"./labelsTr/BRATS_00{k}.nii.gz"} for k in (1, 2)
        ],
        "test": [],
    },
    "nnU-Net 2": {
        "channel_names": {"0": "FLAIR", "1": "T1ce"}, "labels": {"background": 0, "tumor": 1}, "numTraining": 2,
        "file_ending": ".nrrd",
    },
}  # fmt: skip
LISTS["nnU-Net 1"] = LISTS["Task01"]


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


def real(path: Path, seed: int, value: float | None = None) -> Path:
    """A scan, or with a value a mask of it, at a path."""
    return save(scan(seed) if value is None else tumor(value), path)


def built(folder: Path, **options) -> tuple[list[dict], Report]:
    datalist, report = recognized(folder, progress=False, **options)
    return items_of(datalist), report


def test_the_better_mask_of_two_is_read_and_the_plain_image_of_two(tmp_path):
    folder = tmp_path / "UPENN"
    for k in (1, 2, 3):
        case = f"UPENN-GBM-0000{k}_11"
        real(folder / "images_structural" / case / f"{case}_FLAIR.nii.gz", k)
        real(folder / "automated_segm" / f"{case}_automated_approx_segm.nii.gz", k, 4)
    real(folder / "images_segm" / "UPENN-GBM-00002_11_segm.nii.gz", 2, 1)
    items, _ = built(folder)
    assert {item["label"] for item in items} == {
        "automated_segm/UPENN-GBM-00001_11_automated_approx_segm.nii.gz",
        "images_segm/UPENN-GBM-00002_11_segm.nii.gz",
        "automated_segm/UPENN-GBM-00003_11_automated_approx_segm.nii.gz",
    }
    folder = tmp_path / "UCSF"
    for k in (4, 5, 6):
        case = folder / f"UCSF-PDGM-000{k}_nifti" / f"UCSF-PDGM-000{k}"
        for what in ("FLAIR", "FLAIR_bias"):
            real(case.with_name(f"{case.name}_{what}.nii.gz"), k + (10 if "bias" in what else 0))
        real(case.with_name(f"{case.name}_tumor_segmentation.nii.gz"), k, 4)
        save((scan(k) > 50).astype(np.float32), case.with_name(f"{case.name}_brain_segmentation.nii.gz"))
    (folder / "UCSF-PDGM-0006_nifti" / "UCSF-PDGM-0006_FLAIR.nii.gz").unlink()
    items, _ = built(folder)
    assert {item["image"] for item in items} == {
        "UCSF-PDGM-0004_nifti/UCSF-PDGM-0004_FLAIR.nii.gz",
        "UCSF-PDGM-0005_nifti/UCSF-PDGM-0005_FLAIR.nii.gz",
        "UCSF-PDGM-0006_nifti/UCSF-PDGM-0006_FLAIR_bias.nii.gz",
    }
    assert all(f"{item['label'][:36]}brain_segmentation.nii.gz" == item["foreground"] for item in items)


def test_folders_of_single_files_are_one_case_and_its_values_are_kept(tmp_path):
    for k, case in enumerate(("HGG/brats_2013_pat0001_1", "HGG/brats_tcia_pat117_0001", "LGG/brats_tcia_pat130_0002")):
        for what, value in (("MR_Flair", None), ("MR_T1c", None), ("OT", 3)):
            stem = f"VSD.Brain.XX.O.{what}.5451{k}"
            real(tmp_path / case / stem / f"{stem}.mha", 20 + k + 5 * (what == "MR_T1c"), value)
    items, report = built(tmp_path, channels=["T1ce", "FLAIR"])
    assert report.figures["labels"] == [0, 3]
    first = next(item for item in items if "pat0001" in item["label"])
    stem = "HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.{0}.54510/VSD.Brain.XX.O.{0}.54510.mha"
    assert first["image"] == [stem.format("MR_T1c"), stem.format("MR_Flair")]
    assert first["label"] == stem.format("OT")


def test_channels_of_nnunet_are_files_that_can_be_chosen(tmp_path):
    for k in (1, 2, 3):
        for channel in (0, 1):
            real(tmp_path / "imagesTr" / f"gbm_00{k}_000{channel}.nii.gz", 30 + 2 * k + channel)
        real(tmp_path / "labelsTr" / f"gbm_00{k}.nii.gz", k, 2)
    about = {"channel_names": {"0": "T1ce", "1": "FLAIR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({**about, "numTraining": 3}), encoding="utf-8")
    items, _ = built(tmp_path)
    names = {f"gbm_00{k}": [f"imagesTr/gbm_00{k}_000{channel}.nii.gz" for channel in (0, 1)] for k in (1, 2, 3)}
    assert all(item["image"] == names[item["label"][9:16]] for item in items)
    items, _ = built(tmp_path, channels=["FLAIR"])
    assert {item["image"] for item in items} == {f"imagesTr/gbm_00{k}_0001.nii.gz" for k in (1, 2, 3)}
    assert len({item["patient"] for item in items}) == 3
    with pytest.raises(ValueError, match="0 channels are T2; the list names T1ce, FLAIR"):
        recognized.plan(tmp_path, channels=["T2"])
    (tmp_path / "imagesTr" / "gbm_002_0001.nii.gz").unlink()
    plan = recognized.plan(tmp_path, channels=["FLAIR"])
    assert plan.report.unusable == [("imagesTr/gbm_002_0000.nii.gz", "has 1 of the list's 2 channels")]


def test_a_brain_mask_taken_for_a_tumor_is_refused(tmp_path):
    for k in (1, 2, 3, 4):
        anat = tmp_path / f"sub-0{k}" / "anat"
        real(anat / f"sub-0{k}_FLAIR.nii.gz", 40 + k)
        mask = tmp_path / "derivatives" / "bet" / f"sub-0{k}" / "anat" / f"sub-0{k}_mask.nii.gz"
        save((scan(40 + k) > 50).astype(np.float32), mask) if k == 4 else real(mask, k, 1)
    _, report = built(tmp_path)
    assert len(report.unusable) == 1
    assert report.unusable[0][0] == "sub-04"
    assert "of the head: a mask of the brain, or inverted, no tumor" in report.unusable[0][1]


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


def test_links_to_folders_are_followed_once_and_the_rest_is_named(tmp_path):
    store = tmp_path / "store"
    for k in (1, 2, 3):
        real(store / f"p{k}" / "flair.nii.gz", 50 + k)
        real(store / f"p{k}" / "seg.nii.gz", k, 1)
    folder = tmp_path / "study"
    (folder / "site").mkdir(parents=True)
    (folder / "p1").symlink_to(store / "p1")
    (folder / "site" / "linked").symlink_to(store)
    (folder / "site" / "back").symlink_to(folder)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    files = walk(folder, report := Report())
    assert [path.relative_to(folder).as_posix() for path in files if path.name == "flair.nii.gz"] == [
        "p1/flair.nii.gz", "site/linked/p2/flair.nii.gz", "site/linked/p3/flair.nii.gz"
    ]  # fmt: skip
    assert dict(report.unusable) == {
        "site/back": "a link to ., which is listed already",
        "site/linked/p1": "a link to p1, which is listed already",
    }
    items, report = built(folder)
    assert {item["image"] for item in items} == {
        "p1/flair.nii.gz", "site/linked/p2/flair.nii.gz", "site/linked/p3/flair.nii.gz"
    }  # fmt: skip
    assert dict(report.unusable)["gone"] == "a symbolic link that leads nowhere"


def test_names_that_cannot_stand_in_a_list_are_refused_and_the_rest_is_used(tmp_path):
    for k in (1, 2, 3):
        real(tmp_path / f"p{k}" / "flair.nii.gz", 60 + k)
        real(tmp_path / f"p{k}" / "seg.nii.gz", k, 1)
    long = "x" * 248 + ".nii.gz"
    (tmp_path / "p1" / long).write_bytes(b"x")
    (tmp_path / "p2" / "a\\b.nii.gz").write_bytes(b"x")
    os.makedirs(os.fsencode(tmp_path) + b"/caf\xe9")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/flair.nii.gz")).write_bytes(b"x")
    items, report = built(tmp_path)
    assert {item["image"] for item in items} == {f"p{k}/flair.nii.gz" for k in (1, 2, 3)}
    reasons = dict(report.unusable)
    assert reasons["caf\\xe9"] == "its name is not UTF-8; rename it"
    assert reasons[f"p1/{long}"].startswith("its name is 255 bytes long, at most 200 leave room")
    assert "holds a backslash" in reasons["p2/a\\b.nii.gz"]
    datalists.write_report(report, tmp_path / "report.json")
    assert "caf\\xe9" in {entry["file"] for entry in json.loads((tmp_path / "report.json").read_text())["unusable"]}


# Pictures


def gray(index: int, tumor: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A phantom slice of 96 x 96 pixels as rows and columns, uint8, and its mask."""
    image, mask = phantom_slice([83, index], tumor, (96, 96), level_mm=-20 + 17 * (index % 5))
    return np.rint(image.T * 255).astype(np.uint8), np.asarray(mask).T.reshape(96, 96) > 0


def draw(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def loaded(root: Path, item: dict) -> tuple[np.ndarray, np.ndarray]:
    found = LoadCased()({"image": str(root / item["image"]), "label": str(root / item["label"])})
    return found["image"][0].numpy(), found["label"][0].numpy()


def test_class_folders_with_masks_beside_the_images_in_any_parts(tmp_path):
    for k in range(12):
        kind, tumor = ("notumor", False) if k < 4 else ("glioma", True)
        part = "Training" if k % 2 else "Testing"
        pixels, mask = gray(k, tumor)
        draw(pixels, tmp_path / part / kind / f"Tr-{kind}_{k:04d}.jpg")
        if k in (4, 5):
            draw((mask * 255).astype(np.uint8), tmp_path / part / kind / f"Tr-{kind}_{k:04d}_mask.png")
    for number in (1, 2):
        draw((mask * 255).astype(np.uint8), tmp_path / "Training" / "glioma" / f"Tr-glioma_0011_mask_{number}.png")
    draw((mask * 255).astype(np.uint8), tmp_path / "Training" / "glioma" / "other_mask.png")
    plan = recognized.plan(tmp_path, progress=False)
    assert plan.taken[:4] == [
        "layout = pictures: class folders, or images with masks: <name>_mask.* beside them, or masks/ beside images/",
        "class 0 = notumor: 4 images", "class 1 = glioma: 7 images", "mask = *_mask.png in 2 of 11 images",
    ]  # fmt: skip
    assert dict(plan.report.unusable) == {
        "Training/glioma/Tr-glioma_0011.jpg": "has 2 masks (Tr-glioma_0011_mask_1.png, Tr-glioma_0011_mask_2.png): "
        "one of each is needed",
        "Training/glioma/other_mask.png": "a mask by its name, and no image of its stem is there",
    }
    datalist = plan.build()
    assert datalist["classes"] == {"0": "notumor", "1": "glioma"}
    masks = {item["image"]: item["label"] for item in items_of(datalist) if "label" in item}
    assert masks == {
        "Testing/glioma/Tr-glioma_0004.jpg": "Testing/glioma/Tr-glioma_0004_mask.png",
        "Training/glioma/Tr-glioma_0005.jpg": "Training/glioma/Tr-glioma_0005_mask.png",
    }


def test_slices_of_tcga_give_the_flair_of_three_images_and_the_patient(tmp_path, monkeypatch):
    folder, frames = tmp_path / "kaggle_3m", {}
    for k, case in enumerate(("TCGA_CS_4941_19960909", "TCGA_DU_5849_19950405", "TCGA_FG_6692_20020606")):
        for number in (1, 2, 3):
            pixels, mask = gray(10 * k + number, number > 1)
            frames[f"{case}/{case}_{number}"] = pixels
            color = np.stack([255 - pixels, pixels, pixels // 2], axis=2)
            draw(color, folder / case / f"{case}_{number}.tif")
            draw((mask * 255).astype(np.uint8), folder / case / f"{case}_{number}_mask.tif")
    touch(folder, "README.md", "data.csv")
    out = tmp_path / "lgg.json"
    command(["datalist", "build", "--folder", str(folder), "--out", str(out), "--dry_run"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kaggle_3m"]
    with pytest.raises(ValueError, match="among the images: give an --out outside"):
        recognized.plan(folder, unpack=folder / "x")
    command(["datalist", "build", "--folder", str(folder), "--out", str(out)])
    datalist = datalists.read(out, tmp_path / "lgg_pictures")
    assert datalist["modality"] == {"0": "FLAIR"}
    items = items_of(datalist)
    assert {item["patient"] for item in items} == {"TCGA_CS_4941", "TCGA_DU_5849", "TCGA_FG_6692"}
    assert len(items) == 9
    for item in items:
        stem = item["image"].removesuffix(".png")
        image, mask = loaded(tmp_path / "lgg_pictures", item)
        assert np.array_equal(image, frames[stem].T)
        assert item["diagnosis"] == int(mask.any()) == int(not stem.endswith("_1"))


def test_images_and_masks_in_two_folders_say_the_class_by_the_mask(tmp_path):
    for k in range(6):
        pixels, mask = gray(40 + k, k > 2)
        draw(pixels, tmp_path / "train" / "images" / f"{k}.png")
        draw((mask * 255).astype(np.uint8), tmp_path / "train" / "masks" / f"{k}.png")
    draw(pixels, tmp_path / "train" / "images" / "9.png")
    items, report = built(tmp_path)
    assert {item["image"]: item["diagnosis"] for item in items} == {
        f"train/images/{k}.png": int(k > 2) for k in range(6)
    }
    assert all(item["label"] == item["image"].replace("images", "masks") for item in items)
    assert "patient" not in items[0]
    assert dict(report.unusable) == {
        "train/images/9.png": "has no mask, and no folder is named as a class without tumor"
    }


def matlab(path: Path, image: np.ndarray, mask: np.ndarray, label: int, patient: str) -> Path:
    """A file as MATLAB 7.3 writes it: HDF5 behind 512 bytes of text, columns first."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["cjdata/image"], file["cjdata/tumorMask"] = image.T, mask.T.astype(np.uint8)
        file["cjdata/label"] = np.array([[float(label)]])
        file["cjdata/PID"] = np.array([[ord(letter)] for letter in patient], np.uint16)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: PCWIN64".ljust(124) + b"\x00\x02IM")
    return path


def test_matlab_slices_give_image_mask_class_and_patient(tmp_path, caplog):
    folder, given = tmp_path / "cheng", {}
    for k in range(9):
        pixels, mask = gray(60 + k)
        image = pixels.astype(np.int16) * 40
        label = k % 3 + 1
        given[f"{('meningioma', 'glioma', 'pituitary')[k % 3]}/set_{k // 5}/{k}.png"] = (image, mask)
        matlab(folder / f"set_{k // 5}" / f"{k}.mat", image, mask, label, f"10{k // 3}36{'0A'[k % 2]}")
    touch(folder, "README.txt", "cvind.mat")
    matlab(folder / "damaged.mat", image, mask, 1, "5").write_bytes(b"MATLAB 7.3 MAT-file, damaged")
    matlab(folder / "label.mat", image, mask, 4, "5")
    out = tmp_path / "cheng.json"
    command(["datalist", "build", "--folder", str(folder), "--out", str(out)])
    assert "no item of class no_tumor" in caplog.text
    datalist = datalists.read(out, tmp_path / "cheng_pictures")
    items = items_of(datalist)
    assert datalist["classes"] == {"0": "no_tumor", "1": "meningioma", "2": "glioma", "3": "pituitary"}
    assert len({item["patient"] for item in items}) == 6
    for item in items:
        image, mask = loaded(tmp_path / "cheng_pictures", item)
        assert np.array_equal(image, given[item["image"]][0].T)
        assert np.array_equal(mask > 0, given[item["image"]][1].T)
        assert item["image"].startswith(datalist["classes"][str(item["diagnosis"])])
    written = json.loads((tmp_path / "cheng.report.json").read_text(encoding="utf-8"))
    assert {entry["file"]: entry["reason"].split(":")[0] for entry in written["unusable"]} == {
        "README.txt": "no .mat file of MATLAB 7.3",
        "cvind.mat": "no .mat file of MATLAB 7.3",
        "damaged.mat": "damaged.mat is damaged",
        "label.mat": "label.mat has the label 4, expected 1 to 3",
    }


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


def test_a_picture_whose_name_is_not_utf8_ends_no_class_folder(tmp_path):
    for k in range(6):
        draw(gray(80 + k, k > 2)[0], tmp_path / "images" / ("glioma" if k > 2 else "healthy") / f"{k}.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/glioma/caf\xe9.png")).write_bytes(b"x")
    Path(tmp_path / "images" / "healthy" / ("x" * 251 + ".png")).write_bytes(b"x")
    plan = recognized.plan(tmp_path, progress=False)
    assert plan.taken[0].startswith("layout = image_folder: ")
    assert dict(plan.report.unusable)["images/glioma/caf\\xe9.png"] == "its name is not UTF-8; rename it"
    assert len(plan.report.unusable) == 2
    assert len(items_of(plan.build())) == 6


def test_a_channel_of_a_file_of_all_is_written_and_listed(tmp_path):
    folder, given = tmp_path / "Task01", {}
    for k in (1, 2, 3):
        channels = [scan(70 + 4 * k + c) for c in range(4)]
        given[f"BRATS_00{k}"] = channels
        save(np.stack(channels, axis=-1), folder / "imagesTr" / f"BRATS_00{k}.nii.gz")
        save(tumor(2), folder / "labelsTr" / f"BRATS_00{k}.nii.gz")
    save(np.stack(channels[:2], axis=-1), folder / "imagesTr" / "BRATS_004.nii.gz")
    save(tumor(2), folder / "labelsTr" / "BRATS_004.nii.gz")
    listed = [
        {"image": f"./imagesTr/BRATS_00{k}.nii.gz", "label": f"./labelsTr/BRATS_00{k}.nii.gz"} for k in range(1, 5)
    ]
    (folder / "dataset.json").write_text(json.dumps({**LISTS["Task01"], "training": listed}), encoding="utf-8")
    with pytest.raises(ValueError, match="give the folder for them as unpack"):
        recognized.plan(folder, channels=["FLAIR"])
    out = tmp_path / "msd.json"
    arguments = ["datalist", "build", "--folder", str(folder), "--out", str(out), "--channels", "T1ce"]
    command([*arguments, "--dry_run"])
    assert [path.name for path in tmp_path.iterdir()] == ["Task01"]
    command(arguments)
    datalist = datalists.read(out, tmp_path / "msd_pictures")
    assert datalist["modality"] == {"0": "t1gd"}
    items = items_of(datalist)
    assert {item["image"] for item in items} == {f"imagesTr/BRATS_00{k}_t1gd.nii.gz" for k in (1, 2, 3)}
    assert len({item["patient"] for item in items}) == 3
    for item in items:
        root = tmp_path / "msd_pictures"
        case = LoadCased(spatial_dims=3)({key: str(root / item[key]) for key in ("image", "label")})
        assert np.array_equal(case["image"][0].numpy(), given[item["label"][9:18]][2])
        assert np.array_equal(case["label"][0].numpy() > 0, tumor() > 0)
    report = json.loads((tmp_path / "msd.report.json").read_text(encoding="utf-8"))
    assert "expected 4 dimensions, the last of 4 channels" in json.dumps(report["unusable"])


@pytest.mark.parametrize("listed", [False, True])
def test_pictures_of_nnunet_have_their_masks_in_the_folder_of_labels(tmp_path, listed):
    for k in range(6):
        pixels, mask = gray(90 + k, k > 2)
        draw(pixels, tmp_path / "imagesTr" / f"brain_{k}_0000.png")
        draw(mask.astype(np.uint8), tmp_path / "labelsTr" / f"brain_{k}.png")
    draw(pixels, tmp_path / "imagesTs" / "brain_9_0000.png")
    if listed:
        about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "tumor": 1}, "numTraining": 6}
        (tmp_path / "dataset.json").write_text(json.dumps({**about, "file_ending": ".png"}), encoding="utf-8")
    plan = recognized.plan(tmp_path)
    assert plan.taken[0].startswith("layout = pictures: ")
    items = items_of(plan.build())
    assert {item["image"]: (item["label"], item["diagnosis"]) for item in items} == {
        f"imagesTr/brain_{k}_0000.png": (f"labelsTr/brain_{k}.png", int(k > 2)) for k in range(6)
    }
    assert ("imagesTs/brain_9_0000.png", "has no mask, and no folder is named as a class without tumor") in (
        plan.report.unusable
    )
    draw(pixels, tmp_path / "imagesTr" / "brain_5_0001.png")
    plan = recognized.plan(tmp_path)
    assert dict(plan.report.unusable)["imagesTr/brain_5_0000.png"] == (
        "has the stem of 2 images (brain_5_0000.png, brain_5_0001.png): one of each is needed"
    )
