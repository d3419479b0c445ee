"""Handlers that write a run to a tracking server."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from scripts.training.handlers.monitoring import (
    adapt_tracking,
    check_tracking,
)


class TestTracking:
    def test_missing_mlflow_is_said_in_one_sentence(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for argv in (["run", "--tracking", "mlflow"], ["--tracking=mlflow"]):
            with pytest.raises(
                ValueError, match="needs the package mlflow, which is not installed: pip install mlflow"
            ):
                check_tracking(argv)
        check_tracking(["--tracking", "settings.yaml"])
        check_tracking(["run", "--seed", "1"])
        monkeypatch.setattr(sys, "argv", ["x", "--tracking", "mlflow"])
        with pytest.raises(ValueError, match="not installed"):
            check_tracking()

    def test_monai_handlers_are_given_a_number_and_the_epoch_of_training(self):
        from monai.handlers import MLFlowHandler

        handler = MLFlowHandler.__new__(MLFlowHandler)
        other = logging.getLogger()
        adapt_tracking(SimpleNamespace(state=SimpleNamespace(epoch=5, iteration=0)), [handler, other])
        assert handler.output_transform({"loss": torch.tensor(0.5)}) == {"train_loss": 0.5}
        assert handler.global_epoch_transform(1) == 5
