"""MONAI Label's stock `monaibundle` app with the released bundle, and a folder of phantoms to try it on.

::

    python -m scripts label --out runs/label          # after make bundle; prints the commands to go on with
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from bundle.config_values import set_values
from bundle.release import NAME, ROOT
from bundle.samples import draw_studies
from scripts.command.verbs import Outcome
from scripts.measures.prevalence import Given, given_prevalence

ENVIRONMENT = ROOT / ".venv-label"
SAMPLE_APP = Path("monailabel", "sample-apps", "monaibundle")
DICOM_WRITER = Path("bin", "itkimage2segimage")  # of dcmqi
STRATEGY = "most_uncertain"
# Epistemic is monailabel's own strategy: the unlabeled image with the highest score, then the next. Its stock app does
# not offer it. The scores come from bundle.label_sampling.
ADDED = f'''

# Added by TumorLens; everything above is the stock app.
from monailabel.tasks.activelearning.epistemic import Epistemic  # noqa: E402

_stock_strategies = MyApp.init_strategies
MyApp.init_strategies = lambda self: {{**_stock_strategies(self), "{STRATEGY}": Epistemic()}}
'''


@dataclass
class Label:
    """A prepared app.

    Attributes:
        app: folder of the app, bundles in its ``model``.
        studies: folder of images, or address of a DICOMweb server.
        bundles: their names.
    """

    app: Path
    studies: Path | str
    bundles: list[str]

    def command(self, python: str | Path, port: int = 8000, host: str = "127.0.0.1") -> list[str]:
        """The command that starts the server, without any access to a network."""
        return [
            str(python), "-m", "monailabel.main", "start_server",
            "--app", str(self.app), "--studies", str(self.studies), "--host", host, "--port", str(port),
            "--conf", "models", ",".join(self.bundles), "--conf", "zoo_source", "local", "--conf", "sam2", "false",
        ]  # fmt: skip


def prepare_app(
    app: Path,
    bundles: Sequence[Path],
    environment: Path = ENVIRONMENT,
    sampling: bool = False,
    prevalence: Given = None,
) -> None:
    """Copy the stock app and put bundles into its ``model`` folder.

    Args:
        app: the folder to make; an older one is replaced.
        bundles: released folders.
        environment: virtual environment that holds monailabel.
        sampling: add the strategy that offers the most uncertain image next.
        prevalence: of tumors among the studies, see `scripts.measures.prevalence.given_prevalence`; None: as released.

    Raises:
        FileNotFoundError: when the environment or a bundle is not there.
        ValueError: when the prevalence does not fit a bundle's classes.
    """
    stock = environment / SAMPLE_APP
    if not stock.is_dir():
        raise FileNotFoundError(f"{environment} holds no MONAI Label ({SAMPLE_APP} is missing); run: make label")
    for folder in bundles:
        if not (folder / "configs" / "inference.yaml").is_file():
            raise FileNotFoundError(f"{folder} holds no released bundle; run: make bundle RUN=runs/demo/ours")
    texts = {folder.name: _answering(folder / "configs" / "inference.yaml", prevalence) for folder in bundles}
    shutil.rmtree(app, ignore_errors=True)
    shutil.copytree(stock, app, ignore=shutil.ignore_patterns("logs", "model", "__pycache__"))
    if sampling:
        main = app / "main.py"
        main.write_text(main.read_text(encoding="utf-8") + ADDED, encoding="utf-8")
    # Where the server looks for it before it downloads one; only studies of an archive need it.
    if (environment / DICOM_WRITER).is_file():
        (app / "bin").mkdir(exist_ok=True)
        (app / "bin" / DICOM_WRITER.name).symlink_to((environment / DICOM_WRITER).absolute())
    for folder in bundles:
        target = app / "model" / folder.name
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.rmtree(target / "runs", ignore_errors=True)  # results; not scripts/runs
        (target / "configs" / "inference.yaml").write_text(texts[folder.name], encoding="utf-8")


def _answering(config: Path, prevalence: Given) -> str:
    """The text of an inference config that answers for a prevalence."""
    text = config.read_text(encoding="utf-8")
    known = given_prevalence(prevalence, yaml.safe_load(text).get("training_prevalence"))
    return text if known is None else set_values(text, {"prevalence": known})


def prepare_studies(studies: Path) -> None:
    """Fill a folder with phantoms (`bundle.samples`). One that exists is left alone."""
    if not studies.exists():
        draw_studies(studies)


def prepare(
    out: Path,
    bundles: Sequence[Path],
    environment: Path = ENVIRONMENT,
    sampling: bool = True,
    prevalence: Given = None,
) -> Label:
    """App and sample studies in one folder."""
    label = Label(out / "app", out / "studies", [folder.name for folder in bundles])
    prepare_app(label.app, bundles, environment, sampling, prevalence)
    prepare_studies(out / "studies")
    return label


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``label``."""
    bundles = arguments.bundle or [ROOT / "dist" / NAME]
    label = prepare(arguments.out, bundles, sampling=not arguments.stock, prevalence=arguments.prevalence)
    command = label.command(ENVIRONMENT / "bin" / "python")
    if arguments.studies:
        command[command.index("--studies") + 1] = arguments.studies
    text = (
        f"app      {label.app}\nstudies  {arguments.studies or label.studies}\n\nStart the server:\n\n    "
        + " ".join(command)
        + "\n\nThen, as docs/monai_label.md says in more detail:\n"
        "  3D Slicer   module MONAILabel, server http://127.0.0.1:8000\n"
        "  OHIF        http://127.0.0.1:8000/ohif/, with --studies URL of a DICOMweb server\n"
        "  by hand     http://127.0.0.1:8000/ (the server's own page of its interface)\n"
        f"  sampling    python -m scripts label-next --name {label.bundles[0]}\n"
    )
    return Outcome(text, [arguments.out])
