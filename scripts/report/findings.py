"""What in the files limits the conclusions: the caveats on top of the page, every number of them from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from scripts.runs.documents import Document
from scripts.runs.reading import Run

__all__ = ["findings", "next_step"]

AUDIT = Markup(
    "No shortcut audit lies in the run: whether air, geometry or contrast alone tell the diagnosis is not known "
    "(<code>python -m scripts audit LIST.json --dataset_dir DIR --out RUN</code>)."
)


def findings(loaded: Sequence[Run], data: Document) -> list[Markup]:
    """The caveats, the gravest first."""
    caveats: list[Markup] = [finding for run in loaded for finding in _of_weights(run)]
    caveats += [finding for run in loaded for finding in _of_certificate(run)]
    for part in (_of_diagnosis, _of_seen, _of_training):
        caveats += [finding for run in loaded for finding in part(run)]
    caveats += _of_shortcuts(loaded[0])
    caveats += _of_notes(loaded)
    caveats += [Markup.escape(text) for text in _of_data(data)]
    # An adopted stage was trained elsewhere, on no datalist.
    hashes = {s.manifest.value("/datalist_sha256") for run in loaded for s in run.stages} - {None}
    if len(hashes) > 1:
        caveats.append(
            Markup.escape(
                "The stages were not all trained on the same datalist (see the hashes below): do not compare them."
            )
        )
    return caveats


def _of_weights(run: Run) -> Iterator[Markup]:
    """Whether all files are of the same weights, and of those that the run has now."""
    by_hash: dict[str | None, list[str]] = {}
    for name, hashes in run.weights.items():
        for digest in hashes:
            by_hash.setdefault(digest, []).append(name)
    unmarked = by_hash.pop(None, [])
    foreign = [digest for digest in by_hash if digest != run.current]
    if len(by_hash) > 1 or (run.current is not None and foreign):
        files = "; ".join(f"of {str(digest)[:8]}: {', '.join(names)}" for digest, names in by_hash.items())
        now = Markup("") if run.current is None else Markup(" The run's weights are {} now.").format(run.current[:8])
        yield Markup(
            "<strong>{}: its files are not all of the same weights</strong> ({}).{} What stands side by side below "
            "does not belong together: evaluate and explain the run again."
        ).format(run.title, files, now)
    if unmarked:
        yield Markup(
            "{}: {} do not say which weights they are of (an older version wrote them, or was interrupted): whether "
            "they belong together is not known. Evaluate and explain the run again."
        ).format(run.title, ", ".join(unmarked))


def _of_certificate(run: Run) -> Iterator[Markup]:
    """What the answer does not follow, though the tumor was taken out or moved."""
    for statement in run.certificate.content["statements"] if run.certificate is not None else ():
        if statement["verdict"] == "fails":
            yield Markup("{}, {} of the {}: {}.").format(
                run.title, statement["property"], statement["of"], statement["sentence"]
            )


def next_step(first: Run) -> Markup:
    """What to do after reading the page: the first thing that is not known or not right."""
    arguments = Markup("--run_dir {} --dataset_dir DIR --datalist_file LIST.json").format(first.key)
    if first.certificate is None and first.diagnoses:
        return Markup(
            "whether the verdict depends on the tumor is not known: <code>python -m scripts certify {}</code>."
        ).format(arguments)
    if first.diagnoses and any(_of_certificate(first)):
        return Markup(
            "the answer does not follow the tumor: train with <code>--overlay configs/counterfactual.yaml</code>, "
            "certify again."
        )
    if first.audit is None:
        return AUDIT
    return Markup("patients of another source: <code>python -m scripts evaluate {}</code> on their datalist.").format(
        arguments
    )


def _of_diagnosis(run: Run) -> Iterator[Markup]:
    block = f"/{run.part}/overall/classification"
    if not run.diagnoses:
        yield Markup(
            "{}: its head was not trained, so nothing is said about its diagnoses, and no map explains them."
        ).format(run.title)
        return
    if not run.metrics.has(block):
        yield Markup("{}: no case has a diagnosis, so nothing is said about classification.").format(run.title)
        return
    matrix = run.metrics.value(f"{block}/confusion_matrix")
    named = [k for k in range(len(matrix)) if any(row[k] for row in matrix)]
    score = run.metrics.number(f"{block}/balanced_accuracy", "ratio")
    if run.classes_tested < 2:
        yield Markup("All {} cases are of one class: accuracy says nothing here.").format(run.part)
    elif len(named) == 1:
        names = run.metrics.content.get("classes") or [f"class {k}" for k in range(len(matrix))]
        without = run.metrics.number(f"{block}/majority_balanced_accuracy", "ratio")
        yield Markup(
            "{} calls every case “{}”: its balanced accuracy of {} is what always naming one class scores ({}), "
            "whatever its accuracy ({})."
        ).format(
            run.title,
            names[named[0]].replace("_", " "),
            score,
            without,
            run.metrics.number(f"{block}/accuracy", "ratio"),
        )
    elif run.metrics.has(f"{block}/majority_accuracy"):
        low = run.metrics.real(f"{block}/balanced_accuracy_ci95/0")
        if low is not None and low <= 1 / run.classes_tested:
            yield Markup(
                "{}: the interval of the balanced accuracy ({} to {}) holds what always naming one class scores."
            ).format(
                run.title,
                *(run.metrics.number(f"{block}/balanced_accuracy_ci95/{i}", "ratio") for i in (0, 1)),
            )
    if run.metrics.has(f"{block}/temperature_at_bound") and run.metrics.value(f"{block}/temperature_at_bound"):
        yield Markup(
            "{}: the temperature ({}) stands at a bound of its fit, so its probabilities are not calibrated."
        ).format(run.title, run.metrics.number(f"{block}/temperature", "plain"))


def _of_notes(loaded: Sequence[Run]) -> Iterator[Markup]:
    """What the evaluations noted, once where several runs share it."""
    titles: dict[str, list[str]] = {}
    for run in loaded:
        for note in run.metrics.content.get("notes", []):
            if not run.diagnoses and note.startswith("the head of this run was not trained"):
                continue  # said already, and its figures are left out of the page
            titles.setdefault(note, []).append(run.title)
    for note, names in titles.items():
        yield Markup("{}: {}.").format(" and ".join(names), note)


def _of_seen(run: Run) -> Iterator[Markup]:
    if run.metrics.has("/provenance/seen") and run.metrics.real("/provenance/seen"):
        yield Markup("{}: {} of the evaluated images were trained or selected on: its figures are too good.").format(
            run.title, run.metrics.number("/provenance/seen", "count")
        )
    if run.metrics.has("/provenance/own") and not run.metrics.value("/provenance/own"):
        yield Markup("{}: evaluated on a datalist that it was not trained on.").format(run.title)


def _of_training(run: Run) -> Iterator[Markup]:
    for stage in run.stages:
        if not stage.finished:
            yield Markup("{}: stage {} did not run to its end.").format(run.title, stage.name)


def _of_shortcuts(run: Run) -> Iterator[Markup]:
    if run.audit is None:
        yield AUDIT
        return
    audit = run.audit
    flagged = [(i, row) for i, row in enumerate(audit.content["rows"]) if row["flagged"] and row["stage"] == "after"]
    for kind, target in dict.fromkeys((row["features"], row["target"]) for _, row in flagged):
        matches = [(i, row) for i, row in flagged if (row["features"], row["target"]) == (kind, target)]
        scores = Markup(", ").join(
            Markup("{} ({})").format(row["value"].replace("_", " "), audit.number(f"/rows/{i}/auc", "ratio"))
            for i, row in matches
        )
        yield Markup(
            "Shortcut: {} alone, without the brain, tells the {} after the pipeline too: AUC of {}; the limit is {}."
        ).format(kind, target, scores, audit.number(f"/rows/{matches[0][0]}/limit", "ratio"))
    if not flagged:
        yield Markup("The audit of {} images found no shortcut above its limits in what the network is given.").format(
            audit.number("/n", "count")
        )


def _of_data(data: Document) -> Iterator[str]:
    by_source: dict[str, dict[str, list[int]]] = {}
    for sources in data.value("/counts").values():
        for source, by_class in sources.items():
            for name, count in by_class.items():
                by_source.setdefault(source, {}).setdefault(name, []).append(count["with_mask"])
    for source, by_class in by_source.items():
        if len(by_class) == 1 and len(by_source) > 1:
            yield (
                f"Source {source} has images of one class alone ({next(iter(by_class))}): whatever marks the source "
                "(scanner, size, compression) could pass for the diagnosis."
            )
        if not any(sum(counts) for counts in by_class.values()):
            yield f"Source {source} has no masks: it counts for the diagnosis, not for Dice or the maps."
