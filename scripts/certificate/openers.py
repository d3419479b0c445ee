"""How a model of others is reached: ONNX, TorchScript, a Python function or an HTTP address.

Nothing is executed but what the user named.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pictures

from scripts.certificate.models import Call, ExternalModel
from scripts.certificate.settings import SCALINGS, Settings
from scripts.command.files import file_sha256

try:
    import onnxruntime
except ImportError:  # the extra "export": a model in ONNX needs it and says so
    onnxruntime = None  # type: ignore[assignment]


def open_model(spec: str, settings: Settings) -> ExternalModel:
    """The model that a user named.

    Args:
        spec: ``model.onnx``, ``model.pt`` (TorchScript), ``module:function`` or an ``http://`` address.
        settings: what it takes and gives.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is none of these, or cannot be opened.
    """
    if spec.startswith(("http://", "https://")):
        # What stands behind an address can change at any time: its answers are not kept from one run to another.
        return ExternalModel(_http(spec, settings), settings, f"{spec} {time.time()}", spec)
    path = Path(spec)
    if path.suffix == ".onnx":
        return ExternalModel(_onnx(path), settings, _sha(path), path.name)
    if path.suffix in (".pt", ".ts", ".pth"):
        return ExternalModel(_torchscript(path), settings, _sha(path), path.name)
    if ":" in spec:
        call, source = _function(spec)
        return ExternalModel(call, settings, source, spec)
    raise ValueError(f"a model is FILE.onnx, FILE.pt (TorchScript), module:function or http://ADDRESS, got {spec!r}")


def _sha(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}")
    return file_sha256(path)


def _onnx(path: Path) -> Call:
    _sha(path)
    if onnxruntime is None:
        raise ValueError(f"{path} needs onnxruntime: pip install -c constraints.txt '.[export]'")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has errors of its own for damaged files
        raise ValueError(f"{path} cannot be opened as ONNX: {error}") from error
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})[0]


def _torchscript(path: Path) -> Call:
    _sha(path)
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not TorchScript (weights alone have no network): save it with torch.jit.trace(...).save(...)"
        ) from error

    def call(batch: NDArray[np.float32]) -> Any:
        with torch.no_grad():
            output = network(torch.from_numpy(batch))
        if not isinstance(output, torch.Tensor):
            raise ValueError(f"it gives {type(output).__name__}, not one tensor")
        return output.numpy()

    return call


def _function(spec: str) -> tuple[Call, str]:
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{spec}: module {module_name!r} cannot be imported: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{spec}: module {module_name!r} has no function {name!r}")
    source = Path(module.__file__).read_bytes() if module.__file__ else b""
    return function, f"{spec} {hashlib.sha256(source).hexdigest()}"


def _http(url: str, settings: Settings) -> Call:
    """Each picture is posted as PNG; the answer is JSON with probabilities or a mask, in order or by name, or a PNG."""

    def call(batch: NDArray[np.float32]) -> list[Any]:
        return [_posted(url, _png(picture, settings), settings) for picture in batch]

    return call


def _png(picture: NDArray[np.float32], settings: Settings) -> bytes:
    """Back to gray values 0..255: a service scales by itself."""
    planes = picture if settings.layout == "nchw" else np.moveaxis(picture, -1, 0)
    planes = planes * np.reshape(settings.std or 1.0, (-1, 1, 1)) + np.reshape(settings.mean or 0.0, (-1, 1, 1))
    low, high = SCALINGS[settings.scaling]
    values = np.rint(np.clip((planes - low) / (high - low) * 255, 0, 255)).astype(np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)).save(file, "PNG")
    return file.getvalue()


def _posted(url: str, png: bytes, settings: Settings) -> Any:
    body, kind = png, "image/png"
    if settings.upload is not None:
        mark = uuid.uuid4().hex
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="{settings.upload}"; filename="picture.png"\r\n'
            "Content-Type: image/png\r\n\r\n"
        )
        body, kind = head.encode() + png + f"\r\n--{mark}--\r\n".encode(), f"multipart/form-data; boundary={mark}"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": kind})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=settings.timeout_s) as reply:
            said = reply.read()
            if settings.segments and str(reply.headers.get("Content-Type", "")).startswith("image/"):
                with Pictures.open(io.BytesIO(said)) as drawn:
                    return np.asarray(drawn.convert("L"), np.float64) / 255
            content = json.loads(said)
    except urllib.error.HTTPError as error:
        raise ValueError(f"it answered with status {error.code}: {error.read(200).decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise ValueError(f"it cannot be reached: {error.reason}") from error
    except ValueError as error:
        raise ValueError("its answer is not JSON") from error
    scores = content.get(settings.answer) if isinstance(content, dict) else content
    if isinstance(scores, dict):
        names = settings.channel_names if settings.segments else settings.classes
        scores = [scores.get(name, float("nan")) for name in names]
    if not isinstance(scores, list):
        raise ValueError(f"its answer has no list or names under {settings.answer!r}")
    return scores
