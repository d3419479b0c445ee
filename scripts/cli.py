"""What the command lines share: logging, overrides of config values, and errors in one sentence."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fire.parser import DefaultParseValue


def start_logging(level: int = logging.INFO) -> None:
    """Log to standard error, one line an event; quiet MONAI's and Ignite's own narration."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for name in ("ignite", "monai", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step.*")


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """``--id value`` pairs as config values, typed as ``monai.bundle run`` types them.

    Raises:
        ValueError: when a token is not of this form.
    """
    values: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        name, found, value = rest.pop(0).partition("=")
        if not name.startswith("--") or (not found and not rest):
            raise ValueError(f"expected --id value, got {name!r}")
        values[name[2:]] = DefaultParseValue(value if found else rest.pop(0))
    return values


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Turn the errors that a user can mend into their sentence and exit status 2; others keep their traceback."""
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError, FileExistsError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and isinstance(cause, RuntimeError):
            cause = cause.__cause__
        if isinstance(cause, RuntimeError):
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
