"""CLAIM 2024, the checklist for papers on AI in medical imaging: what a run's own files answer, and what they don't.

Source: Tejani, Klontzas, Gatti et al., "Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update",
Radiology: Artificial Intelligence 6 (4), 2024. Names of the items are shortened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from scripts.report.sections import faithfulness
from scripts.runs.documents import Document, format_number
from scripts.runs.reading import METHODS, Run

__all__ = ["ITEMS", "NOT_KNOWN", "Answer", "checklist", "markdown"]

NOT_KNOWN = "not known"
# Section, and the items in it, numbered through from 1.
SECTIONS = (
    ("Title and abstract", ("AI methodology named, with its kind", "Structured summary in the abstract")),
    ("Introduction", ("Background, intended use and role of the approach", "Aims, objectives, hypotheses")),
    ("Study design", ("Prospective or retrospective", "Goal of the study")),
    (
        "Data",
        (
            *("Sources of the data", "Inclusion and exclusion criteria", "Preprocessing", "Selection of subsets"),
            *("De-identification", "Handling of missing data", "Image acquisition protocol"),
        ),
    ),
    (
        "Reference standard",
        (
            *("How the reference standard was obtained", "Why that reference standard", "Who made the annotations"),
            *("Annotation of the test set", "Variability between and within raters"),
        ),
    ),
    ("Data partitions", ("How cases were assigned to partitions", "Level at which partitions are disjoint")),
    ("Testing data", ("Intended sample size",)),
    ("Model", ("The model in detail", "Libraries and versions", "Initialization of the parameters")),
    ("Training", ("Training in detail", "Selection of the final model", "Ensembling")),
    (
        "Evaluation",
        (
            *("Metrics of performance", "Statistical significance and uncertainty", "Robustness or sensitivity"),
            *("Explainability", "Evaluation on internal data", "Testing on external data", "Registration of the trial"),
        ),
    ),
    ("Results: data", ("Numbers included and excluded", "Demographic and clinical characteristics by partition")),
    (
        "Results: performance",
        ("Performance with uncertainty", "Diagnostic performance with its precision", "Analysis of failures"),
    ),
    ("Discussion", ("Limitations", "Implications for practice")),
    ("Other", ("Where the protocol and details are", "Availability of software, model and data", "Funding")),
)
ITEMS = tuple((section, name) for section, names in SECTIONS for name in names)
SETTINGS = ("max_epochs", "batch_size", "learning_rate", "weight_decay", "augment", "seg_weight", "cls_weight")
Given = tuple[str, list[str]]


@dataclass(frozen=True)
class Answer:
    """An item: its number, section and name; what the files say ("not known" where they say nothing), and which."""

    number: int
    section: str
    name: str
    text: str
    files: list[str]


def checklist(run: Run, data: Document) -> list[Answer]:
    """All items, filled from the files of a run.

    Args:
        run: that is reported on.
        data: data.json.
    """
    answers = []
    for number, (section, name) in enumerate(ITEMS, start=1):
        answer = ANSWERS[number](run, data) if number in ANSWERS else None
        text, files = answer if answer is not None and answer[0] else (NOT_KNOWN, [])
        answers.append(Answer(number, section, name, text, files))
    return answers


def markdown(answers: list[Answer], title: str) -> str:
    """The list as a Markdown table a section."""
    known = sum(answer.text != NOT_KNOWN for answer in answers)
    lines = [
        f"# CLAIM 2024 checklist: {title}",
        "",
        f"{known} of {len(answers)} items are answered by the files of the run; what they do not hold is not known and "
        "has to be written by the authors. Item names are shortened; the checklist is that of Tejani et al., "
        "Radiology: Artificial Intelligence 6 (4), 2024.",
    ]
    for section in dict.fromkeys(answer.section for answer in answers):
        lines += ["", f"## {section}", "", "| item | | from the run | file |", "|---|---|---|---|"]
        for answer in answers:
            if answer.section == section:
                files = ", ".join(f"`{file}`" for file in answer.files)
                lines.append(f"| {answer.number} | {answer.name} | {_cell(answer.text)} | {files} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _network(run: Run) -> str:
    return str(run.stages[-1].config.content.get("network_def", {}).get("_target_", "")).rpartition(".")[2]


def _kind(run: Run, data: Document) -> Given | None:
    name = _network(run)
    return (f"deep learning: {name}, trained for {_tasks(run)}", [run.stages[-1].config.name]) if name else None


def _tasks(run: Run) -> str:
    return " and ".join(sorted(run.tasks))


def _goal(run: Run, data: Document) -> Given:
    names = ", ".join(str(name).replace("_", " ") for name in data.value("/classes").values())
    return f"{_tasks(run)}; classes: {names}", [run.stages[-1].config.name, data.name]


def _sources(run: Run, data: Document) -> Given:
    sources = sorted({source for part in data.value("/counts").values() for source in part})
    notes = " ".join(data.content.get("notes", []))
    return f"{data.value('/name')}; sources: {', '.join(sources)}. {notes}".strip(), [data.name]


def _left_out(data: Document) -> str:
    return "; ".join(f"{count:,d} {what}" for what, count in data.content.get("left_out", {}).items())


def _criteria(run: Run, data: Document) -> Given | None:
    text = _left_out(data)
    return (f"left out when the datalist was built: {text}", [data.name]) if text else None


def _preprocessing(run: Run, data: Document) -> Given | None:
    config = run.stages[-1].config
    steps = config.content.get("train", {}).get("deterministic_transforms", [])
    names = [str(step["_target_"]).rpartition(".")[2] for step in steps]
    size = " x ".join(map(str, config.content["spatial_size"]))
    return f"to {size}" + (f" by {', '.join(names)}" if names else ""), [config.name]


def _missing(run: Run, data: Document) -> Given | None:
    notes = run.metrics.content.get("notes", [])
    return ("; ".join(notes), [run.metrics.name]) if notes else None


def _units(run: Run, data: Document) -> Given | None:
    kinds = (("patients", "patients"), ("groups", "near-duplicate groups"), ("images", "single images"))
    parts = list(data.value("/counts"))
    words = []
    for kind, name in kinds:
        counts = [data.real(f"/{kind}/{part}") if data.has(f"/{kind}/{part}") else None for part in parts]
        if any(counts):
            shown = [f"{part} {format_number(n, 'count')}" for part, n in zip(parts, counts, strict=True)]
            words.append(f"{name}: {', '.join(shown)}")
    seen = "/provenance/seen"
    if run.metrics.has(seen):
        words.append(f"{run.metrics.real(seen)} evaluated images were trained or selected on")
    return ("; ".join(words), [data.name, run.metrics.name]) if words else None


def _model(run: Run, data: Document) -> Given | None:
    config = run.stages[-1].config
    network_def = config.content.get("network_def", {})
    plain = {
        k: v
        for k, v in network_def.items()
        if isinstance(v, int | float | list) or (isinstance(v, str) and v[:1] not in "$@")
    }
    words = ", ".join(f"{key} {value}" for key, value in plain.items() if key != "_target_")
    return (f"{_network(run)}: {words}", [config.name]) if plain else None


def _versions(run: Run, data: Document) -> Given | None:
    manifest = run.stages[-1].manifest
    versions = {"Python": manifest.content.get("python"), **manifest.content.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version), [manifest.name]


def _start(run: Run, data: Document) -> Given:
    words = [f"seed {run.stages[0].manifest.value('/seed')}"]
    for stage in run.stages:
        first = stage.config.content.get("initial_weights")
        if stage.manifest.has("/adopted"):
            words.append(f"{stage.name} adopted from a file with SHA-256 {stage.manifest.value('/adopted_sha256')}")
        elif first:
            words.append(f"{stage.name} from {str(first).rpartition(chr(39) + '/')[2] or first}".replace("'", ""))
        else:
            words.append(f"{stage.name} from random weights")
    return "; ".join(words), [stage.config.name for stage in run.stages]


def _training(run: Run, data: Document) -> Given:
    words = [
        f"{stage.name}: " + ", ".join(f"{key} {stage.configured(key)}" for key in SETTINGS) for stage in run.stages
    ]
    return "; ".join(words), [stage.config.name for stage in run.stages]


def _selection(run: Run, data: Document) -> Given | None:
    stage = run.stages[-1]
    if not stage.manifest.has("/best_epoch"):
        return None
    best, value = stage.manifest.value("/best_epoch"), format_number(stage.manifest.real("/best_metric"), "ratio")
    return f"epoch {best} of {stage.name}, by {stage.configured('key_metric')} on validation ({value})", [
        stage.manifest.name
    ]


def _measures(run: Run) -> Iterator[tuple[str, str]]:
    block = f"/{run.part}/overall"
    for name, label, kind in (("dice", "Dice", "ratio"), ("iou", "IoU", "ratio"), ("hd95", "HD95 (pixels)", "decimal")):
        pointer = f"{block}/segmentation/{name}"
        if run.metrics.has(pointer + "/n") and run.metrics.real(pointer + "/n"):
            yield label, _figure(run.metrics, pointer + "/mean", pointer + "/ci95", kind)


def _diagnostic(run: Run) -> Iterator[tuple[str, str]]:
    for name in ("balanced_accuracy", "accuracy", "sensitivity", "specificity", "precision", "roc_auc"):
        pointer = f"/{run.part}/overall/classification/{name}"
        if run.metrics.has(pointer):
            yield (
                name.replace("roc_auc", "ROC-AUC").replace("_", " "),
                _figure(run.metrics, pointer, pointer + "_ci95", "ratio"),
            )


def _figure(document: Document, pointer: str, limits: str, kind: str) -> str:
    text = format_number(document.real(pointer), kind)
    if document.has(limits) and document.real(limits + "/0") is not None:
        text += " [{}, {}]".format(*(format_number(document.real(f"{limits}/{i}"), kind) for i in (0, 1)))
    return text


def _listed(pairs: Iterator[tuple[str, str]], run: Run) -> Given | None:
    words = [f"{label} {value}" for label, value in pairs]
    return ("; ".join(words), [run.metrics.name]) if words else None


def _metrics(run: Run, data: Document) -> Given | None:
    names = [label for label, _ in (*_measures(run), *_diagnostic(run))]
    return (", ".join(names), [run.metrics.name]) if names else None


def _statistics(run: Run, data: Document) -> Given | None:
    text = run.metrics.content.get("intervals", "")
    return (text, [run.metrics.name]) if text else None


def _robustness(run: Run, data: Document) -> Given | None:
    if run.robustness is None or run.robustness.has("/unavailable"):
        return None
    names = [corruption["name"] for corruption in run.robustness.content["corruptions"]]
    return f"{', '.join(names)}, each at several strengths, on {run.robustness.value('/n')} cases", [
        run.robustness.name
    ]


def _explained(run: Run, data: Document) -> Given | None:
    names = dict.fromkeys(METHODS.get(row["method"], row["method"]) for _, row in run.measured())
    files = [run.localization.name, *([run.faithfulness.name] if run.faithfulness is not None else [])]
    text = f"measured against the true masks: {', '.join(names)}"
    if tests := dict.fromkeys(test for test, *_ in faithfulness(run)):
        text += f"; faithfulness: {', '.join(tests)}"
    return (text, files) if names else None


def _internal(run: Run, data: Document) -> Given:
    return f"{format_number(run.metrics.real(f'/{run.part}/overall/n'), 'count')} cases of the {run.part} part", [
        run.metrics.name
    ]


def _external(run: Run, data: Document) -> Given | None:
    others = [(d, d.content.get("provenance", {})) for d in run.elsewhere]
    others = [(d, content) for d, content in others if content.get("own") is False]
    return (
        ("; ".join(str(content.get("datalist")) for _, content in others), [d.name for d, _ in others])
        if others
        else None
    )


def _counts(run: Run, data: Document) -> Given:
    words = []
    for part, sources in data.value("/counts").items():
        by_class: dict[str, int] = {}
        for classes in sources.values():
            for name, count in classes.items():
                by_class[name] = by_class.get(name, 0) + count["n"]
        words.append(
            f"{part}: " + ", ".join(f"{count:,d} {name.replace('_', ' ')}" for name, count in by_class.items())
        )
    return "included images, " + "; ".join(words) + f"; excluded: {_left_out(data) or NOT_KNOWN}", [data.name]


def _failures(run: Run, data: Document) -> Given | None:
    if run.shown_cases is None:
        return None
    kinds = [entry["kind"] for entry in run.shown_cases.content]
    words = [
        f"{kinds.count(kind)} {label}"
        for kind, label in (("worst", "lowest Dice"), ("misdiagnosed", "wrong diagnoses"))
    ]
    return f"shown with image, masks and evidence: {', '.join(words)}", [run.shown_cases.name, run.cases.name]


def _details(run: Run, data: Document) -> Given:
    stages = [document.name for stage in run.stages for document in (stage.config, stage.manifest)]
    return "the whole resolved configuration and the manifest of each stage", stages


def _available(run: Run, data: Document) -> Given:
    manifest = run.stages[-1].manifest
    words = [
        f"commit {manifest.content.get('commit') or 'not in git'}",
        f"weights, SHA-256 {run.current or 'not at hand'}",
    ]
    words.append(f"datalist, SHA-256 {manifest.content.get('datalist_sha256') or 'none'}")
    return "; ".join(words) + "; where they can be had: not known", [manifest.name]


ANSWERS: dict[int, Callable[[Run, Document], Given | None]] = {
    1: _kind,
    6: _goal,
    7: _sources,
    8: _criteria,
    9: _preprocessing,
    12: _missing,
    20: _units,
    22: _model,
    23: _versions,
    24: _start,
    25: _training,
    26: _selection,
    28: _metrics,
    29: _statistics,
    30: _robustness,
    31: _explained,
    32: _internal,
    33: _external,
    35: _counts,
    37: lambda run, data: _listed(_measures(run), run),
    38: lambda run, data: _listed(_diagnostic(run), run),
    39: _failures,
    42: _details,
    43: _available,
}
