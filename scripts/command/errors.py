"""Logging, and errors in one sentence; imports nothing heavy."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

__all__ = ["USER_ERRORS", "one_sentence_errors", "quiet", "report", "sentence", "start_logging"]

USER_ERRORS = (ValueError, OSError)
INTERRUPTED = "interrupted; run the same command again to continue"


def start_logging(level: int = logging.INFO) -> None:
    """Log to standard error, one line an event; quiet the narration of the libraries."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    quiet()


def quiet() -> None:
    """Silence what the libraries say about things that are as intended here."""
    for name in ("matplotlib", "PIL", "tensorboard"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ignite and MONAI log an exception before it is raised, and MONAI that overlays lie in several folders.
    for name in ("ignite", "monai.bundle.workflows", "monai.engines"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")


def sentence(error: BaseException) -> str | None:
    """The sentence of an error that the user can fix, under the wrappers of MONAI; None for another error."""
    cause = error
    while isinstance(cause, RuntimeError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if not isinstance(cause, USER_ERRORS):
        return None
    return str(cause)


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An exception hook: the sentence of an error that the user can fix; others keep their traceback."""
    text = sentence(error)
    if isinstance(error, KeyboardInterrupt):
        print(INTERRUPTED, file=sys.stderr)
    elif text is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"error: {text}", file=sys.stderr)


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn the errors that a user can fix into their sentence and exit status 2; others keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        text = sentence(error)
        if text is None or os.environ.get("TUMORLENS_TRACEBACK"):
            raise
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
