"""The certificate tried on classifiers and segmenters of which it is known what they read.

    python -m scripts planted [--collections 10]

prints the confusion matrices: each subject by what the certificate says that it reads, and the minutes.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from scripts.certificate.effects import Answers
from scripts.certificate.planted import READERS, TumorReader, collected, phantom_cases, write_sheet
from scripts.certificate.planted_masks import SEGMENTERS, read_by_mask
from scripts.certificate.questions import Plan, Question
from scripts.certificate.shortcuts import named_shortcut
from scripts.certificate.verdicts import statements
from scripts.command.verbs import Outcome

Counts = Counter[tuple[str, str]]


def read_by(subject: TumorReader, questions: Sequence[Question]) -> str:
    """What the certificate measures of a subject: "honest" where necessity and sufficiency hold, nothing else is read.

    Two dozen pictures settle no claim among so many; what is looked at is whether the right thing is measured.

    Returns:
        the name of a probe, "honest", or "unclear".
    """
    pairs = zip(questions, subject.answer(questions), strict=True)
    answers = Answers(pairs, subject.classes, subject.threshold)
    name = named_shortcut(answers.probes())
    if name is not None:
        return name
    verdicts = {(s.property, s.of): s.measured for s in statements(answers)}
    follows = [verdicts["necessity", "verdict (poisson)"], verdicts["sufficiency", "verdict (poisson)"]]
    return "honest" if set(follows) == {"holds"} else "unclear"


def confusion(seeds: Sequence[int], count: int = 24) -> tuple[Counts, Counts]:
    """How often each classifier, and each segmenter, is named what: (what it reads, what is said)."""
    classifiers: Counts = Counter()
    segmenters: Counts = Counter()
    for seed in tqdm(seeds, desc="collections", unit="collection"):
        cases = [collected(case, 100 * seed + k) for k, case in enumerate(phantom_cases(seed, count, count))]
        tumors, heads = [case for case in cases if case.kind], [case for case in cases if not case.kind]
        questions = list(Plan(tumors, heads, ("poisson",), harmless=0))
        for subject in (TumorReader(), *READERS):
            classifiers[subject.identity, read_by(subject, questions)] += 1
        for name, segmenter in SEGMENTERS.items():
            segmenters[name, read_by_mask(segmenter, questions)] += 1
    return classifiers, segmenters


def _matrix(counts: Counts, names: Sequence[str], what: str) -> list[str]:
    columns = [*names, "unclear"]
    columns += sorted({said for _, said in counts} - {*columns})
    width = max(map(len, columns))
    lines = [" " * width + "  " + "  ".join(name.rjust(width) for name in columns)]
    for name in names:
        lines.append(name.ljust(width) + "  " + "  ".join(str(counts[name, said]).rjust(width) for said in columns))
    wrong = sum(count for (name, said), count in counts.items() if name != said)
    lines.append(
        f"rows: what the {what} reads; columns: what the certificate says; {wrong} of {sum(counts.values())} wrong"
    )
    return lines


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``planted``; exit status 1 where one is named wrong."""
    start, of_cpu = time.perf_counter(), time.process_time()
    classifiers, segmenters = confusion(range(arguments.collections))
    lines = _matrix(classifiers, ["honest", *(reader.identity for reader in READERS)], "classifier")
    lines += ["", *_matrix(segmenters, list(SEGMENTERS), "segmenter")]
    minutes, of_cpu = (time.perf_counter() - start) / 60, (time.process_time() - of_cpu) / 60
    asked = sum(classifiers.values()) + sum(segmenters.values())
    lines.append(f"{asked} subjects in {minutes:.1f} minutes ({of_cpu:.1f} of the CPU)")
    files = [write_sheet(arguments.sheet)] if arguments.sheet else []
    wrong = any(name != said for counts in (classifiers, segmenters) for name, said in counts)
    return Outcome("\n".join(lines), files, failed=wrong)
