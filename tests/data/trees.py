"""Names of files as public collections have them, with the layout of each."""

from __future__ import annotations

from pathlib import Path


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
