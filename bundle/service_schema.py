"""Answers of the service, with units."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: Any = Field(description="the reason, one sentence; for parameters of a wrong type a list of what is wrong")


class Health(BaseModel):
    """State of the service."""

    status: str = Field(description="ok")
    waiting: dict[str, int] = Field(description="requests that wait, about: pictures, volumes, explanations")


class Model(BaseModel):
    """The loaded bundle."""

    name: str
    version: str
    task: str
    intended_use: str
    classes: list[str] = Field(description="by index; the first is no tumor")
    threshold: float = Field(description="tumor probability from which on a tumor counts as detected, 0 to 1")
    temperature: float = Field(description="by which logits are divided before the softmax")
    mask_thresholds: dict[str, float] = Field(description="probability above which a place is in the mask, by region")
    prevalence: dict[str, float] | None = Field(
        description="of each class, that the probabilities are for; null: that of the training"
    )
    backend: str = Field(description="what runs the network's passes of a prediction: torch, or onnxruntime")
    input_size_pixels: list[int] = Field(description="of a slice as the network sees it")
    input_channels: int
    parameters: int
    methods: list[str] = Field(description="of /explain")
    default_layer: str
    layers: list[str] = Field(description="whole blocks, fit for /explain")
    notice: str


class EncodedArray(BaseModel):
    """An array on the grid of the uploaded image."""

    format: str = Field(description="png (a picture; maps are times 255) or nii.gz (a volume, with its affine)")
    data: str = Field(description="base64")


class Flag(BaseModel):
    """What speaks against trusting the result."""

    code: str
    message: str
    slices: list[int] | None = Field(default=None, description="of a volume, those concerned")


class RawAnswer(BaseModel):
    """What the network says alone; its parts may contradict each other."""

    tumor_detected: bool = Field(description="whether the probability reaches the threshold")
    predicted_class: str
    tumor_voxels: int
    evidence_maximum: float | None
    contradictions: list[str]


class DicomObjects(BaseModel):
    """DICOM objects that refer to the uploaded series, each a file in base64."""

    segmentation: str = Field(description="Segmentation, binary: the mask")
    evidence: str | None = Field(default=None, description="Parametric Map; null without an evidence head")
    report: str = Field(description="Enhanced Structured Report, TID 1500")
    segments: str | None = Field(default=None, description="Segmentation, binary: the evidence in steps, if asked for")


class MultitaskAnswer(BaseModel):
    """Prediction for one image or volume."""

    source: str = Field(description="name of the uploaded file")
    verdict: str = Field(
        description="tumor, no tumor, uncertain or not assessed: joined from probability, mask, evidence"
    )
    reasons: list[str] = Field(description="why it is uncertain or not assessed")
    tumor_detected: bool | None = Field(description="whether the verdict is tumor; null where it is neither yes nor no")
    tumor_probability: float = Field(description="of any tumor, calibrated, 0 to 1")
    threshold: float = Field(description="0 to 1, chosen on validation data, kept in the weights")
    prevalence: dict[str, float] | None = Field(
        description="of each class, that the probabilities are for; null: that of the training"
    )
    predicted_class: str | None
    class_probabilities: dict[str, float] = Field(description="0 to 1, sum 1")
    slice_probabilities: list[float | None] | None = Field(
        description="of a volume: tumor probability of each slice of the plane, null where a slice was not read"
    )
    plane: str | None = Field(description="in which a volume was cut")
    shape: list[int] = Field(description="of mask and evidence: rows, columns; or X, Y, Z of a volume")
    affine: list[list[float]] = Field(description="voxel indices to RAS+ millimeters; identity of a picture")
    tumor_voxels: int = Field(description="pixels or voxels of the mask")
    evidence_maximum: float | None = Field(description="calibrated log-odds: 0 none, 2.94 odds of 19 to 1")
    probability_std: float | None = Field(description="over several views of the image, where asked for; 0 to 0.5")
    raw: RawAnswer = Field(description="what the network says before anything is joined")
    scores: dict[str, float] = Field(description="further scores of the input")
    flags: list[Flag]
    mask: EncodedArray | None = Field(description="0 background, 1 tumor")
    evidence: EncodedArray | None = Field(
        description="calibrated log-odds e, 0 and up; of a picture 255 tanh(e / 2); null without an evidence head"
    )
    objects: DicomObjects | None = Field(description="of a DICOM series, where they are asked for")
    notice: str


class ExplanationAnswer(BaseModel):
    """Heatmap of one image or volume."""

    method: str
    layer: str
    target: str = Field(description="tumor_log_odds (any tumor), a class or margin by name, or the segmentation")
    empty: bool = Field(description="nothing speaks for the target: the map is 0 everywhere")
    message: str = Field(description="to be shown with the map")
    slices: list[int] | None = Field(description="of a volume, those that were explained")
    shape: list[int] = Field(description="rows, columns; or X, Y, Z of a volume")
    map: EncodedArray = Field(description="0 to 1, 1 = strongest")
    notice: str
