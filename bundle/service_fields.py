"""Fields of the forms that service and page take."""

from __future__ import annotations

import inspect
from typing import Annotated, Literal

from fastapi import File, Form, UploadFile
from starlette.requests import Request

from bundle.uploads import KINDS, UploadRefused

__all__ = [
    "Anonymous", "Channel", "Dicom", "EvidenceSegments", "ForegroundUpload", "Plane", "Slice", "Upload", "known_fields",
]  # fmt: skip

Upload = Annotated[UploadFile, File(description=KINDS)]
ForegroundUpload = Annotated[
    UploadFile | None, File(description="mask of the head on the image's grid; computed where it is not given")
]
Slice = Annotated[int | None, Form(ge=0, le=1 << 20, description="one slice of a volume; all where it is not given")]
Plane = Annotated[Literal["axial", "coronal", "sagittal", "auto"] | None, Form(description="in which a volume is cut")]
Channel = Annotated[int | None, Form(ge=0, le=1 << 20, description="which volume of a 4D file, counted from 0")]
Dicom = Annotated[bool, Form(description="of a DICOM series: objects in the answer, those of predict --dicom")]
Anonymous = Annotated[bool, Form(description="objects that say nothing of the patient")]
EvidenceSegments = Annotated[bool, Form(description="of the objects: the evidence as a Segmentation too")]


async def known_fields(request: Request) -> None:
    """Refuse what an endpoint does not take: a misspelled field would be left out without a word.

    Raises:
        UploadRefused: names the fields.
    """
    takes = [name for name in inspect.signature(request.scope["endpoint"]).parameters if name != "request"]
    names = [name for name, _ in (await request.form()).multi_items()]
    if unknown := sorted({*names, *request.query_params} - set(takes)):
        raise UploadRefused(
            422, f"there is no field {', '.join(map(repr, unknown))}; the form takes {', '.join(takes)}"
        )
    if request.query_params:
        raise UploadRefused(422, f"{', '.join(request.query_params)} belongs into the form, not into the address")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UploadRefused(422, f"{', '.join(twice)} is given more than once")
