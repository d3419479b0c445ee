"""How often each class occurs where a network is used: probabilities moved there from the training by Bayes' rule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["Given", "applied", "given_prevalence", "in_words", "log_ratios", "prevalence_in_use"]

Given = float | str | Mapping[str, float] | None


def given_prevalence(stated: Given, training: Mapping[str, float] | None) -> dict[str, float] | None:
    """The share of each class that a user means; None where none is given.

    Args:
        stated: a number, the share of any tumor, whose kinds keep their shares of the training; or the share of each
            class by name, as a mapping or as text ("glioma=0.01,meningioma=0.02"). One class may be left out: it gets
            the rest.
        training: share of each class in the training, class 0 "no tumor" first; None: not known.

    Raises:
        ValueError: when the training's shares are not known, or the given ones are no shares of its classes.

    >>> given_prevalence(0.1, {"no_tumor": 0.2, "glioma": 0.6, "meningioma": 0.2})
    {'no_tumor': 0.9, 'glioma': 0.075, 'meningioma': 0.025}
    >>> given_prevalence("glioma=0.02,meningioma=0.03", {"no_tumor": 0.2, "glioma": 0.6, "meningioma": 0.2})
    {'no_tumor': 0.95, 'glioma': 0.02, 'meningioma': 0.03}
    """
    if stated is None or stated == "":
        return None
    if training is None:
        raise ValueError(
            "prevalence: the shares of the classes in the training of these weights are not known (training_prevalence "
            "in network.yaml of a run, or in inference.yaml); without them Bayes' rule cannot be applied"
        )
    shares = _by_name(stated, training)
    if wrong := [name for name in shares if name not in training]:
        raise ValueError(f"prevalence: no class {', '.join(wrong)}; the classes are {', '.join(training)}")
    missing = [name for name in training if name not in shares]
    if len(missing) == 1:
        shares[missing[0]] = 1 - sum(shares.values())
    elif missing:
        raise ValueError(f"prevalence: the shares of {', '.join(missing)} are missing; one class may be left out")
    total = sum(shares.values())
    if abs(total - 1) > 1e-6 or not all(0 < share < 1 for share in shares.values()):
        text = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ValueError(f"prevalence: shares lie between 0 and 1, both excluded, and sum to 1; got {text}")
    return {name: round(float(shares[name]), 12) for name in training}


def _by_name(stated: Any, training: Mapping[str, float]) -> dict[str, float]:
    if isinstance(stated, Mapping):
        return {str(name): float(share) for name, share in stated.items()}
    try:
        if isinstance(stated, str) and "=" in stated:
            pairs = (pair.split("=") for pair in stated.replace(",", " ").split())
            return {name: float(share) for name, share in pairs}
        tumor = float(stated)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "prevalence: expected the share of any tumor, as 0.1, or of the classes, as glioma=0.02,meningioma=0.03; "
            f"got {stated!r}"
        ) from error
    first, *kinds = training
    of_kinds = sum(training[name] for name in kinds)
    return {first: 1 - tumor, **{name: tumor * training[name] / of_kinds for name in kinds}}


def log_ratios(prevalence: Mapping[str, float], training: Mapping[str, float]) -> list[float]:
    """What Bayes' rule adds to the calibrated log-probability of each class: log(prevalence / training).

    Source: Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities",
    Neural Computation 14, 2002, eq. 2.4.

    Raises:
        ValueError: when the training had none of a class.

    >>> log_ratios({"no_tumor": 0.9, "tumor": 0.1}, {"no_tumor": 0.5, "tumor": 0.5})[1].__round__(4)
    -1.6094
    """
    if absent := [name for name, share in training.items() if share <= 0]:
        raise ValueError(f"prevalence: the training had no {', '.join(absent)}; Bayes' rule says nothing of them")
    return [math.log(prevalence[name] / training[name]) for name in training]


def applied(network: Any, stated: Given, training: Mapping[str, float] | None, classes: Sequence[str]) -> Any:
    """The network, whose class logits carry a prevalence from now on; as it is where none is given.

    The logits move by ``temperature * log(prevalence / training)``, so that the calibrated probabilities are those of
    Bayes' rule, for everything that reads them. The threshold stays: where tumors are rarer, it takes more to call one.

    Args:
        network: a `MultiTaskDynUNet`, or another with ``shift_classes``.
        stated: see `given_prevalence`.
        training: share of each class by name.
        classes: names by index.

    Raises:
        ValueError: see `given_prevalence` and `log_ratios`; or when the training's classes are others.
    """
    if stated is None or stated == "":
        return network
    if training is not None and set(training) != set(classes):
        raise ValueError(
            f"prevalence: training_prevalence is of the classes {', '.join(training)}, the network knows "
            f"{', '.join(classes)}"
        )
    known = None if training is None else {name: training[name] for name in classes}
    network.shift_classes(torch.tensor(log_ratios(given_prevalence(stated, known), known)))  # type: ignore[arg-type]
    return network


def prevalence_in_use(
    shift: torch.Tensor | Sequence[float] | None, training: Mapping[str, float] | None, classes: Sequence[str]
) -> dict[str, float] | None:
    """The prevalence that a network's `class_shift` means, by class; None where there is none.

    Args:
        shift: (K,), see `log_ratios`.
        training: share of each class by name; None: not known, then there is no shift either.
        classes: names by index.
    """
    values = None if shift is None else np.asarray(shift, dtype=np.float64)
    if values is None or training is None or not values.any():
        return None
    shares = np.array([training[name] for name in classes]) * np.exp(values)
    return {name: float(round(share, 6)) for name, share in zip(classes, shares / shares.sum(), strict=True)}


def in_words(prevalence: Mapping[str, float]) -> str:
    """A prevalence in one sentence, for what is shown to people.

    >>> in_words({"no_tumor": 0.9, "glioma": 0.06, "meningioma": 0.04})
    'probabilities are for a prevalence of no tumor 90 %, glioma 6 %, meningioma 4 %'
    """
    shares = ", ".join(f"{name.replace('_', ' ')} {100 * share:.3g} %" for name, share in prevalence.items())
    return f"probabilities are for a prevalence of {shares}"
