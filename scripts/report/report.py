"""One self-contained page about one or two runs, made only from the files in their folders.

    python -m scripts report runs/demo      # the demo's two runs side by side
    python -m scripts report runs/mine      # one run
    python -m scripts report runs/demo --picture docs/images/comparison.jpg    # the picture of the README

Every number on the page is read from a file by `Document.number` and carries where it stands (`data-source`), its full
value (`data-value`) and how it is shown (`data-kind`); a test reads the page and the files and compares.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from scripts.command.files import write_bytes, write_json, write_text
from scripts.command.verbs import Outcome
from scripts.comparison.experiments import read_experiments
from scripts.evaluation.answers import FIGURES
from scripts.measures.claims import METHOD, words
from scripts.pictures import evaluation_figures, figures
from scripts.pictures.overlays import colorize, png_bytes
from scripts.report import claim2024, run_table, sections
from scripts.report import findings as report_findings
from scripts.report.case_browser import case_browser
from scripts.report.claims import claims_of
from scripts.report.machine_readable import machine_readable
from scripts.runs.documents import Document, format_number, optional
from scripts.runs.reading import METHODS, Run, data_summary

__all__ = ["comparison_table", "data_summary", "format_number", "write_comparison_picture", "write_report"]

RUNS = {"ours": "TumorLens", "baseline": "stock design"}
WEB_WIDTH = 936  # pixels of a JPG
TEMPLATES = Path(__file__).parent / "templates"
CONFIG_KEYS = (
    "spatial_size",
    "max_epochs",
    "batch_size",
    "items",
    "learning_rate",
    "encoder_factor",
    "weight_decay",
    "precision",
    "seg_weight",
    "cls_weight",
    "evidence_weight",
    "frozen",
    "key_metric",
)


def _read(demo_dir: str | Path, runs: Mapping[str, str], part: str) -> list[Run]:
    root = Path(demo_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    if not runs:
        raise ValueError("runs: expected at least one, {folder: title}")
    return [Run(root, key, title, part) for key, title in runs.items()]


def comparison_table(demo_dir: str | Path, runs: Mapping[str, str] = RUNS, part: str = "test") -> str:
    """The comparison as plain text: value and 95 % interval a run; n of Dice, diagnoses and maps below.

    Args:
        demo_dir: folder of the runs.
        runs: {folder: title}.
        part: part of the datalist that was evaluated.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or lacks something.
    """
    return run_table.format_comparison(_read(demo_dir, runs, part))


def common_cases(loaded: Sequence[Run]) -> list[tuple[str, list[int]]]:
    """Tumor cases that every run has drawn: name and index in each gallery, in the first run's order.

    There are none where the head of a run was not trained.

    Raises:
        ValueError: when there is none though all have drawn some.
    """
    if not all(run.diagnoses for run in loaded):
        return []
    indices = [{entry["name"]: i for i, entry in run.shown()} for run in loaded]
    cases = [
        (entry["name"], [index[entry["name"]] for index in indices])
        for _, entry in loaded[0].shown()
        if entry.get("tumor_energy") is not None and all(entry["name"] in index for index in indices)
    ]
    if not cases:
        names = ", ".join(run.gallery.name for run in loaded if run.gallery is not None)
        raise ValueError(f"no tumor case stands in all of {names}")
    return cases


def write_comparison_picture(
    demo_dir: str | Path, path: str | Path, runs: Mapping[str, str] = RUNS, cases: int = 4, part: str = "test"
) -> Path:
    """Write the maps of the runs side by side as one picture, for a README: the first cases that all runs have drawn.

    Args:
        demo_dir, runs, part: see `write_report`.
        path: JPG, at most `WEB_WIDTH` wide, or PNG to write, by its suffix.
        cases: at most so many.

    Raises:
        ValueError: when a run has no maps, or no case was drawn by all.
    """
    loaded = _read(demo_dir, runs, part)
    for run in loaded:
        if not run.diagnoses:
            raise ValueError(f"no comparison picture: {run.map_title} ({run.title})")
    rows = []
    for name, indices in common_cases(loaded)[:cases]:
        first = loaded[0].shown()[indices[0]][1]
        cells = [
            (
                np.asarray(Image.open(loaded[0].picture(first, "image")).convert("RGB")),
                "masks: true cyan, predicted magenta",
            )
        ]
        for run, i in reversed(list(zip(loaded, indices, strict=True))):
            entry = run.shown()[i][1]
            tumor, air = (format_number(entry[k], "percent") for k in ("tumor_energy", "background_energy"))
            text = "no evidence" if entry["empty"] else f"in tumor {tumor}, in air {air}"
            cells.append((np.asarray(Image.open(run.picture(entry, "overlay")).convert("RGB")), text))
        rows.append((name, cells))
    columns = ["image", *(f"{run.title}:\n{run.map_title}" for run in reversed(loaded))]
    picture = figures.comparison_picture(columns, rows)
    if Path(path).suffix.lower() in (".jpg", ".jpeg"):
        buffer, image = io.BytesIO(), Image.open(io.BytesIO(picture)).convert("RGB")
        image.thumbnail((WEB_WIDTH, image.height), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=88)
        picture = buffer.getvalue()
    write_bytes(picture, path)
    return Path(path)


def write_report(
    demo_dir: str | Path,
    runs: Mapping[str, str] = RUNS,
    out: str | Path = "report.html",
    part: str = "test",
    experiments: Sequence[str | Path] | None = None,
) -> Path:
    """Write the page, and beside it its machine-readable twin, the same name with ``.json``.

    Args:
        demo_dir: folder of the runs, and of data.json (else the one that the first run's evaluation wrote is taken).
        runs: {folder: title}, the first is the one reported on, a second one is what it is compared with.
        out: file to write; a relative path is relative to `demo_dir`.
        part: part of the datalist that was evaluated.
        experiments: folders of comparisons, ablations and trainings without a source, see `read_experiments`.

    Returns:
        path of the page, which needs no other file and no network.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or lacks something, or when `out` is no HTML
            file; nothing is written then.
    """
    root = Path(demo_dir)
    path = root / out
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"out: expected a file ending in .html, got {path}; its twin is written beside it as .json")
    loaded = _read(root, runs, part)
    data = _data(root, loaded[0])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    findings, next_step = report_findings.findings(loaded, data), report_findings.next_step(loaded[0])
    browser = case_browser(loaded[0])
    claims, why_none = claims_of(loaded)
    said = Document.of(root, path.with_suffix(".json"), {"claims": claims})
    rows = run_table.comparison_rows(loaded)
    read = read_experiments(root, loaded, experiments)
    title = f"{' beside the '.join(run.title for run in loaded[:2])}, on {data.value('/name')}"
    page = environment.get_template("report.html.j2").render(
        answer_figures=FIGURES,
        part=part,
        runs=loaded,
        first=loaded[0],
        compared=len(loaded) > 1,
        data=data,
        counts=sections.data_rows(data),
        parts=list(data.value("/counts")),
        title=title,
        findings=findings,
        next_step=next_step,
        claims=claims,
        why_none=why_none,
        said=said,
        words=words,
        claim_method=METHOD,
        about={claim["measure"]: claim for claim in claims},
        glance=sections.uri(run_table.glance(loaded)),
        comparison=rows,
        six=run_table.first_figures(rows),
        pictures=common_cases(loaded),
        chance=run_table.chance(loaded[0]),
        browser=browser,
        shown_number=format_number,
        curves=[(run, sections.training(run)) for run in loaded],
        segmentation=sections.segmentation(loaded),
        worst=sections.worst_cases(loaded),
        classification=sections.classification(loaded),
        by_source=sections.by_source(loaded),
        localization=sections.localization_rows(loaded),
        faithfulness=[(run, sections.faithfulness(run)) for run in loaded if run.faithfulness is not None],
        experiments=read,
        robustness=[(run, sections.robustness(run)) for run in loaded if run.robustness is not None],
        config_keys=CONFIG_KEYS,
        methods=METHODS,
        area=evaluation_figures.share,
        audited=sections.audited(loaded[0]),
        class_name=lambda k: sections.class_name(loaded[0], k),
        bar=sections.uri(png_bytes(colorize(np.broadcast_to(np.linspace(0, 1, 256), (12, 256))))),
        image=lambda run, entry, what, folder="explanations": sections.photograph(run.picture(entry, what, folder)),
        escaped=lambda name: str(name).replace("~", "~0").replace("/", "~1"),
    )
    documents = [document for run in loaded for document in run.documents]
    twin = machine_readable(
        loaded, [*documents, data, *read.documents], title, findings, next_step, claims, browser.rows
    )
    write_json(twin, path.with_suffix(".json"))
    return write_bytes(page.encode(), path)


def write_checklist(root: Path, runs: Mapping[str, str], path: Path, part: str = "test") -> Path:
    """Write the CLAIM 2024 checklist, filled from the files of the first run.

    Args:
        root, runs, part: see `write_report`.
        path: Markdown file.
    """
    run = _read(root, dict([next(iter(runs.items()))]), part)[0]
    data = _data(root, run)
    answers = claim2024.checklist(run, data)
    return write_text(claim2024.markdown(answers, f"{run.title} on {data.value('/name')}"), path)


def _data(root: Path, run: Run) -> Document:
    return optional(root, "data.json", f"{run.key}/evaluation/data.json") or Document(root, "data.json")


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``report``."""
    root, out = arguments.folder, arguments.out
    runs = dict(text.partition("=")[::2] for text in arguments.run_dir) if arguments.run_dir else RUNS
    runs = {key: title or key for key, title in runs.items()}
    if not arguments.run_dir and (root / "evaluation").is_dir():
        name = root.resolve().name
        root, runs, out = root.resolve().parent, {name: name}, Path(name) / out
    missing = [name for name in runs if not (root / name / "evaluation").is_dir()]
    if root.is_dir() and missing:
        there = sorted(path.parent.name for path in root.glob("*/evaluation") if path.is_dir())
        hint = (
            f"evaluated runs in it: {', '.join(there)}; choose with --run_dir NAME"
            if there
            else ("evaluate the run first: python -m scripts evaluate")
        )
        raise FileNotFoundError(f"{root} holds no evaluated run {' nor '.join(missing)}; {hint}")
    page = write_report(root, runs, out, arguments.part, arguments.experiment)
    written = [page, page.with_suffix(".json")]
    if arguments.checklist is not None:
        place = page.with_name(f"{arguments.checklist}.md")
        written.append(write_checklist(root, runs, place, arguments.part))
    if arguments.picture is not None:
        written.append(write_comparison_picture(root, arguments.picture, runs, part=arguments.part))
    return Outcome(comparison_table(root, runs, arguments.part) + "\n", written)
