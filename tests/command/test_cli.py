from __future__ import annotations

import logging
import sys
from pathlib import Path

import monai.bundle
import pytest

from scripts.command.cli import start
from scripts.command.errors import one_sentence_errors, sentence, start_logging
from scripts.command.locations import CONFIGS
from scripts.command.overrides import parse_overrides


@pytest.fixture(autouse=True)
def no_traceback_asked(monkeypatch):
    monkeypatch.delenv("TUMORLENS_TRACEBACK", raising=False)


def test_overrides_are_typed_as_monai_types_them():
    tokens = [
        "--max_epochs",
        "3",
        "--learning_rate=1e-3",
        "--frozen",
        "['encoder']",
        "--name",
        "mine",
        "--flag",
        "True",
    ]
    assert parse_overrides(tokens) == {
        "max_epochs": 3,
        "learning_rate": 0.001,
        "frozen": ["encoder"],
        "name": "mine",
        "flag": True,
    }


def test_ids_and_values_with_special_signs_survive():
    tokens = ["--network_def#filters=[4, 8, 16]", "--seed", "-1", "--formula", "a=b", "--run_dir=runs/a=b"]
    assert parse_overrides(tokens) == {
        "network_def#filters": [4, 8, 16],
        "seed": -1,
        "formula": "a=b",
        "run_dir": "runs/a=b",
    }


def test_no_overrides():
    assert parse_overrides([]) == {}


@pytest.mark.parametrize(
    ("tokens", "named"),
    [(["max_epochs", "3"], "max_epochs"), (["--a", "1", "2"], "2"), (["--max_epochs"], "--max_epochs")],
)
def test_other_forms_are_refused(tokens, named):
    with pytest.raises(ValueError, match=f"expected --id value, got '{named}'"):
        parse_overrides(tokens)


def fail_with(error: BaseException, capsys) -> tuple[int, str]:
    """Exit status and standard error."""
    with pytest.raises(SystemExit) as info, one_sentence_errors():
        raise error
    return info.value.code, capsys.readouterr().err


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


MENDABLE = [
    ValueError("x.jpg is empty"),
    FileNotFoundError("x.jpg is empty"),
    FileExistsError("x.jpg is empty"),
    NotADirectoryError("x.jpg is empty"),
    IsADirectoryError("x.jpg is empty"),
    PermissionError("x.jpg is empty"),
    caused(RuntimeError("Failed to evaluate"), ValueError("x.jpg is empty")),
    caused(RuntimeError("outer"), caused(RuntimeError("applying transform"), FileNotFoundError("x.jpg is empty"))),
]
FAULTS = [
    RuntimeError("shapes"),
    KeyError("image"),
    AttributeError("no such thing"),
    caused(RuntimeError("Failed to evaluate"), KeyError("image")),
    caused(RuntimeError("Failed to evaluate"), AttributeError("no such thing")),
    caused(RuntimeError("Failed to evaluate"), RuntimeError("shapes")),
]


def name_of(error: Exception) -> str:
    return type(error).__name__ + (f" from {type(error.__cause__).__name__}" if error.__cause__ else "")


@pytest.mark.parametrize("error", MENDABLE, ids=name_of)
def test_what_a_user_can_mend_is_one_sentence(error, capsys):
    assert sentence(error) == "x.jpg is empty"
    assert fail_with(error, capsys) == (2, "error: x.jpg is empty\n")


@pytest.mark.parametrize("error", FAULTS, ids=name_of)
def test_faults_of_the_program_keep_their_traceback(error, capsys):
    assert sentence(error) is None
    with pytest.raises(type(error)) as info, one_sentence_errors():
        raise error
    assert info.value is error
    assert capsys.readouterr().err == ""


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("TUMORLENS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="empty"), one_sentence_errors():
        raise ValueError("x.jpg is empty")


class TestConfigs:
    """`start`, the first step of every config under ``monai.bundle run``, which has no place for a context manager."""

    @pytest.fixture(autouse=True)
    def plain_python(self, monkeypatch):
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        program = str(Path(monai.bundle.__file__).parent / "__main__.py")
        monkeypatch.setattr(sys, "argv", [program, "run", "--config_file", str(CONFIGS / "inference.yaml")])

    @staticmethod
    def report(error: BaseException, capsys) -> str:
        sys.excepthook(type(error), error, None)
        return capsys.readouterr().err

    def test_errors_are_one_sentence(self, capsys):
        start()
        assert self.report(MENDABLE[-1], capsys) == "error: x.jpg is empty\n"
        assert "run the same command again to continue" in self.report(KeyboardInterrupt(), capsys)

    def test_faults_of_the_program_are_shown_whole(self, capsys):
        start()
        text = self.report(FAULTS[3], capsys)
        assert "KeyError: 'image'" in text
        assert "RuntimeError: Failed to evaluate" in text

    def test_a_program_that_runs_a_config_keeps_its_own_tracebacks(self, monkeypatch):
        monkeypatch.setattr(sys, "argv", ["notebook.py", "run"])
        start()
        assert sys.excepthook is sys.__excepthook__

    def test_starting_twice_is_starting_once(self, capsys):
        start()
        start()
        assert self.report(ValueError("x.jpg is empty"), capsys) == "error: x.jpg is empty\n"

    def test_the_traceback_can_be_asked_for(self, monkeypatch):
        monkeypatch.setenv("TUMORLENS_TRACEBACK", "1")
        start()
        assert sys.excepthook is sys.__excepthook__

    def test_another_hook_is_left_alone(self, monkeypatch):
        def debugger(kind, error, trace):
            """Somebody else's."""

        monkeypatch.setattr(sys, "excepthook", debugger)
        start()
        assert sys.excepthook is debugger


def test_interruption_says_how_to_continue(capsys):
    assert fail_with(KeyboardInterrupt(), capsys) == (130, "interrupted; run the same command again to continue\n")


def test_success_is_left_alone(capsys):
    with one_sentence_errors():
        value = 1
    assert value == 1
    assert capsys.readouterr().err == ""


def test_logging_quiets_the_libraries():
    quiet = {"ignite": logging.CRITICAL, "PIL": logging.WARNING, "monai.bundle.workflows": logging.CRITICAL}
    before = {name: logging.getLogger(name).level for name in quiet}
    try:
        for name in quiet:
            logging.getLogger(name).setLevel(logging.DEBUG)
        start_logging()
        assert {name: logging.getLogger(name).getEffectiveLevel() for name in quiet} == quiet
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
