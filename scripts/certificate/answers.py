"""What a model answers, asked in batches; an answer is kept, so that the same picture is never asked twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from scripts.certificate.questions import Question
from scripts.command.files import write_text

_SAVE_EVERY = 200


@dataclass(frozen=True)
class Answer:
    """What a model says to one picture.

    Args:
        probabilities: of each class, class 0 no tumor.
        refused: why there is no answer; then all else is empty.
        mask_pixels: predicted tumor pixels; None: the model has no mask.
        mask_in_place: predicted tumor pixels at the place; None without either.
        dice: of the predicted mask and the place; None without either.
        mask_center: where the middle of the mask lies, 0..1 by axis of what the model was given; None without a mask.
        mask_brighter_than: share of the head that is darker than the mask's median; None without, or where not asked.
        evidence: largest value of the map; None: the model has none.
        evidence_in_place: share of the map's energy at the place; None without, or where the map is empty.
        peak_in_place: whether the map's maximum lies there.
    """

    probabilities: tuple[float, ...] = ()
    refused: str = ""
    mask_pixels: int | None = None
    mask_in_place: int | None = None
    dice: float | None = None
    mask_center: tuple[float, ...] | None = None
    mask_brighter_than: float | None = None
    evidence: float | None = None
    evidence_in_place: float | None = None
    peak_in_place: bool | None = None

    def tumor(self) -> float:
        """Probability of any tumor."""
        return 1.0 - self.probabilities[0]


class Subject(Protocol):
    """A model that can be asked.

    ``identity`` changes with everything that an answer depends on; ``threshold`` is that of a tumor's probability.
    """

    identity: str
    classes: Sequence[str]
    threshold: float

    def answer(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer a question, in order."""


class CachedModel:
    """A subject whose answers are kept in a file; ``asked`` counts the pictures that the model has seen.

    Args:
        subject: to ask.
        path: of the kept answers; None: in memory only.
        batch_size: pictures at once.
    """

    def __init__(self, subject: Subject, path: Path | None = None, batch_size: int = 16) -> None:
        self.subject, self.path, self.batch_size = subject, path, batch_size
        self.asked = self.kept = 0
        self._known: dict[str, Answer] = {}
        if path is not None and path.is_file():
            content = json.loads(path.read_text(encoding="utf-8"))
            # Answers of before lack what is asked of a model now.
            if content["identity"] == subject.identity and content.get("fields") == _FIELDS:
                self._known = {key: _read(value) for key, value in content["answers"].items()}

    def ask(self, questions: Iterable[Question], total: int | None = None) -> Iterator[tuple[Question, Answer]]:
        """Each question with its answer, in order."""
        waiting: list[tuple[Question, str]] = []
        for question in tqdm(questions, total=total, desc="asking", unit="picture"):
            key = _fingerprint(question)
            waiting.append((question, key))
            if len(waiting) >= self.batch_size:
                yield from self._answered(waiting)
                waiting = []
        yield from self._answered(waiting)
        self.save()

    def _answered(self, waiting: list[tuple[Question, str]]) -> Iterator[tuple[Question, Answer]]:
        new = {key: question for question, key in waiting if key not in self._known}
        if new:
            answers = self.subject.answer(list(new.values()))
            self._known.update(zip(new, answers, strict=True))
            before = self.asked // _SAVE_EVERY
            self.asked += len(new)
            if self.asked // _SAVE_EVERY > before:
                self.save()
        self.kept += len(waiting) - len(new)
        for question, key in waiting:
            yield question, self._known[key]

    def save(self) -> None:
        """Write the kept answers, whole or not at all."""
        if self.path is None:
            return
        answers = {key: asdict(answer) for key, answer in self._known.items()}
        content = {"identity": self.subject.identity, "fields": _FIELDS, "answers": answers}
        write_text(json.dumps(content), self.path)


_FIELDS = [field.name for field in fields(Answer)]


def _read(value: dict) -> Answer:
    center = value["mask_center"]
    center = None if center is None else tuple(center)
    return Answer(**{**value, "probabilities": tuple(value["probabilities"]), "mask_center": center})


def _fingerprint(question: Question) -> str:
    hasher = hashlib.sha1(np.ascontiguousarray(question.picture).tobytes(), usedforsecurity=False)
    hasher.update(str(question.picture.shape).encode())
    hasher.update(b"" if question.place is None else np.packbits(question.place).tobytes())
    return hasher.hexdigest()
