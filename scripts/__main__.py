"""`python -m scripts VERB`: every command of the bundle."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # python /path/to/scripts VERB, from any folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.adoption import arguments as adoption
from scripts.certificate import arguments as certificate
from scripts.checks import arguments as checks
from scripts.command import arguments as command
from scripts.command.errors import one_sentence_errors
from scripts.command.machine import tune_process
from scripts.command.verbs import Verb, run_verb
from scripts.comparison import arguments as comparison
from scripts.data import arguments as data
from scripts.demo import arguments as demo
from scripts.diagnosis import arguments as diagnosis
from scripts.dicom import arguments as dicom
from scripts.evaluation import arguments as evaluation
from scripts.inference import arguments as inference
from scripts.phantoms import arguments as phantoms
from scripts.report import arguments as report
from scripts.training import arguments as training

# Imported by name where it is there: the released bundle has no `bundle`, and `scripts` imports nothing of it.
PRODUCT = "bundle.arguments"
PARTS = (
    demo, data, phantoms, checks, training, evaluation, certificate, diagnosis, inference, adoption, dicom,
    comparison, report, command,
)  # fmt: skip


def verbs() -> list[Verb]:
    """All verbs in the order in which they are usually needed."""
    collected = [verb for part in PARTS for verb in part.VERBS]
    if importlib.util.find_spec(PRODUCT.partition(".")[0]) is not None:
        collected += importlib.import_module(PRODUCT).VERBS
    return collected


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the first argument names, and give its exit status; its module is imported only then.

    Raises:
        ValueError, OSError: when it cannot be done, in one sentence.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    return run_verb(verbs(), args or ["--help"])


if __name__ == "__main__":
    tune_process()
    with one_sentence_errors():
        sys.exit(main())
