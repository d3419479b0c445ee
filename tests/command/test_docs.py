"""README and docs say what the code does: every command in them is understood, every link and name is there."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from bundle.predictions import Prediction
from scripts.__main__ import verbs
from scripts.command.config_files import read_config
from scripts.command.locations import ROOT
from scripts.command.overrides import bundle_command, check_overrides
from scripts.command.verbs import parse
from tests.arrows import ARROWS, drawing, floors, graph, longest_path, used_arrows
from tests.test_imports import MORE, STANDALONE

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST_PAGE = 300  # lines
MONAI = "/lib/python3.11/site-packages/monai/bundle/__main__.py"


def commands(page: Path) -> list[str]:
    """Indented command lines, continued ones joined, without comments and the marks of what is optional."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    lines = re.findall(r"^    ((?:python|torchrun|make) .*)$", text, re.MULTILINE)
    bare = [re.sub(r"\s{2,}# .*|\s# .*", "", line) for line in lines]
    return [re.sub(r"\.\.\.|(?<![\w'\"])[\[\]]|\](?=\s|$)", "", line) for line in bare]


def written(prefix: str) -> list[tuple[str, str]]:
    """(page, arguments) of each command that begins so."""
    return [(page.name, line.partition(prefix)[2]) for page in PAGES for line in commands(page) if prefix in line]


@pytest.mark.parametrize(("page", "line"), [p for p in written("-m scripts") if p[1].strip()])
def test_every_verb_in_the_docs_is_understood(page, line):
    arguments = parse(verbs(), shlex.split(line))
    assert arguments.chosen.name
    if arguments.overrides:
        config = "train" if arguments.verb in ("train", "ablation", "leave-one-source-out") else arguments.verb
        ids = [token[2:].partition("=")[0] for token in arguments.overrides if token.startswith("--")]
        stages = ("stage1_segmentation", "stage2_classification", "stage3_joint")
        found = read_config(ROOT / "configs" / f"{config}.yaml").get()
        check_overrides(found, [name for name in ids if name not in stages])


@pytest.mark.parametrize(("page", "line"), [p for p in written("-m monai.bundle") if p[1].split()[0] == "run"])
def test_every_run_of_a_config_in_the_docs_is_understood(page, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = bundle_command([MONAI, *shlex.split(line)])
    assert command is not None
    files = [file for file in command.files if not file.startswith("runs/")]
    check_overrides(read_config(files).get(), command.values)


def test_every_target_of_make_in_the_docs_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    used = {line.split()[1] for page in PAGES for line in commands(page) if line.startswith("make ")}
    assert {"demo", "test"} <= used <= targets


def test_the_makefile_calls_verbs_with_arguments_that_they_have():
    text = re.sub(r"\$\(or \$\(PORT\),(\d+)\)", r"\1", (ROOT / "Makefile").read_text(encoding="utf-8"))
    lines = re.findall(r"\$\(BIN\)/python -m scripts (.*)", text)
    assert len(lines) >= 5
    for line in lines:
        plain = re.sub(r"\$\(if \$\(\w+\),(.*?)\)(?=\s|$)", r"\1", line)
        parse(verbs(), shlex.split(re.sub(r"\$\(\w+\)", "1", plain)))


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_readme_names_what_a_prediction_has():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.search(r"predictor\.predict\(\"image\.jpg\"\)\s+# (.*)", text)[1].split(", ")
    assert set(named) <= {field.name for field in dataclasses.fields(Prediction)}
    assert len(text.splitlines()) <= 120


ARCHITECTURE = ROOT / "docs" / "architecture.md"
LONGEST = 18  # modules on the longest way over imports; it may get shorter, not longer


def test_the_drawing_and_the_figures_of_the_architecture_are_those_of_the_code():
    text, imports = ARCHITECTURE.read_text(encoding="utf-8"), graph()
    assert f"```mermaid\n{drawing(ARROWS)}\n```" in text, "python -m tests.arrows prints it"
    arrows = sum(map(len, used_arrows(imports).values()))
    assert f"{arrows} arrows on {len(floors(ARROWS))} floors" in text
    path = longest_path(imports)
    assert f"goes over {len(path)} modules" in text, path
    assert len(path) <= LONGEST, path


def test_paths_of_the_way_of_one_image_are_there():
    _, _, way = ARCHITECTURE.read_text(encoding="utf-8").partition("## The way of one image")
    drawn = re.findall(r"\"([\w/]+\.py)\"", way)
    assert len(drawn) >= 8
    assert [path for path in drawn if not (ROOT / path).is_file()] == []


def test_what_packages_take_from_others_is_written():
    rows = re.findall(r"^\| `scripts/(\w+)` \| (.*) \| (.*)\|$", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE)
    assert {f"scripts.{name}": {*takes.split(", ")} for name, takes, _ in rows} == STANDALONE
    more = [(name, *pair) for name, _, rest in rows for pair in re.findall(r"`(\w+)`: (\w+)", rest)]
    assert {f"scripts.{name}.{module}": {taken} for name, module, taken in more} == MORE


def test_the_table_of_the_architecture_equals_the_arrows():
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", text, re.MULTILINE)
    outer = {"transforms", "scripts", "bundle", "tests"}
    full = {name: name if name in outer else f"scripts.{name}" for name, _ in rows}
    found = {full[name]: {full[n] for n in allowed.split(", ") if n != "nothing"} for name, allowed in rows}
    assert found == ARROWS


@pytest.mark.parametrize("page", [page.name for page in PAGES if page.parent.name == "docs"])
def test_each_page_starts_with_a_command(page):
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(("# ", "---")), page
    assert any(re.match(r"    (python|make|torchrun) ", line) for line in lines[1:6]), page
    assert len(lines) < LONGEST_PAGE, "one page a task: split it"


def test_each_page_is_reached_from_the_readme():
    """By links, page to page."""
    reached, new = set(), {ROOT / "README.md"}
    while new:
        reached |= new
        links = {
            (page.parent / target).resolve()
            for page in new
            for target in re.findall(r"\]\(([^)#:]+\.md)[#)]", page.read_text(encoding="utf-8"))
        }
        new = links - reached
    assert set(PAGES) <= reached


def test_pages_that_the_code_names_are_there():
    files = [path for folder in ("bundle", "scripts", "configs") for path in (ROOT / folder).rglob("*.*")]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".yaml", ".j2")}
    named = {(path.name, page) for path, text in texts.items() for page in re.findall(r"docs/[\w/-]+\.md", text)}
    assert len(named) >= 10
    assert [(name, page) for name, page in sorted(named) if not (ROOT / page).is_file()] == []


def test_sections_that_links_name_are_there():
    for page in PAGES:
        for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
            text = (page.parent / target if target else page).read_text(encoding="utf-8")
            titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
            assert section in [title.replace(" ", "-") for title in titles], (page.name, target, section)


# Where a reader of the README alone would look, and what has to be there.
QUESTIONS = {
    "where is the head cropped": ("transforms/cropping.py", "class CropToForegroundd"),
    "where is the head found": ("transforms/foreground.py", "def foreground_mask"),
    "where is air set to 0": ("transforms/masking.py", "class MaskBackgroundd"),
    "in which order is an image prepared": ("scripts/data/preprocessing.py", "def make_preprocessing"),
    "where does a file's name say its patient": ("scripts/data/datalists/patient_names.py", "def read_name"),
    "where is the network": ("scripts/networks/multitask_dynunet.py", "class MultiTaskDynUNet"),
    "which file holds the pooling of evidence": ("scripts/networks/heads.py", "class EvidenceHead"),
    "where are windows stitched": ("scripts/networks/windows.py", "def stitched"),
    "where is the loss of the evidence": ("scripts/training/losses.py", "class EvidenceLoss"),
    "where is the threshold chosen": ("scripts/measures/thresholds.py", "def choose_threshold"),
    "where is a run folder's manifest written": ("scripts/runs/folder.py", "write_json(_manifest("),
    "where are twins between splits found": ("scripts/data/datalists/near_duplicates.py", "def close_to_training"),
    "where do mask and evidence become one verdict": ("scripts/inference/answer.py", "def join"),
    "where is Grad-CAM": ("scripts/explain/cam.py", "class GradCAM"),
    "where does a map become a PNG": ("scripts/pictures/overlays.py", "def save("),
    "where is a DICOM segment written": ("scripts/dicom/segmentation.py", "def segmentation"),
    "where is the tumor painted out": ("scripts/interventions/infill.py", "def membrane"),
    "where is a tumor put into a healthy head": ("scripts/interventions/insertion.py", "def insert"),
    "where is the service started": ("bundle/service.py", "def execute"),
}


SMALL = {"a", "an", "and", "are", "by", "do", "does", "file", "in", "is", "of", "s", "the", "to", "where", "which"}


def stems(text: str) -> set[str]:
    """Beginnings of the words that say something: "cropped" and `cropping.py` have one."""
    return {word[:4] for word in re.findall(r"[a-z]+|0", text.lower()) if word not in SMALL}


def readme_paths() -> dict[str, set[str]]:
    """Paths of the README's last paragraph on code, each with the stems of its name and of what stands before it.

    A file without a folder is of the folder named last.
    """
    _, _, text = (ROOT / "README.md").read_text(encoding="utf-8").partition("The way of an image through the code:")
    paths: dict[str, set[str]] = {}
    folder = ""
    for words, name in re.findall(r"([^`]*)`([^`]+)`", text.partition("\n\n")[0]):
        folder = name if name.endswith("/") and name != "handlers/" else folder
        path = name if name == folder or name.startswith("scripts/") else folder + name
        paths[path] = stems(f"{words} {Path(name).stem}")
    return paths


def guess(question: str) -> list[str]:
    """Files whose words in the README fit a question best; a word that few files have counts more."""
    paths = {path: clues for path, clues in readme_paths().items() if path.endswith(".py")}
    asked = stems(question)
    count = {stem: sum(stem in clues for clues in paths.values()) for stem in asked}
    score = {path: round(sum(1 / count[stem] for stem in asked & clues), 6) for path, clues in paths.items()}
    return [path for path, value in score.items() if value == max(score.values()) > 0]


def test_paths_that_the_readme_names_are_there():
    paths = {*readme_paths(), "models/model.pt"}
    assert len(paths) >= 40
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_reader_of_the_readme_finds(question):
    path, content = QUESTIONS[question]
    assert guess(question) == [path]
    assert content in (ROOT / path).read_text(encoding="utf-8")


def test_the_table_of_help_has_every_verb():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8").partition("## What help costs")[2]
    assert sorted(re.findall(r"([a-z][a-z-]*) \| 0\.\d\d", page)) == sorted(verb.name for verb in verbs())
