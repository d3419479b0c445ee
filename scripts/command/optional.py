"""Packages of the optional extras: imported where they are needed, or one sentence that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["needed"]


def needed(module: str, sentence: str) -> Any:
    """A module of an optional package.

    Args:
        module: dotted name.
        sentence: what the user reads where it is not installed.

    Raises:
        ValueError: with the sentence.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(sentence) from error
