"""`python -m scripts VERB`: every command of the bundle."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from scripts.command.cli import one_sentence_errors

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("scripts.demo.demo", "the whole way in one command, on phantoms or on your own images"),
    "phantoms": ("scripts.phantoms.__main__", "draw phantom heads with and without tumors"),
    "datalist": ("scripts.data.datalists.__main__", "make, merge and check lists of images"),
    "verify": ("scripts.checks.verify_data", "verify the images of a datalist against stated rules"),
    "audit": ("scripts.checks.audit", "what air, geometry and histogram alone tell about source and diagnosis"),
    "train": ("scripts.training.train", "train all stages, resumable"),
    "adopt": ("scripts.inference.adopt", "take over a segmentation network of your own"),
    "predict": ("scripts.inference.predict", "predict every image of a folder"),
    "diagnose": ("scripts.diagnosis.diagnose", "why a heatmap lies in the background"),
    "compare": ("scripts.comparison.compare", "trained runs beside each other"),
    "ablation": ("scripts.comparison.ablation", "what each part of the design is worth"),
    "ensemble": ("scripts.comparison.ensembles", "a run of the ensemble of trained classifiers"),
    "leave-one-source-out": ("scripts.comparison.leave_one_source_out", "train without each source, test on it"),
    "report": ("scripts.report.report", "one page about one or two runs"),
}


def usage() -> str:
    """The verbs, a line each."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(["usage: python -m scripts VERB [arguments]; --help after a verb tells its arguments", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the first argument names, and give its exit status; its module is imported only then.

    Raises:
        ValueError: when there is no such verb.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise ValueError(f"no verb {verb!r}; there are {', '.join(VERBS)}")
    return importlib.import_module(VERBS[verb][0]).main(rest) or 0


if __name__ == "__main__":
    with one_sentence_errors():
        sys.exit(main())
