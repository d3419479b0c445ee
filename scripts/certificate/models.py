"""Anybody's model as the subject of a certificate: asked in batches, its answers checked.

A few lines of YAML say what the model takes and gives (`Settings`); `scripts.certificate.openers` opens it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures

from scripts.certificate.answers import Answer
from scripts.certificate.masks import checked_masks, head_of, mask_answer, on_grid
from scripts.certificate.questions import Question
from scripts.certificate.settings import SCALINGS, Settings

# float32 (N, C, H, W) or (N, H, W, C) -> (N, K)
Call = Callable[[NDArray[np.float32]], Any]
_SUM = 0.01


class ExternalModel:
    """A classifier or segmenter of pictures that can be asked.

    Args:
        call: takes a batch, gives one row of outputs a picture, or one mask.
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
            output = self._numbers(self._timed(np.stack(inputs[start:stop])))
            if self.settings.segments:
                answers += self._of_masks(output, questions[start:stop], inputs[start:stop])
            else:
                rows = self._checked(output, stop - start)
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
            except Exception as error:  # whatever somebody's model raises is reported in a sentence
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

    def _numbers(self, output: Any) -> NDArray[np.float64]:
        try:
            return np.asarray(output, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name} answered with {type(output).__name__}, not with an array of numbers"
            ) from error

    def _of_masks(
        self, output: NDArray[np.float64], questions: Sequence[Question], inputs: Sequence[NDArray[np.float32]]
    ) -> list[Answer]:
        """Verdicts of masks, and what is looked at of the masks."""
        channels = -1 if self.settings.layout == "nhwc" else 0
        answers = []
        grays = [picture.mean(axis=channels) for picture in inputs]
        plane = grays[0].shape
        try:
            masks = checked_masks(output, self.settings, len(inputs), plane)
            for mask, question, gray in zip(masks, questions, grays, strict=True):
                place = None if question.place is None else on_grid(question.place, plane)
                head = head_of(question.case, question.picture.shape[1:], plane)
                answers.append(mask_answer(mask, self.settings, self.order, place, gray, head))
        except ValueError as error:
            raise ValueError(f"{self.name} {error}") from error
        return answers

    def _checked(self, rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """Rows of probabilities."""
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
