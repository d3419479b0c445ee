"""HTTP service: an image in, probability, mask and evidence out.

    python -m scripts serve --run_dir runs/mine --port 8000
    curl -F image=@slice.png http://127.0.0.1:8000/predict_multitask

Its description for programs is at ``/openapi.json`` and ``/docs``; ``/`` is the page for people (`bundle.page`).
Pictures, volumes and explanations wait in queues of their own, so that a slow explanation or a large volume holds up
nobody's picture.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, Form, HTTPException, UploadFile
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bundle.batching import Batcher, QueueFull, giving_way
from bundle.page import page_router
from bundle.predictor import Prediction, Predictor
from bundle.service_answers import encode_heatmap, encode_prediction
from bundle.service_docs import describing_page
from bundle.service_fields import (
    Anonymous,
    Channel,
    Dicom,
    EvidenceSegments,
    ForegroundUpload,
    Plane,
    Slice,
    Upload,
    known_fields,
)
from bundle.service_guards import BodyLimit, HostCheck
from bundle.service_model import NOTICE, describe_model, read_metadata
from bundle.service_schema import ExplanationAnswer, Health, Model, MultitaskAnswer, Problem
from bundle.uploads import UploadLimits, UploadRefused, in_form_words, stored
from scripts.command.verbs import Outcome, inference_overlays
from scripts.explain.methods import METHODS
from transforms.limits import TooLarge
from transforms.reading import file_kind

logger = logging.getLogger(__name__)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "the body is no form of the documented kind, or the host is not known"},
    403: {"model": Problem, "description": "the request comes from a page of another site"},
    413: {"model": Problem, "description": "the upload is too large"},
    415: {"model": Problem, "description": "the upload is no image that is read here"},
    422: {"model": Problem, "description": "the upload or a parameter cannot be used, with the reason"},
    503: {"model": Problem, "description": "too many requests wait, or the service shuts down; see Retry-After"},
}
WAITING = {"pictures": 256, "volumes": 32, "explanations": 64}  # requests in each queue
LOOK_S = 0.5  # how often it is looked whether the one who asks is still there


def create_app(
    predictor: Predictor,
    limits: UploadLimits | None = None,
    max_batch: int = 8,
    hosts: Sequence[str] = (),
    waiting: Mapping[str, int] = WAITING,
) -> FastAPI:
    """The application around a loaded predictor.

    Args:
        predictor: is shared by all requests; it takes over the limits.
        limits: of uploads.
        max_batch: pictures predicted together.
        hosts: names that the service is called by, beside "localhost" and IP addresses.
        waiting: requests that may wait of "pictures", "volumes" and "explanations".
    """
    limits = limits or UploadLimits()
    predictor.limit_files(limits.read)
    metadata = read_metadata(predictor.bundle_root)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.lanes = lanes = start_lanes(predictor, max_batch, waiting)
        yield
        await run_in_threadpool(lanes["explanations"].close, False)
        for name in ("volumes", "pictures"):
            await run_in_threadpool(lanes[name].close)

    app = FastAPI(
        title="TumorLens",
        version=str(metadata["version"]),
        description=f"Brain-tumor MRI: tumor probability, mask and evidence map of an image. {NOTICE}",
        lifespan=lifespan,
        docs_url=None,  # they would load scripts from another site
        redoc_url=None,
    )
    # Twice: image and mask of the head may both be as large as allowed.
    app.add_middleware(BodyLimit, limit_bytes=2 * limits.bytes + (64 << 10))
    app.add_middleware(HostCheck, hosts=hosts)

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
        return {"status": "ok", "waiting": {name: lane.waiting for name, lane in app.state.lanes.items()}}

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        """What the service does, for those who write programs."""
        return describing_page(app.openapi(), describe_model(predictor, metadata))

    @app.get("/model", response_model=Model)
    async def model() -> dict[str, Any]:
        """What is loaded: classes, thresholds, input, methods, intended use."""
        return describe_model(predictor, metadata)

    app.include_router(page_router(predictor, metadata, limits, lambda: app.state.lanes))
    known = [Depends(known_fields)]

    @app.post("/predict_multitask", response_model=MultitaskAnswer, responses=PROBLEMS, dependencies=known)
    async def predict_multitask(
        request: Request,
        image: Upload,
        foreground: ForegroundUpload = None,
        slice: Slice = None,
        plane: Plane = None,
        channel: Channel = None,
        assess_anyway: Annotated[bool, Form(description="answer images unlike those of the training too")] = False,
        uncertainty: Annotated[bool, Form(description="seven passes in place of one")] = False,
        arrays: Annotated[bool, Form(description="mask and evidence in the answer")] = True,
        dicom: Dicom = False,
        anonymous: Anonymous = False,
        evidence_segments: EvidenceSegments = False,
    ) -> Any:
        """Probability of a tumor and of each class, mask and evidence of one image or volume."""
        options = {"slice": slice, "plane": plane, "channel": channel}
        with ExitStack() as stack:
            form = await _given(stack, image, foreground, options, limits)
            picture = form["image"].is_file() and file_kind(form["image"]) == "picture"
            lane = app.state.lanes["pictures" if picture else "volumes"]
            asked: dict[str, Any] = {"uncertainty": uncertainty, "assess_anyway": assess_anyway}
            asked |= {"anonymous": anonymous, "evidence_segments": evidence_segments}
            if dicom:
                asked["dicom"] = Path(stack.enter_context(TemporaryDirectory(prefix="objects"))) / "image"
            with _reasons(form):
                prediction = await _answer(request, lane, {**form, **asked})
            return await run_in_threadpool(encode_prediction, prediction, image.filename, arrays)

    @app.post("/explain", response_model=ExplanationAnswer, responses=PROBLEMS, dependencies=known)
    async def explain(
        request: Request,
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
            form = await _given(stack, image, foreground, options, limits)
            asked = {"method": method, "layer": layer or None, "target": target}
            with _reasons(form):
                result = await _answer(request, app.state.lanes["explanations"], (predictor.explain, {**form, **asked}))
        return await run_in_threadpool(encode_heatmap, result)

    return app


def start_lanes(predictor: Predictor, max_batch: int, waiting: Mapping[str, int]) -> dict[str, Batcher]:
    """The queues: "pictures" in common passes, "volumes" one by one, "explanations" one by one; the latter give way."""

    def together(items: Sequence[Mapping[str, Any]]) -> list[Prediction | Exception]:
        return predict_together(predictor, items)

    def whole(items: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        return [predictor.predict(**item) for item in items]

    def called(items: Sequence[tuple[Callable[..., Any], Mapping[str, Any]]]) -> list[Any]:
        return [function(**arguments) for function, arguments in items]

    threads = torch.get_num_threads()
    return {
        "pictures": Batcher(together, max_batch, waiting["pictures"], giving_way(0, threads), "pictures"),
        "volumes": Batcher(whole, 1, waiting["volumes"], giving_way(10, threads), "volumes"),
        "explanations": Batcher(
            called, 1, waiting["explanations"], giving_way(19, max(1, threads // 2)), "explanations"
        ),
    }


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


async def _answer(request: Request, lane: Batcher, item: Any) -> Any:
    """Result of an item of a lane; given up when the one who asks is gone."""
    future = lane.submit(item)
    waited = asyncio.wrap_future(future)
    while not (await asyncio.wait([waited], timeout=LOOK_S))[0]:
        if await request.is_disconnected():
            future.cancel()
    if waited.cancelled():
        raise QueueFull("the request was given up: the service is shutting down")
    return waited.result()


async def _given(
    stack: ExitStack,
    image: UploadFile,
    foreground: UploadFile | None,
    options: Mapping[str, Any],
    limits: UploadLimits,
) -> dict[str, Any]:
    """Arguments of the predictor, with the uploads in temporary files that live as long as ``stack``."""
    form = {key: value for key, value in options.items() if value is not None and value != ""}
    for key, upload in (("image", image), ("foreground", foreground)):
        if upload is None:
            continue
        data = await upload.read(limits.bytes + 1)
        try:
            form[key] = await run_in_threadpool(stack.enter_context, stored(data, limits))
        except UploadRefused as error:
            raise UploadRefused(error.status, f"{key}: {error}") from error
    return form


@contextmanager
def _reasons(fields: Mapping[str, Any]) -> Iterator[None]:
    """Turn what the predictor refuses into answers; names of our temporary files become the form's fields."""
    try:
        yield
    except QueueFull as error:
        raise HTTPException(503, str(error), headers={"Retry-After": str(error.retry_after_s)}) from error
    except ValueError as error:
        reason = str(error)
        for key, value in fields.items():
            if isinstance(value, Path):
                reason = in_form_words(reason, value, key)
        raise UploadRefused(413 if isinstance(error, TooLarge) else 422, reason) from error


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``serve``: until it is interrupted."""
    overlays = inference_overlays(arguments)
    predictor = Predictor(
        weights=arguments.weights, overlay=overlays, device=arguments.device, prevalence=arguments.prevalence,
        backend=arguments.backend,
    )  # fmt: skip
    limits = UploadLimits(bytes=arguments.max_upload_mib << 20)
    logger.info("weights %s, process %d", predictor.weights, os.getpid())
    logger.info("page: http://%s:%d/, description: /docs", arguments.host, arguments.port)
    uvicorn.run(
        create_app(predictor, limits, arguments.max_batch, hosts=[arguments.host, *arguments.allowed_host]),
        host=arguments.host,
        port=arguments.port,
        log_level="warning",
        timeout_graceful_shutdown=30,
    )
    return Outcome()
