"""A training whose numbers are none stops with a sentence, instead of ending with weights that nothing trained."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from scripts.command.locations import CONFIGS
from scripts.networks import MultiTaskDynUNet
from scripts.runs.checkpoint_files import WEIGHTS, load_weights, read_checkpoint
from scripts.training import stages
from scripts.training.engines import check_outputs
from scripts.training.handlers.control import MOST_SKIPPED, GradientClip
from scripts.training.train import train_stage
from tests.networks.nets import heads, tiny
from tests.stages import BATCHES, Stage


def ruin(stage: Stage, iteration: int, part: str) -> None:
    """From a step on, a part of the loss is NaN."""
    module = getattr(stage.loss, part)
    of_sums = module.of_sums

    def broken(sums):
        value = of_sums(sums)
        return value if value is None or stage.trainer.state.iteration < iteration else value * math.nan

    module.of_sums = broken


@pytest.mark.parametrize("part", ["segmentation", "classification", "evidence"])
def test_the_first_loss_that_is_no_number_stops_the_training_and_is_named(tmp_path, part):
    stage = Stage(tmp_path)
    ruin(stage, BATCHES + 2, part)
    with pytest.raises(ValueError, match="the loss is not finite") as caught:
        stage.run()
    said = str(caught.value)
    assert f"at step {BATCHES + 2} (epoch 2 of 4): {part} nan (" in said
    others = {"segmentation", "classification", "evidence"} - {part}
    assert all(re.search(rf"{name} \d", said) for name in others)
    rate = stage.optimizer.param_groups[1]["lr"]
    assert f"{rate:.3g} (decoder)" in said
    assert "its cases: case" in said
    state = read_checkpoint(tmp_path)
    assert state["epoch"] == 1, "the last whole epoch is kept"
    assert all(bool(torch.isfinite(v).all()) for v in state["network"].values())


def test_weights_of_the_sum_that_are_no_number_are_named_as_such(tmp_path):
    stage = Stage(tmp_path)
    stage.loss.weights["segmentation"] = math.nan
    with pytest.raises(ValueError, match=r"at step 1 \(epoch 1 of 4\): the weighted sum is nan"):
        stage.run()


def test_gradients_that_are_no_numbers_stop_the_training_before_they_reach_the_weights(tmp_path):
    stage = Stage(tmp_path)

    def spoil(engine) -> None:
        if engine.state.iteration == 2:
            next(stage.network.parameters()).grad.fill_(math.inf)

    handlers = stage.trainer._event_handlers[IterationEvents.BACKWARD_COMPLETED]
    stage.trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, spoil)
    handlers.insert(0, handlers.pop())
    with pytest.raises(ValueError, match=r"gradients are not finite at step 2 .* with a finite loss of \d"):
        stage.run()
    assert all(bool(torch.isfinite(p).all()) for p in stage.network.parameters())


def test_a_scaler_may_leave_steps_out_but_not_all_of_them():
    parameter = torch.nn.Parameter(torch.zeros(2))
    scaler = SimpleNamespace(unscale_=lambda _: None)
    state = SimpleNamespace(iteration=1, epoch=1, max_epochs=1, output={"loss": torch.tensor(1.0)})
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    engine = SimpleNamespace(scaler=scaler, optimizer=optimizer, state=state)
    clip = GradientClip([parameter], 1.0)

    def step(value: float) -> None:
        parameter.grad = torch.full((2,), value)
        clip(engine)

    for _ in range(MOST_SKIPPED):
        step(math.inf)
    step(1.0)
    for _ in range(MOST_SKIPPED):
        step(math.nan)
    with pytest.raises(ValueError, match=f"for {MOST_SKIPPED + 1} steps in turn"):
        step(math.nan)


def test_a_validation_whose_outputs_are_no_numbers_names_the_case_and_not_scikit_learn(tmp_path):
    stage = Stage(tmp_path)

    def spoil() -> None:
        with torch.no_grad():
            stage.network.head.bias.fill_(math.nan)

    stage.evaluator.add_event_handler(Events.STARTED, spoil)
    with pytest.raises(ValueError, match=r"output 'cls' of case0 is not finite \(3 of 3 cases"):
        stage.run()
    assert not (tmp_path / WEIGHTS).exists()


def test_outputs_that_are_numbers_pass_and_others_name_their_case():
    pred = tiny().multitask(heads())
    check_outputs(pred, ["a", "b"])
    pred["seg"][1, 0, 3, 3] = math.inf
    with pytest.raises(ValueError, match=r"output 'seg' of b is not finite \(1 of 2"):
        check_outputs(pred, ["a", "b"])


def test_weights_that_are_no_numbers_are_not_loaded(tmp_path):
    network = tiny()
    state = network.state_dict()
    state["head.bias"] = torch.tensor([0.0, math.nan, 0.0])
    torch.save(state, tmp_path / WEIGHTS)
    other: MultiTaskDynUNet = tiny(seed=1)
    before = other.head.bias.detach().clone()
    with pytest.raises(ValueError, match=r"values that are not finite \(head\.bias\)"):
        load_weights(other, tmp_path / WEIGHTS)
    assert torch.equal(other.head.bias, before)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seg_weight", math.nan, "seg_weight is a finite number, 0 or more; got nan"),
        ("cls_weight", math.inf, "cls_weight is a finite number, 0 or more; got inf"),
        ("evidence_weight", -1, "evidence_weight is a finite number, 0 or more; got -1"),
        ("learning_rate", math.nan, "learning_rate is a finite number, more than 0; got nan"),
        ("learning_rate", 0, "learning_rate is a finite number, more than 0; got 0"),
        ("learning_rate", "1e-3", "learning_rate is a finite number, more than 0; got '1e-3'"),
        ("gradient_clip", -math.inf, "gradient_clip is a finite number, more than 0; got -inf"),
        ("weight_decay", math.nan, "weight_decay is a finite number, 0 or more; got nan"),
        ("encoder_factor", True, "encoder_factor is a finite number, 0 or more; got True"),
        ("label_smoothing", 1.5, "label_smoothing is a finite number, 0 or more, at most 1; got 1.5"),
        ("focal_gamma", math.nan, "focal_gamma is a finite number, 0 or more; got nan"),
        ("area_at_zero", 1.0, "area_at_zero is a finite number, more than 0 and less than 1; got 1.0"),
        ("background_weight", None, "background_weight is a finite number, 0 or more; got None"),
        ("ema_decay", math.nan, "ema_decay is a finite number, more than 0 and less than 1, or null; got nan"),
        ("masked_share", math.nan, "masked_share is a finite number, 0 or more, at most 1, or null; got nan"),
        ("class_weights", [1.0, math.nan], "class_weights is a finite number, 0 or more, or null; got nan"),
    ],
)
def test_settings_that_are_no_numbers_are_refused_by_name(name, value, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        stages.check_settings(tiny(), "cpu", (32, 32), "float32", "dice", amounts={name: value})


def test_the_values_of_the_shipped_config_pass_and_a_stage_refuses_nan(small_data, tmp_path):
    options = {**small_data.paths, "run_dir": str(tmp_path / "run"), "cls_weight": math.nan}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train_stage("joint", [CONFIGS / "smoke.yaml"], options)
    assert "cls_weight is a finite number" in str(caught.value.__cause__ or caught.value)
    assert list(tmp_path.rglob("*")) == []
