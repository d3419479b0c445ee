from __future__ import annotations

from pathlib import Path

import pytest

from scripts.report import report
from tests.report.demo_runs import RUNS, make_demo


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two made runs with their report; who changes it puts it back."""
    folder = make_demo(tmp_path_factory.mktemp("demo"))
    report.write_report(folder, RUNS)
    return folder
