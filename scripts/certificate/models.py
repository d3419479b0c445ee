"""Anybody's model as the subject of a certificate: ONNX, TorchScript, a Python function or an HTTP address.

A few lines of YAML say what the model takes and gives (`Settings`). Nothing is executed but what the user named.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import io
import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image as Pictures

from scripts.certificate.answers import Answer
from scripts.certificate.questions import Question

try:
    import onnxruntime
except ImportError:  # the extra "export": a model in ONNX needs it and says so
    onnxruntime = None  # type: ignore[assignment]

# float32 (N, C, H, W) or (N, H, W, C) -> (N, K)
Call = Callable[[NDArray[np.float32]], Any]
SCALINGS = {"0..1": (0.0, 1.0), "0..255": (0.0, 255.0), "-1..1": (-1.0, 1.0)}
_SUM = 0.01


@dataclass(frozen=True)
class Settings:
    """What a model takes and gives.

    Args:
        classes: names of its outputs, in their order.
        no_tumor: which of them means no tumor.
        size: (height, width) that pictures are resized to; None: as they are, one at a time.
        channels: 1 or 3.
        scaling: of gray values 0..255: "0..1", "0..255" or "-1..1".
        mean, std: by channel, taken off and divided by after scaling.
        channel_order: "rgb" or "bgr".
        layout: "nchw" or "nhwc".
        outputs: "probabilities" or "logits".
        threshold: of the probability of any tumor.
        batch_size: pictures in one call.
        timeout_s: of one call, in seconds.
        upload: HTTP: name of the form field of the picture; None: the PNG is the body.
        answer: HTTP: key of the probabilities in the JSON answer.
    """

    classes: tuple[str, ...] = ("no_tumor", "tumor")
    no_tumor: str = "no_tumor"
    size: tuple[int, int] | None = None
    channels: int = 1
    scaling: str = "0..1"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channel_order: str = "rgb"
    layout: str = "nchw"
    outputs: str = "probabilities"
    threshold: float = 0.5
    batch_size: int = 16
    timeout_s: float = 60.0
    upload: str | None = None
    answer: str = "probabilities"
    allowed: Mapping[str, tuple[Any, ...]] = field(
        default_factory=lambda: {
            "channels": (1, 3), "scaling": tuple(SCALINGS), "channel_order": ("rgb", "bgr"),
            "layout": ("nchw", "nhwc"), "outputs": ("probabilities", "logits"),
        },
        repr=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, values in self.allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(map(str, values))}, got {getattr(self, name)!r}")
        if len(self.classes) < 2 or len({*self.classes}) < len(self.classes):
            raise ValueError(f"classes are two or more different names, got {list(self.classes)}")
        if self.no_tumor not in self.classes:
            raise ValueError(f"no_tumor is {self.no_tumor!r}, which is none of the classes {', '.join(self.classes)}")
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (0, self.channels):
                raise ValueError(f"{name} has {len(getattr(self, name))} values, the model {self.channels} channels")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """From a YAML file.

        Raises:
            ValueError: when a key is unknown or a value is none of those allowed; names the file.
        """
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        known = [f.name for f in fields(cls) if f.name != "allowed"]
        if not isinstance(content, dict):
            raise ValueError(f"{path}: expected lines of 'key: value', the keys being of {', '.join(known)}")
        for key in content:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                raise ValueError(f"{path}: no setting {key!r}; {f'nearest: {near[0]}' if near else ', '.join(known)}")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        try:
            return cls(**plain)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


class Foreign:
    """A classifier of pictures that can be asked.

    Args:
        call: takes a batch, gives one row of outputs a picture.
        settings: what it takes and gives.
        identity: changes with the model.
        name: for messages.
    """

    def __init__(self, call: Call, settings: Settings, identity: str, name: str) -> None:
        self.call, self.settings, self.name = call, settings, name
        said = json.dumps({k: v for k, v in asdict(settings).items() if k != "allowed"}, sort_keys=True, default=str)
        self.identity = hashlib.sha256(f"{identity} {said}".encode()).hexdigest()
        self.threshold = settings.threshold
        self.order = sorted(range(len(settings.classes)), key=lambda k: settings.classes[k] != settings.no_tumor)
        self.classes: Sequence[str] = [settings.classes[k] for k in self.order]
        self.calls = 0

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in as few calls as the sizes of the pictures allow.

        Raises:
            ValueError: when the model answers too late, in another shape, not in numbers, or not in probabilities.
        """
        inputs = [self.prepare(question.picture) for question in questions]
        answers: list[Answer] = []
        start = 0
        while start < len(inputs):
            stop = start + 1
            limit = start + self.settings.batch_size
            while stop < min(len(inputs), limit) and inputs[stop].shape == inputs[start].shape:
                stop += 1
            rows = self._checked(self._timed(np.stack(inputs[start:stop])), stop - start)
            answers += [Answer(tuple(float(row[k]) for k in self.order)) for row in rows]
            start = stop
        return answers

    def prepare(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """A picture (C, X, Y) of gray values 0..255 as the model takes it, without the batch axis.

        Raises:
            ValueError: when it is a volume.
        """
        if picture.ndim != 3:
            raise ValueError(f"{self.name} takes pictures, got an array of shape {picture.shape}")
        s = self.settings
        planes = picture if len(picture) == s.channels else np.repeat(picture.mean(0, keepdims=True), s.channels, 0)
        planes = planes.transpose(0, 2, 1)  # (C, H, W)
        if s.size is not None and planes.shape[1:] != tuple(s.size):
            height, width = s.size
            planes = np.stack(
                [
                    np.asarray(Pictures.fromarray(p).resize((width, height), Pictures.Resampling.BILINEAR))
                    for p in planes
                ]
            )
        low, high = SCALINGS[s.scaling]
        values = planes / np.float32(255) * (high - low) + low
        if s.channel_order == "bgr":
            values = values[::-1]
        if s.mean:
            values = values - np.reshape(s.mean, (-1, 1, 1))
        if s.std:
            values = values / np.reshape(s.std, (-1, 1, 1))
        return np.ascontiguousarray(values if s.layout == "nchw" else np.moveaxis(values, 0, -1), np.float32)

    def _timed(self, batch: NDArray[np.float32]) -> Any:
        """The model's answer, or a sentence after `timeout_s`."""
        result: list[Any] = []
        failure: list[Exception] = []

        def work() -> None:
            try:
                result.append(self.call(batch))
            except Exception as error:  # whatever somebody's model raises is told in a sentence
                failure.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self.settings.timeout_s)
        self.calls += 1
        if thread.is_alive():
            raise ValueError(
                f"{self.name} gave no answer within {self.settings.timeout_s:g} s for {len(batch)} pictures; raise "
                "timeout_s or lower batch_size"
            )
        if failure:
            error = failure[0]
            raise ValueError(
                f"{self.name} failed on a batch of shape {batch.shape}: {type(error).__name__}: {error}"
            ) from error
        return result[0]

    def _checked(self, output: Any, count: int) -> NDArray[np.float64]:
        """Rows of probabilities."""
        try:
            rows = np.asarray(output, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name} answered with {type(output).__name__}, not with an array of numbers"
            ) from error
        expected = (count, len(self.settings.classes))
        if rows.shape != expected:
            raise ValueError(
                f"{self.name} answered in shape {rows.shape}; expected {expected}: one row a picture, one column a "
                f"class ({', '.join(self.settings.classes)})"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{self.name} answered with values that are not finite (NaN or infinite)")
        if self.settings.outputs == "logits":
            rows = np.exp(rows - rows.max(axis=1, keepdims=True))
            return rows / rows.sum(axis=1, keepdims=True)
        if (rows < -1e-6).any() or np.abs(rows.sum(axis=1) - 1).max() > _SUM:
            worst = rows[int(np.abs(rows.sum(axis=1) - 1).argmax())]
            raise ValueError(
                f"{self.name} answered with rows that are no probabilities (one sums to {worst.sum():.3g}, its least "
                f"value is {worst.min():.3g}); if they are logits, set outputs: logits"
            )
        return rows / rows.sum(axis=1, keepdims=True)


def open_model(spec: str, settings: Settings) -> Foreign:
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
        return Foreign(_http(spec, settings), settings, f"{spec} {time.time()}", spec)
    path = Path(spec)
    if path.suffix == ".onnx":
        return Foreign(_onnx(path), settings, _sha(path), path.name)
    if path.suffix in (".pt", ".ts", ".pth"):
        return Foreign(_torchscript(path), settings, _sha(path), path.name)
    if ":" in spec:
        call, source = _function(spec)
        return Foreign(call, settings, source, spec)
    raise ValueError(f"a model is FILE.onnx, FILE.pt (TorchScript), module:function or http://ADDRESS, got {spec!r}")


def _sha(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no model at {path}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
            raise ValueError(f"it gives {type(output).__name__}, not one tensor of class outputs")
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
    """Each picture is posted as PNG; the answer is JSON with the probabilities, in order or by name."""

    def call(batch: NDArray[np.float32]) -> list[list[float]]:
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


def _posted(url: str, png: bytes, settings: Settings) -> list[float]:
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
            content = json.loads(reply.read())
    except urllib.error.HTTPError as error:
        raise ValueError(f"it answered with status {error.code}: {error.read(200).decode(errors='replace')}") from error
    except urllib.error.URLError as error:
        raise ValueError(f"it cannot be reached: {error.reason}") from error
    except ValueError as error:
        raise ValueError("its answer is not JSON") from error
    scores = content.get(settings.answer) if isinstance(content, dict) else content
    if isinstance(scores, dict):
        scores = [scores.get(name, float("nan")) for name in settings.classes]
    if not isinstance(scores, list):
        raise ValueError(f"its answer has no list or names under {settings.answer!r}")
    return [float(value) for value in scores]
