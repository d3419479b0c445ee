"""Whether a control can be recognized: a small classifier that knows where to look, against the untouched picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.certificate.questions import Question
from scripts.interventions.insertion import tissue_scale
from scripts.interventions.regions import Image, Mask, box_of, grow, inner, part
from scripts.measures.intervals import auc, auc_interval

LIMIT = 0.6
LEAST = 20


def traces(image: Image, region: Mask, foreground: Mask) -> np.ndarray:
    """What an intervention may leave behind in a region: level, contrast, sharpness, seam; 12 numbers.

    Args:
        image: (C, H, W[, D]).
        region: that may have been changed.
        foreground: of the head.
    """
    middle, height = tissue_scale(image, inner(foreground), foreground)
    box = box_of(region, 8)
    values = ((part(image, box) - middle) / height).mean(axis=0)
    inside, head = region[box], foreground[box]
    ring = grow(inside, 6) & ~inside & head
    seam = grow(~inside, 2) & grow(inside, 2) & head
    features = []
    slope = np.sqrt(sum(np.square(ndimage.sobel(values, axis)) for axis in range(values.ndim)))
    fine = values - ndimage.gaussian_filter(values, 1.0)
    coarse = ndimage.gaussian_filter(values, 1.0) - ndimage.gaussian_filter(values, 3.0)
    for field in (values, slope, np.abs(fine), np.abs(coarse)):
        within, around, border = (float(field[m].mean()) if m.any() else 0.0 for m in (inside, ring, seam))
        features += [within, within - around, border - (within + around) / 2]
    return np.array(features)


class Realism:
    """Collects traces of controls and of their pictures untouched while the questions pass through.

    Args:
        limit: AUC above which a way is out of distribution.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self._found: dict[tuple[str, str], list[tuple[str, np.ndarray, np.ndarray]]] = defaultdict(list)
        self._images: dict[str, tuple[Image, Mask, str]] = {}

    def watch(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The same questions; those of the picture as it is come before its controls."""
        for question in questions:
            if question.test == "as is":
                self._images[question.before] = question.picture, question.case.foreground, question.case.group
            elif question.control and question.region is not None:
                image, head, group = self._images[question.before]  # the head's, not that of a tumor moved into it
                made, untouched = (traces(picture, question.region, head) for picture in (question.picture, image))
                self._found[question.test, question.how].append((group, made, untouched))
            yield question

    def rows(self) -> list[dict[str, Any]]:
        """{test, how, n, auc, auc_ci95, out_of_distribution} of each way; AUC None where there are too few."""
        table = []
        for (test, how), entries in self._found.items():
            row: dict[str, Any] = {"test": test, "how": how, "n": len(entries), "auc": None, "limit": self.limit}
            row["out_of_distribution"] = None
            groups = np.array([entry[0] for entry in entries] * 2)
            if len(entries) >= LEAST and len({*groups}) >= 5:
                features = np.stack([entry[1] for entry in entries] + [entry[2] for entry in entries])
                made = np.repeat([True, False], len(entries))
                model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500))
                score = cross_val_predict(
                    model, features, made, groups=groups, cv=GroupKFold(5), method="decision_function"
                )
                row["auc"] = auc(made, score)
                row["auc_ci95"] = auc_interval(made, score, list(groups))
                row["out_of_distribution"] = row["auc"] > self.limit
            table.append(row)
        return table
