"""Which precision is trained in, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from scripts.training import precision as precisions
from scripts.training.engines import MultiTaskStep
from scripts.training.precision import choose_precision, emulation_factor, scales_gradients
from tests.networks.nets import tiny

CPU = torch.device("cpu")


def with_bfloat16(monkeypatch, native: bool) -> None:
    monkeypatch.setattr(precisions, "native_bfloat16", lambda device: native)


@pytest.mark.parametrize(("native", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_only_where_the_processor_computes_in_it(monkeypatch, caplog, native, chosen):
    with_bfloat16(monkeypatch, native)
    with caplog.at_level("INFO"):
        step = MultiTaskStep(tiny(), precision="auto")
    assert step.dtype == (torch.bfloat16 if native else None)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"precision: {chosen} on cpu, as this processor has")


def test_auto_follows_the_instructions_of_the_processor(monkeypatch):
    monkeypatch.setattr(precisions.platform, "machine", lambda: "x86_64")
    for bf16, amx, native in ((False, False, False), (True, False, True), (False, True, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=bf16: value)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value)
        assert precisions.native_bfloat16(CPU) == native


def test_an_emulated_choice_is_kept_and_warned_about_with_the_measured_factor(monkeypatch, caplog):
    with_bfloat16(monkeypatch, False)
    monkeypatch.setattr(precisions, "emulation_factor", lambda: 13.2)
    step = MultiTaskStep(tiny(), precision="bfloat16")
    assert step.dtype == torch.bfloat16
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "took 13 times as long as in float32" in record.getMessage()
    caplog.clear()
    with_bfloat16(monkeypatch, True)
    MultiTaskStep(tiny(), precision="bfloat16")
    MultiTaskStep(tiny())
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []


def test_the_factor_is_a_ratio_of_times():
    assert 0.05 < emulation_factor(size=16, channels=4, repeats=2) < 1000


def test_float16_alone_scales_gradients():
    assert [scales_gradients(p, CPU) for p in ("auto", "float32", "bfloat16")] == [False] * 3
    assert choose_precision("float32", CPU) == ("float32", "as asked for")


def test_another_word_and_float16_on_a_cpu_are_refused():
    with pytest.raises(ValueError, match="precision is one of auto, float32, bfloat16, float16, got 'half'"):
        MultiTaskStep(tiny(), precision="half")
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        scales_gradients("float16", CPU)
