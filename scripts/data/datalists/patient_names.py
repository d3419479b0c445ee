"""What one file or folder name says about the person: names of public collections, words for a person, numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEMES: dict[str, str] = {
    "BIDS": r"sub-[a-z0-9]+",
    "BraTS 2023 and later": r"brats-[a-z]+(?:-rt)?-\d{4,5}",
    "BraTS 2020 and 2021": r"brats(?:20)?2[01](?:_(?:training|validation|testing))?_\d{3,5}",
    "BraTS 2017 to 2019": r"(?<=brats1[789]_)[a-z0-9]+_[a-z0-9]+",
    "BraTS 2013 to 2016": r"brats_(?:2013|tcia)_pat\d+",
    "BraTS 2012": r"(?:sim)?brats_[hl]g\d{4}",
    "BraTS-Reg": r"bratsreg_\d{3}",
    "UPENN-GBM": r"upenn-gbm-\d{5}",
    "UCSF-PDGM": r"ucsf-pdgm-\d{3,4}",
    "UCSD-PTGBM": r"ucsd-ptgbm-\d{4}",
    "TCGA": r"tcga([-_])[a-z0-9]{2}\1[a-z0-9]{4}",
    "ACRIN": r"acrin-[a-z-]+-\d{3}",
    "CPTAC": r"c3[ln]-\d{5}",
    "OASIS-1 and 2": r"oas[12]_\d{4}",
    "OASIS-3 and 4": r"oas[34]\d{4}",
    "ADNI": r"\d{3}_s_\d{4,5}",
    "AIBL and PPMI": r"(?:aibl|ppmi)_\d+",
    "IXI": r"ixi\d{3}",
    "Yale brain metastases": r"yg_[a-z0-9]{6,}",
    "REMBRANDT": r"\d{3}-\d{2}-\d{4}|hf\d{4}",
    "ReMIND": r"remind-\d{3}",
    "RHUH-GBM": r"rhuh-\d{4}",
    "HCP": r"\d{6}(?=_[37]t(?:_|$))",
    "UK Biobank": r"\d{7}(?=_\d{5}_\d_\d)",
    "ISBI 2015": r"(?:training|test)\d{2}(?=_\d{2}_)",
}
_KNOWN = {name: re.compile(rf"(?<![a-z0-9])(?:{text})(?![a-z0-9])", re.I) for name, text in SCHEMES.items()}
_KNOWN["BraTS 2017 to 2019"] = re.compile(SCHEMES["BraTS 2017 to 2019"] + r"(?=_\d|$)", re.I)
_PERSON = re.compile(
    r"(?<![a-z0-9])(?:patient|pat|pt|subject|subj|sub|case|person|participant|volunteer|control|mrn|id|p|s)"
    r"(?:[-_ ]?id)?[-_ ]?\d+(?![a-z0-9])", re.I,
)  # fmt: skip
_SEPARATOR = r"[-_. ()+,]"
_NUMBERED = (
    "ses|session|visit|vis|v|tp|timepoint|time[-_ ]?point|time|study|exam|scan|week|wk|month|mo|m|year|yr|day|d|fu|"
    "follow[-_ ]?up|run|acq|acquisition|rec|echo|series|slice|sl|slc|image|img|im|frame|z|part|mr"
)
ALONE = (
    # time points
    "baseline|bl|pre|post|pre[-_]?op|post[-_]?op|intra[-_]?op|preoperative|postoperative|before|after|follow[-_ ]?up|"
    # channels and masks
    "flair|t2f|t1|t1n|t1w|t1c|t1ce|t1gd|t1post|t1contrast|t2|t2w|t2star|pd|pdw|dwi|adc|swi|dti|asl|mra|mprage|mpr|spgr|"
    "bravo|ce|gd|contrast|seg|segm|segmentation|mask|masks|label|labels|lesion|tumor|tumour|roi|ot|otmulticlass|"
    "brainmask|brain|"
    # processing and kinds of files
    "mni|mni152|reg|registered|bet|n4|raw|norm|normalized|normalised|stripped|skullstripped|ss|corrected|pp|bias|"
    "preprocessed|anon|defaced|resampled|warped|nifti|nii|dicom|dcm|image|img|mri|mr|scan|gold|final"
)
_DATE = (
    r"(?:19|20)\d{2}([-_.]?)(?:0[1-9]|1[0-2])\2(?:0[1-9]|[12]\d|3[01])(?:\d{6})?"
    r"|\d{1,2}([-_.])\d{1,2}\3(?:19|20)\d{2}"
)
NOBODY = re.compile(
    rf"(?<![a-z0-9])(?:(?:{_NUMBERED}){_SEPARATOR}{{0,2}}\d+(?:[-_.]\d{{1,3}})?[a-z]?|({_DATE})|{ALONE})(?![a-z0-9])",
    re.I,
)
# Folders that hold many people, or files of all kinds.
CONTAINER = re.compile(
    r"(?:train|training|val|validation|valid|test|testing|images?|masks?|labels?|foregrounds?|(?:images|labels)(?:tr|ts|va)"
    r"|data|dataset|nifti|niftis|volumes?|dicom|raw|derivatives|anat|func|dwi|rawdata|sourcedata|preprocessed|processed|"
    r"hgg?|lgg?|hgg_lgg|glioma|gbm|meningioma|pituitary|healthy|controls?|patients?|cases|no_?tumou?r|tumou?r|yes|no|"
    r"(?:site|cent(?:er|re)|hospital|scanner|vendor|cohort|group|fold|batch|part|dataset|release|phase|split|set|class)"
    r"[-_ ]?[a-z0-9]*)",
    re.I,
)
# Of these, people of one number in two of them are two.
APART = re.compile(
    r"hgg?|lgg?|healthy|controls?|patients?|"
    r"(?:site|cent(?:er|re)|hospital|scanner|vendor|cohort|group|dataset)[-_ ]?[a-z0-9]+",
    re.I,
)
MEANINGLESS = re.compile(r"VSD\.|\d+(?:\.\d+){4,}$", re.I)
_LAST_NUMBER = re.compile(r"(?P<base>.*\d[a-z]*)[-_.](?:\d{1,3}|000\d)$", re.I)
_SUFFIX = re.compile(
    r"(?:\.(?:nii|img|hdr|mha|mhd|nrrd|mgz|mgh|mat|npy|png|jpe?g|tiff?|bmp|gif|webp|jp2|dcm|h5))?(?:\.gz)?$", re.I
)


def stem_of_name(name: str) -> str:
    """A name without the suffix of volumes, pictures or tables.

    >>> stem_of_name("a.b_T1.nii.gz"), stem_of_name("week-000-1")
    ('a.b_T1', 'week-000-1')
    """
    return _SUFFIX.sub("", name, count=1)


@dataclass(frozen=True)
class Reading:
    """What one name says about the person.

    Attributes:
        patient: the part of the name that is the person; "" where it names nobody.
        rule: which sign said so: a key of `SCHEMES`, "person and number", "name", or "" for nobody.
        whole: the person if the doubt is settled the other way: a number at the end counts for the person.
    """

    patient: str
    rule: str
    whole: str = ""

    @property
    def doubtful(self) -> bool:
        """Whether a number at the end was taken for a time point without any other sign."""
        return bool(self.whole)


def read_name(name: str) -> Reading:
    """What one file or folder name says about the person.

    >>> read_name("sub-01_ses-02_T1w.nii.gz"), read_name("week-000-1")
    (Reading(patient='sub-01', rule='BIDS', whole=''), Reading(patient='', rule='', whole=''))
    >>> read_name("x12_1"), read_name("patient01_study1_FLAIR.nii").patient
    (Reading(patient='x12', rule='name', whole='x12_1'), 'patient01')
    """
    stem = stem_of_name(name)
    for scheme, pattern in _KNOWN.items():
        if match := pattern.search(stem):
            return Reading(match[0], scheme)
    if MEANINGLESS.match(stem) or CONTAINER.fullmatch(stem):
        return Reading("", "")
    kept: list[str] = []
    for piece in re.split(f"{_SEPARATOR}*\0{_SEPARATOR}*", NOBODY.sub("\0", stem)):
        text = re.sub(f"^{_SEPARATOR}+|{_SEPARATOR}+$", "", piece)
        kept += [text] if text else []
        if re.search(r"\d", text):
            break
    text = "_".join(kept)
    if match := _PERSON.search(text):
        rest = text[match.end() :]
        return Reading(text[: match.end()], "person and number", text if re.fullmatch(r"[-_.]\d+", rest) else "")
    if not re.search(r"\d", text):
        return Reading("", "")
    if match := _LAST_NUMBER.fullmatch(text):
        return Reading(match["base"], "name", text)
    return Reading(text, "name")
