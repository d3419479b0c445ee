"""HTTP service: an image in, probability, mask and evidence out.

    python -m scripts serve --run_dir runs/mine --port 8000
    curl -F image=@slice.png http://127.0.0.1:8000/predict_multitask

Its description for programs is at ``/openapi.json``, for people at ``/docs``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import io
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import nibabel as nib
import numpy as np
import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bundle.batching import Batcher, QueueFull
from bundle.predictor import Explanation, Prediction, Predictor
from bundle.service_model import NOTICE, describe_model, read_metadata
from bundle.service_schema import ExplanationAnswer, Health, Model, MultitaskAnswer, Problem
from bundle.uploads import BodyLimit, UploadLimits, UploadRefused, stored
from scripts.command.verbs import Outcome, inference_overlays
from scripts.explain.methods import METHODS

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is no form of the documented kind"},
    413: {"model": Problem, "description": "the upload is too large"},
    415: {"model": Problem, "description": "the upload is no image that is read here"},
    422: {"model": Problem, "description": "the upload or a parameter cannot be used, with the reason"},
    503: {"model": Problem, "description": "too many requests wait, or the service shuts down; try again later"},
}
Upload = Annotated[UploadFile, File(description="PNG, JPEG, BMP, TIFF or NIfTI (.nii, .nii.gz)")]
ForegroundUpload = Annotated[
    UploadFile | None, File(description="mask of the head on the image's grid; computed where it is not given")
]
Slice = Annotated[int | None, Form(ge=0, le=1 << 20, description="one slice of a volume; all where it is not given")]
Plane = Annotated[Literal["axial", "coronal", "sagittal", "auto"] | None, Form(description="in which a volume is cut")]
Channel = Annotated[int | None, Form(ge=0, le=1 << 20, description="which volume of a 4D file, counted from 0")]


def create_app(predictor: Predictor, limits: UploadLimits | None = None, max_batch: int = 8) -> FastAPI:
    """The application around a loaded predictor.

    Args:
        predictor: is shared by all requests.
        limits: of uploads.
        max_batch: images predicted together.
    """
    limits = limits or UploadLimits()
    metadata = read_metadata(predictor.bundle_root)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(lambda items: predict_together(predictor, items), max_batch)
        yield
        await run_in_threadpool(app.state.batcher.close)

    app = FastAPI(
        title="TumorLens",
        version=str(metadata["version"]),
        description=f"Brain-tumor MRI: tumor probability, mask and evidence map of an image. {NOTICE}",
        lifespan=lifespan,
    )
    # Twice: image and mask of the head may both be as large as allowed.
    app.add_middleware(BodyLimit, limit_bytes=2 * limits.bytes + (64 << 10))

    @app.exception_handler(UploadRefused)
    async def refused(_: Request, error: UploadRefused) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=error.status)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        logger.error("request failed", exc_info=error)
        return JSONResponse({"detail": "the service failed; its log says why"}, status_code=500)

    @app.get("/health", response_model=Health)
    async def health() -> dict[str, Any]:
        """Whether the service answers, and how much waits."""
        return {"status": "ok", "waiting": app.state.batcher.waiting}

    @app.get("/model", response_model=Model)
    async def model() -> dict[str, Any]:
        """What is loaded: classes, thresholds, input, methods, intended use."""
        return describe_model(predictor, metadata)

    @app.post("/predict_multitask", response_model=MultitaskAnswer, responses=PROBLEMS)
    async def predict_multitask(
        image: Upload,
        foreground: ForegroundUpload = None,
        slice: Slice = None,
        plane: Plane = None,
        channel: Channel = None,
        uncertainty: Annotated[bool, Form(description="seven passes in place of one")] = False,
        arrays: Annotated[bool, Form(description="mask and evidence in the answer")] = True,
    ) -> Any:
        """Probability of a tumor and of each class, mask and evidence of one image or volume."""
        options = {"slice": slice, "plane": plane, "channel": channel}
        with ExitStack() as stack:
            request = await _request(stack, image, foreground, options, limits)
            with _reasons(request):
                prediction = await asyncio.wrap_future(
                    app.state.batcher.submit({**request, "uncertainty": uncertainty})
                )
        return await run_in_threadpool(encode_prediction, prediction, image.filename, arrays)

    @app.post("/explain", response_model=ExplanationAnswer, responses=PROBLEMS)
    async def explain(
        image: Upload,
        foreground: ForegroundUpload = None,
        method: Annotated[str, Form(description=f"one of {', '.join(METHODS)}")] = "evidence",
        layer: Annotated[str | None, Form(description="dotted name or alias; the default layer otherwise")] = None,
        target: Annotated[
            str, Form(description="tumor, a class or margin of two (a_minus_b) by name, segmentation")
        ] = "tumor",
        slice: Slice = None,
        plane: Plane = None,
        channel: Channel = None,
    ) -> Any:
        """A heatmap of one image, or of one slice or all slices of a volume."""
        options = {"slice": slice, "plane": plane, "channel": channel}
        with ExitStack() as stack:
            request = await _request(stack, image, foreground, options, limits)
            with _reasons(request):
                found = await run_in_threadpool(
                    predictor.explain, **request, method=method, layer=layer or None, target=target
                )
        return await run_in_threadpool(encode_explanation, found)

    return app


def predict_together(predictor: Predictor, requests: Sequence[Mapping[str, Any]]) -> list[Prediction | Exception]:
    """Predict what waits in common passes; if that fails as a whole, one by one, so that one cannot take others along.

    Args:
        predictor: the bundle.
        requests: arguments of `Predictor.predict`.

    Returns:
        a prediction or an exception each, in order.
    """
    try:
        return list(predictor.predict_batch(list(requests), errors="return"))
    except Exception as error:
        logger.warning("a batch of %d failed (%s); predicting one by one", len(requests), error)
    results: list[Prediction | Exception] = []
    for request in requests:
        try:
            results.append(predictor.predict(**request))
        except Exception as error:
            results.append(error)
    return results


async def _request(
    stack: ExitStack,
    image: UploadFile,
    foreground: UploadFile | None,
    options: Mapping[str, Any],
    limits: UploadLimits,
) -> dict[str, Any]:
    """Arguments of the predictor, with the uploads in temporary files that live as long as ``stack``."""
    request = {key: value for key, value in options.items() if value is not None and value != ""}
    for key, upload in (("image", image), ("foreground", foreground)):
        if upload is None:
            continue
        data = await upload.read(limits.bytes + 1)
        if len(data) > limits.bytes:
            raise UploadRefused(413, f"{key}: the file is larger than {limits.bytes >> 20} MiB")
        try:
            request[key] = await run_in_threadpool(stack.enter_context, stored(data, limits))
        except UploadRefused as error:
            raise UploadRefused(error.status, f"{key}: {error}") from error
    return request


@contextmanager
def _reasons(request: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the predictor refuses into answers; names of our temporary files become the form's fields."""
    try:
        yield
    except QueueFull as error:
        raise HTTPException(503, str(error), headers={"Retry-After": "2"}) from error
    except ValueError as error:
        reason = str(error)
        for key, value in request.items():
            if isinstance(value, Path):
                reason = reason.replace(str(value), key)
        raise UploadRefused(422, reason) from error


def encode_array(array: np.ndarray, affine: np.ndarray, picture: bool) -> dict[str, Any]:
    """An array as base64: PNG of a picture (uint8; a map in [0, 1] times 255), gzipped NIfTI of a volume."""
    if picture:
        pixels = array if array.dtype == np.uint8 else np.round(np.clip(array, 0, 1) * 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        return {"format": "png", "data": base64.b64encode(buffer.getvalue()).decode()}
    packed = gzip.compress(nib.Nifti1Image(array, affine).to_bytes(), compresslevel=1, mtime=0)
    return {"format": "nii.gz", "data": base64.b64encode(packed).decode()}


def encode_prediction(prediction: Prediction, name: str | None, arrays: bool) -> dict[str, Any]:
    """The answer of ``/predict_multitask``."""
    answer = {**prediction.to_json(), "source": Path(name or "image").name, "notice": NOTICE, "mask": None}
    answer["evidence"] = None
    if arrays:
        picture = prediction.mask.ndim == 2
        answer["mask"] = encode_array(prediction.mask, prediction.affine, picture)
        if prediction.evidence is not None:
            answer["evidence"] = encode_array(prediction.evidence, prediction.affine, picture)
    return answer


def encode_explanation(explanation: Explanation) -> dict[str, Any]:
    """The answer of ``/explain``."""
    return {
        "method": explanation.method,
        "layer": explanation.layer,
        "target": explanation.target,
        "empty": explanation.empty,
        "message": explanation.message,
        "slices": explanation.slices,
        "shape": list(explanation.map.shape),
        "map": encode_array(explanation.map, explanation.affine, explanation.map.ndim == 2),
        "notice": NOTICE,
    }


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``serve``: until it is interrupted."""
    overlays = inference_overlays(arguments)
    predictor = Predictor(weights=arguments.weights, overlay=overlays, device=arguments.device)
    limits = UploadLimits(bytes=arguments.max_upload_mib << 20)
    logger.info("weights %s, process %d", predictor.weights, os.getpid())
    logger.info("description: http://%s:%d/docs", arguments.host, arguments.port)
    uvicorn.run(
        create_app(predictor, limits, arguments.max_batch),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_graceful_shutdown=30,
    )
    return Outcome()
