"""A small trained run that several tests share: phantoms, three stages, and the stock design beside them."""

from __future__ import annotations

import gc
import locale
import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.command.locations import CONFIGS
from scripts.data import datalists
from scripts.phantoms.dataset import make_phantoms
from scripts.training.train import train
from tests.scans import write_overlay


def pytest_make_parametrize_id(val):
    """Bytes are named by their number: content may hold the time (gzip), and then workers collect different tests."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


SEED = int(os.environ.get("TUMORLENS_TEST_SEED", "0"))  # another one finds tests that pass by their draw alone


def _seed() -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What was imported stays to the end: looking through it again at each collection took 4 % of the suite's time."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a fixture draws does not depend on the tests before it, nor on how they are spread over workers."""
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """What a test draws does not depend on whether it was the one that made a shared fixture."""
    _seed()


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """network.yaml of a tiny network of random weights, beside them."""
    return write_overlay(tmp_path_factory.mktemp("weights"))


@dataclass
class SmallRun:
    """Folders of a small demo: phantoms, datalist, and the runs ``ours`` and ``baseline``."""

    folder: Path
    dataset_dir: Path
    datalist_file: Path

    @property
    def paths(self) -> dict[str, str]:
        return {"dataset_dir": str(self.dataset_dir), "datalist_file": str(self.datalist_file)}

    def run(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module", autouse=True)
def _locale() -> None:
    """Each module starts with the locale of the environment: libraries set their own and leave it so."""
    locale.setlocale(locale.LC_CTYPE, "")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> SmallRun:
    folder = tmp_path_factory.mktemp("small")
    data = folder / "phantoms"
    make_phantoms(data, seed=3, patients=10, singles=16, progress=False)
    patients, _ = datalists.nifti_cases(
        data / "patients", root=data, name="patients", tumor_slices=2, normal_slices=1, progress=False
    )
    singles, _ = datalists.image_folder(data / "singles", root=data, name="singles", modality="FLAIR", progress=False)
    datalist_file = folder / "datalist.json"
    datalists.write(datalists.merge([patients, singles], name="phantoms"), datalist_file)
    return SmallRun(folder, data, datalist_file)


@pytest.fixture(scope="session")
def small_run(small_data) -> SmallRun:
    smoke = CONFIGS / "smoke.yaml"
    train(small_data.run("ours"), [smoke], **small_data.paths)
    train(small_data.run("baseline"), [CONFIGS / "baseline.yaml", smoke], **small_data.paths)
    return small_data


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, from the environment variable TUMORLENS_DATA."""
    value = os.environ.get("TUMORLENS_DATA")
    if not value:
        pytest.skip("TUMORLENS_DATA is not set: no real images at hand")
    if not Path(value).is_dir():
        pytest.fail(f"TUMORLENS_DATA={value} is not a folder")
    return Path(value)
