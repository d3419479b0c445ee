"""The page, for people without Python: drop images, read verdicts, look at mask and maps over them.

    python -m scripts page --run_dir runs/mine

It is served by the service and asks through the same queues. The browser keeps the images of its tab and sends one with
each question; here an upload is deleted as soon as it is read, so that a session that ends leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Form, HTTPException
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from bundle.batching import Batcher, QueueFull
from bundle.page_answers import Gray, file_of, heatmap_message, message, prediction_message
from bundle.page_setup import drawn_samples, page_setup
from bundle.predictor import Heatmap, Prediction, Predictor
from bundle.removal import INFILL, Removal, removal
from bundle.service_fields import Channel, Slice, Upload, known_fields
from bundle.uploads import UploadLimits, UploadRefused, in_form_words, stored
from scripts.inference.results import verdict_in_words
from scripts.inference.scan_files import read_image
from transforms.reading import file_kind, is_located

__all__ = ["page_router", "read_gray"]

FILES = Path(__file__).parent / "page_files"
KINDS = {".css": "text/css", ".js": "text/javascript", ".html": "text/html"}
# Nothing but what this service itself brings.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOOK_S = 0.1  # how often it is looked how far the work is
Anyway = Annotated[bool, Form(description="answer images unlike those of the training too")]


def read_gray(data: bytes, name: str, limits: UploadLimits) -> Gray:
    """Gray values of an upload; the file on disk is deleted when they are read.

    Args:
        data: the file.
        name: the user's name of it, which errors say.
        limits: of uploads.

    Raises:
        ValueError: when it is refused or cannot be read.
    """
    try:
        with stored(data, limits) as path:
            try:
                array, affine, picture, _ = read_image(str(path), None, name, limits.read)
                located = not picture and is_located(path)
                dicom = file_kind(path) == "dicom"
            except ValueError as error:
                raise type(error)(in_form_words(str(error), path, name)) from error
    except UploadRefused as error:
        reason = str(error)
        raise UploadRefused(error.status, reason if name in reason else f"{name}: {reason}") from error
    if picture:
        return Gray(array[..., 0].T, None, name, False)
    return Gray(array[..., 0] if array.shape[-1] == 1 else array, affine, name, located, dicom)


class Progress:
    """Progress of one request; written by the worker, read by the response."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"stage": "waiting"}

    def __call__(self, done: int, of: int) -> None:
        """Progress callback: `done` of `of` slices (`of` 0: still preparing)."""
        self.state = {"stage": "predicting" if of else "preparing", "done": done, "of": of}


def page_router(
    predictor: Predictor, metadata: Mapping[str, Any], limits: UploadLimits, lanes: Callable[[], Mapping[str, Batcher]]
) -> APIRouter:
    """Routes of the page.

    Args:
        predictor: the loaded bundle.
        metadata: of it.
        limits: of uploads.
        lanes: the service's queues, once they are there.
    """
    router = APIRouter(include_in_schema=False)
    setup: dict[str, Any] = {}

    @router.get("/")
    async def page() -> Response:
        return FileResponse(
            FILES / "page.html", headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"}
        )

    @router.get("/page/setup")
    async def described() -> dict[str, Any]:
        if not setup:
            setup.update(page_setup(predictor, metadata, limits))
        return setup

    @router.get("/page/samples/{name}")
    async def sample(name: str) -> Response:
        drawn = await run_in_threadpool(drawn_samples)
        if name not in drawn:
            raise HTTPException(404, f"there is no sample {name!r}; there are {', '.join(drawn)}")
        return Response(drawn[name], media_type="image/png" if name.endswith(".png") else "application/octet-stream")

    @router.get("/page/{name}")
    async def part(name: str) -> Response:
        path = FILES / name
        if path.name != name or path.suffix not in KINDS or not path.is_file():
            raise HTTPException(404, f"the page has no part {name!r}")
        return FileResponse(path, media_type=KINDS[path.suffix], headers={"Cache-Control": "no-cache"})

    known = [Depends(known_fields)]

    def answered(request: Request, image: Any, work: Callable[[Gray, Progress], tuple[Batcher, Any, Callable]]) -> Any:
        """The stream that answers a question about an upload."""

        async def stream() -> AsyncIterator[bytes]:
            name, started = Path(image.filename or "image").name, time.monotonic()
            try:
                data = await image.read(limits.bytes + 1)
                yield message({"stage": "reading"})
                gray = await run_in_threadpool(read_gray, data, name, limits)
                del data
                progress = Progress()
                lane, item, finish = work(gray, progress)
                future = lane.submit(item)
                waited = asyncio.wrap_future(future)
                sent: dict[str, Any] = {}
                while not (await asyncio.wait([waited], timeout=LOOK_S))[0]:
                    if progress.state != sent:
                        sent = progress.state
                        yield message(sent)
                    if await request.is_disconnected():
                        future.cancel()
                if waited.cancelled():
                    raise QueueFull("the request was given up: the service is shutting down")
                yield await run_in_threadpool(finish, waited.result(), gray, time.monotonic() - started)
            except QueueFull as error:
                yield message({"stage": "refused", "detail": f"{name}: {error}"})
            except ValueError as error:
                yield message({"stage": "refused", "detail": str(error)})

        return StreamingResponse(stream(), media_type="application/octet-stream", headers={"Cache-Control": "no-store"})

    def arguments(gray: Gray, channel: int | None) -> dict[str, Any]:
        """Of the predictor, for an image that is read."""
        alone = gray.channels > 1 and predictor.network.in_channels == 1
        number = {"channel": channel or 0} if alone else {}
        return {"image": gray.array, "affine": gray.affine, "name": gray.name, **number}

    @router.post("/page/predict", dependencies=known)
    async def predict(
        request: Request,
        image: Upload,
        channel: Channel = None,
        assess_anyway: Anyway = False,
        uncertainty: Annotated[bool, Form()] = False,
    ) -> Any:
        """Verdict, gray values, mask and evidence of an image."""

        def work(gray: Gray, progress: Progress) -> tuple[Batcher, Any, Callable]:
            asked = {"assess_anyway": assess_anyway, "uncertainty": uncertainty}
            item = {**arguments(gray, channel), **asked}
            if gray.affine is None:
                return lanes()["pictures"], item, finish
            return lanes()["volumes"], {**item, "progress": progress}, finish

        def finish(result: Prediction, gray: Gray, seconds: float) -> bytes:
            return prediction_message(result, gray, channel, seconds)

        return answered(request, image, work)

    @router.post("/page/explain", dependencies=known)
    async def explain(
        request: Request,
        image: Upload,
        method: Annotated[str, Form()],
        layer: Annotated[str | None, Form()] = None,
        target: Annotated[str, Form()] = "tumor",
        slice: Slice = None,
        channel: Channel = None,
    ) -> Any:
        """A map of an image."""

        def work(gray: Gray, progress: Progress) -> tuple[Batcher, Any, Callable]:
            asked = {"method": method, "layer": layer or None, "target": target}
            number = {} if slice is None else {"slice": slice}
            return lanes()["explanations"], (predictor.explain, {**arguments(gray, channel), **asked, **number}), finish

        def finish(result: Heatmap, gray: Gray, seconds: float) -> bytes:
            return heatmap_message(result, gray)

        return answered(request, image, work)

    @router.post("/page/without", dependencies=known)
    async def without(
        request: Request, image: Upload, control: Annotated[bool, Form()] = False, channel: Channel = None
    ) -> Any:
        """What is said of the image with its tumor painted over, or healthy tissue as the control."""

        def work(gray: Gray, progress: Progress) -> tuple[Batcher, Any, Callable]:
            def run(**options: Any) -> Removal:
                before = predictor.predict(**arguments(gray, channel), assess_anyway=True)
                if predictor.network.in_channels > 1:
                    raise ValueError(f"{gray.name}: tumors are painted over in images of one sequence")
                return removal(
                    predictor, before, gray.shown(channel), gray.affine, gray.name, control, options["progress"]
                )

            return lanes()["explanations"], (run, {"progress": progress}), finish

        def finish(result: Removal, gray: Gray, seconds: float) -> bytes:
            return removal_message(result, gray, control)

        return answered(request, image, work)

    return router


def removal_message(removal: Removal, gray: Gray, control: bool) -> bytes:
    """What is said of a painted image, with its gray values."""
    content: dict[str, Any] = {
        "stage": "done", "control": control, "infill": INFILL, "changed": removal.changed, "left": removal.left
    }  # fmt: skip
    if removal.prediction is None:
        return message({**content, "words": None})
    words = verdict_in_words(removal.prediction.to_json())
    said = {"words": words[0].upper() + words[1:], "result": {**removal.prediction.to_json(), "source": gray.name}}
    picture, affine = gray.affine is None, removal.prediction.affine
    mask = (removal.prediction.mask > 0).astype(np.uint8)
    arrays = {
        "image": (file_of(removal.image, affine, picture), False),
        "mask": (file_of(mask, affine, picture, "tumor"), True),
    }
    return message({**content, **said}, arrays)
