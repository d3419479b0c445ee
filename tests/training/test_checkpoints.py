"""Selection of weights, atomic files, and the promise that an interrupted stage ends like an unbroken one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events

from scripts.measures.metrics import fit_temperature, negative_log_likelihood, tumor_probability
from scripts.networks.heads import AT_ZERO
from scripts.training.checkpoints import CHECKPOINT, WEIGHTS, StageCheckpoint, load_weights, save_atomic, warm_start
from scripts.training.handlers.validation import ValidationScalars
from tests.networks.nets import tiny
from tests.stages import BATCHES, EPOCHS, Stage, Stopped, assert_same


def test_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder" / "weights.pt"
    save_atomic({"a": torch.ones(1000)}, path)
    old = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_atomic({"a": torch.zeros(1000), "b": lambda: None}, path)
    assert path.read_bytes() == old
    save_atomic({"a": torch.zeros(3)}, path)
    assert torch.equal(torch.load(path)["a"], torch.zeros(3))
    assert [p.name for p in path.parent.iterdir()] == ["weights.pt"]


def test_warm_start_takes_what_fits_and_leaves_the_rest(tmp_path):
    old, new = tiny(seed=1), tiny(seed=2, evidence="rectified")
    before = {k: v.clone() for k, v in new.state_dict().items()}
    torch.save(old.state_dict(), tmp_path / WEIGHTS)
    warm_start(new, tmp_path / WEIGHTS)
    after = new.state_dict()
    assert torch.equal(after.pop("head.log_scale"), before["head.log_scale"])
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in after.items())


def test_warm_start_from_fewer_channels_says_what_is_wider(tmp_path, caplog):
    old, new = tiny(seed=1), tiny(seed=2, filters=[4, 6, 16])
    torch.save(old.state_dict(), tmp_path / WEIGHTS)
    with caplog.at_level("INFO"):
        warm_start(new, tmp_path / WEIGHTS)
    assert "but for nothing; widened: bottleneck.conv1" in caplog.text
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(new.eval()(image, output="cls"), old.eval()(image, output="cls"), atol=1e-5, rtol=1e-4)


def test_warm_start_from_a_hundredth_of_the_parameters_is_refused(tmp_path):
    torch.save(tiny(seed=1).state_dict(), tmp_path / WEIGHTS)
    with pytest.raises(
        ValueError, match=r"has \d% of the parameters of this MultiTaskDynUNet, in tensors that hold 100%"
    ):
        warm_start(tiny(filters=[4, 6, 80]), tmp_path / WEIGHTS)


def test_warm_start_from_too_different_weights_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="has 0% of the parameters of this MultiTaskDynUNet"):
        warm_start(tiny(), tmp_path / WEIGHTS)


class TestLoadWeights:
    def test_whole_file_gives_the_same_network(self, tmp_path):
        network = tiny(seed=1)
        save_atomic(network.state_dict(), tmp_path / "model.pt")
        other = load_weights(tiny(seed=2), tmp_path / "model.pt")
        for name, value in network.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name

    def test_no_file_leaves_the_network_alone(self):
        network = tiny()
        assert load_weights(network, None) is network

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no weights at .*model\.pt; run the stage that writes them first"):
            load_weights(tiny(), tmp_path / "model.pt")

    @pytest.mark.parametrize("content", ["half", "empty", "text"])
    def test_damaged_file(self, tmp_path, content):
        path = tmp_path / "model.pt"
        save_atomic(tiny().state_dict(), path)
        whole = path.read_bytes()
        path.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "text": b"not weights"}[content])
        with pytest.raises(
            ValueError, match=r"(?s)weights file .*model\.pt is not readable .* may be truncated"
        ) as info:
            load_weights(tiny(), path)
        assert "\n" not in str(info.value), "one sentence, without torch's advice to switch weights_only off"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"evidence_channels": 7}, r"other shapes \['head\.evidence\.conv\.weight'"),
            ({"head": "average_pool"}, r"missing keys \['head\.bias'.*unexpected keys \['head\.mlp\.0\.bias'"),
        ],
    )
    def test_weights_of_another_network(self, tmp_path, options, message):
        save_atomic(tiny(**options).state_dict(), tmp_path / "model.pt")
        network = tiny()
        before = {k: v.clone() for k, v in network.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            load_weights(network, tmp_path / "model.pt")
        assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items()), "nothing half loaded"

    def test_checkpoint_in_place_of_weights(self, tmp_path):
        save_atomic({"network": tiny().state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match="does not fit MultiTaskDynUNet"):
            load_weights(tiny(), tmp_path / "checkpoint.pt")

    def test_something_else_in_place_of_weights(self, tmp_path):
        save_atomic([torch.ones(2)], tmp_path / "model.pt")
        with pytest.raises(ValueError, match="weights file"):
            load_weights(tiny(), tmp_path / "model.pt")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Stage:
    return Stage(tmp_path_factory.mktemp("unbroken")).run()


def test_stage_trains_at_all(unbroken):
    files = unbroken.files()
    assert sorted(unbroken.values) == list(range(EPOCHS + 1)), "one validation before training, one after each epoch"
    assert len(set(unbroken.values.values())) > 2
    assert files[CHECKPOINT]["epoch"] == EPOCHS
    assert files[CHECKPOINT]["iteration"] == EPOCHS * BATCHES
    assert files[CHECKPOINT]["best_metric"] == max(unbroken.values.values())
    assert unbroken.values[files[CHECKPOINT]["best_epoch"]] == files[CHECKPOINT]["best_metric"]
    assert files[CHECKPOINT]["best_epoch"] < EPOCHS - 1, "else a stop after the best epoch would not be tested below"
    assert unbroken.sampler.epoch == EPOCHS, "every epoch has an order of its own"
    assert not torch.equal(
        files[CHECKPOINT]["network"]["bottleneck.conv1.conv.weight"], tiny().bottleneck.conv1.conv.weight
    )


@pytest.mark.parametrize("stops", [[1], [BATCHES], [2 * BATCHES + 2], [BATCHES + 1, 3 * BATCHES + 1]])
def test_interrupted_stage_ends_like_the_unbroken_one(unbroken, tmp_path, stops):
    for iteration in stops:
        stage = Stage(tmp_path)
        stage.stop_after(iteration)
        with pytest.raises(Stopped):
            stage.run()
        torch.manual_seed(12345)  # the new process starts with another state of the generators
        np.random.seed(12345)
    stage = Stage(tmp_path).run()
    assert_same(unbroken.files(), stage.files())
    for epoch, value in stage.values.items():
        assert value == unbroken.values[epoch]
    if stops == [2 * BATCHES + 2]:
        assert sorted(stage.values) == [3, 4], "whole epochs were not run again, nor the validation after them"


def test_stop_between_the_two_files_of_an_epoch(unbroken, tmp_path):
    stage = Stage(tmp_path)

    def stop(engine) -> None:
        if stage.trainer.state.epoch == 2:
            raise Stopped

    stage.evaluator.add_event_handler(Events.COMPLETED, stop)  # after select, before save
    with pytest.raises(Stopped):
        stage.run()
    assert stage.files()[CHECKPOINT]["epoch"] == 1
    assert_same(unbroken.files(), Stage(tmp_path).run().files())


def test_finished_stage_is_left_as_it_is(unbroken):
    before = {name: (unbroken.folder / name).read_bytes() for name in (WEIGHTS, CHECKPOINT)}
    again = Stage(unbroken.folder).run()
    assert again.values == {}
    assert before == {name: (unbroken.folder / name).read_bytes() for name in (WEIGHTS, CHECKPOINT)}
    assert_same(again.network.state_dict(), torch.load(unbroken.folder / CHECKPOINT)["network"])


def test_selected_weights_start_the_next_stage_where_this_one_was(unbroken, tmp_path):
    stage = Stage(tmp_path)
    load_weights(stage.network, unbroken.folder / WEIGHTS)
    stage.stop_after(1)
    with pytest.raises(Stopped):
        stage.run()
    assert stage.values[0] == max(unbroken.values.values())
    selected, first = unbroken.files()[WEIGHTS], torch.load(tmp_path / WEIGHTS, weights_only=True)
    assert_same(selected, first)


def test_same_seed_is_the_same_run(unbroken, tmp_path):
    assert_same(Stage(tmp_path).run().files(), unbroken.files())


def test_other_seed_is_another_run(unbroken, tmp_path):
    other = Stage(tmp_path, seed=1).run()
    name = "bottleneck.conv1.conv.weight"
    assert not torch.equal(other.files()[CHECKPOINT]["network"][name], unbroken.files()[CHECKPOINT]["network"][name])


def test_damaged_checkpoint_with_none_before_it_is_refused(unbroken, tmp_path):
    whole = (unbroken.folder / CHECKPOINT).read_bytes()
    for content in (whole[: len(whole) // 2], b"not a checkpoint"):
        (tmp_path / CHECKPOINT).write_bytes(content)
        message = r"(?s)checkpoint .* is not readable .* none before it: delete it to start this stage again"
        with pytest.raises(ValueError, match=message) as info:
            Stage(tmp_path).run()
        assert "\n" not in str(info.value)


def test_checkpoint_of_a_run_of_another_length_is_refused(unbroken):
    with pytest.raises(ValueError, match="is of a run of 4 epochs, this one has 5; choose another run_dir"):
        Stage(unbroken.folder, max_epochs=5).run()


def test_running_without_engines_is_refused(tmp_path):
    checkpoint = Stage(tmp_path).checkpoint
    checkpoint.trainer = None
    with pytest.raises(RuntimeError, match="attach the checkpoint to trainer and evaluator"):
        checkpoint.run()


class Selecting:
    """`StageCheckpoint.select` and `ValidationScalars` fed by hand."""

    def __init__(self, folder: Path, key_metric: str = "dice", **options):
        self.network, self.scalars = tiny(**options), []
        self.metrics = SimpleNamespace(
            logits=np.array([[1.0, 0.0, 0.0], [0.0, 0.2, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, 1.0]]),
            diagnosis=np.array([0, 1, 1, 2]),
            by_source={"a": {"dice": 0.25}},
            regions=["tumor"],
            mask_thresholds=lambda: self.thresholds,
        )
        self.thresholds: list[tuple[float, str]] | None = None
        self.writer = writer = SimpleNamespace(
            add_scalar=lambda *args: self.scalars.append(args), add_pr_curve=lambda *args: self.curves.append(args)
        )
        self.curves: list[tuple] = []
        self.metrics.threshold_logits, self.metrics.threshold_diagnosis = self.metrics.logits, self.metrics.diagnosis
        self.checkpoint = StageCheckpoint(folder, self.network, None, None, self.metrics, key_metric, writer)
        self.checkpoint.trainer = SimpleNamespace(state=SimpleNamespace(epoch=0, max_epochs=9))

    def select(self, epoch: int, **metrics: float) -> None:
        self.checkpoint.trainer.state.epoch = epoch
        with torch.no_grad():
            if self.network.head.signed:
                self.network.head.bias.fill_(epoch)  # the weights of that epoch
        engine = SimpleNamespace(state=SimpleNamespace(metrics=metrics, trainer_epoch=epoch))
        ValidationScalars(self.metrics)(engine, self.writer)
        self.checkpoint.select(engine)


def test_best_weights_are_kept_and_the_first_validation_counts(tmp_path):
    stage = Selecting(tmp_path)
    for epoch, dice, kept in ((0, 0.5, 0), (1, 0.4, 0), (2, 0.6, 2), (3, 0.6, 2), (4, 0.59, 2), (5, 0.7, 5)):
        stage.select(epoch, dice=dice, auc=0.1)
        assert torch.load(tmp_path / WEIGHTS)["head.bias"].tolist() == [kept] * 3, epoch
        assert stage.checkpoint.best_epoch == stage.checkpoint.trainer.state.best_metric_epoch == kept
    assert stage.checkpoint.best_metric == 0.7
    assert stage.scalars[:3] == [
        ("validation/dice", 0.5, 0), ("validation/auc", 0.1, 0), ("validation_by_source/a/dice", 0.25, 0),
    ]  # fmt: skip
    tag, truth, probability, epoch = stage.curves[0]
    assert (tag, truth.tolist(), epoch) == ("validation/tumor", [False, True, True, True], 0)
    assert probability == pytest.approx(tumor_probability(stage.metrics.logits))


def test_threshold_and_temperature_of_the_selecting_validation_are_stored(tmp_path):
    stage = Selecting(tmp_path)
    stage.select(0, dice=0.5)
    state = torch.load(tmp_path / WEIGHTS)
    temperature, threshold = float(state["temperature"]), float(state["threshold"])
    logits, diagnosis = stage.metrics.logits, stage.metrics.diagnosis
    odds = np.exp(logits / temperature)
    p = odds[:, 1:].sum(1) / odds.sum(1)
    # Case 2, a tumor taken for none, lies next to case 0, the only one without: the threshold goes between them.
    assert (p >= threshold).tolist() == [False, True, True, True]
    assert threshold == pytest.approx((p[0] + p[2]) / 2, abs=1e-6)

    assert temperature == pytest.approx(fit_temperature(logits, diagnosis), rel=1e-6)
    before, after = (negative_log_likelihood(logits, diagnosis, t) for t in (1.0, temperature))
    assert stage.checkpoint.calibration == (
        f"fitted on 4 validation cases, whose negative log-likelihood is {after:.3f} ({before:.3f} without temperature)"
    )
    stage.metrics.logits = stage.metrics.threshold_logits = stage.metrics.logits * 10
    stage.select(1, dice=0.4)
    assert float(stage.network.temperature) == temperature, "a validation that is not selected changes nothing"


def test_thresholds_of_the_masks_are_stored_with_the_selected_weights(tmp_path):
    stage = Selecting(tmp_path)
    stage.select(0, dice=0.5)
    assert torch.load(tmp_path / WEIGHTS)["mask_threshold"].tolist() == [0.5]
    assert stage.checkpoint.mask_thresholds.startswith("none: nothing was segmented")
    stage.thresholds = [(0.35, "0.35 (why)")]
    stage.select(1, dice=0.6)
    stage.thresholds = [(0.8, "0.8")]
    stage.select(2, dice=0.4)
    assert torch.load(tmp_path / WEIGHTS)["mask_threshold"].tolist() == pytest.approx([0.35])
    assert stage.checkpoint.mask_thresholds == "tumor 0.35 (why)"


def test_the_threshold_is_chosen_on_changed_items_too_and_the_temperature_is_not(tmp_path):
    stage = Selecting(tmp_path)
    alone = Selecting(tmp_path / "alone")
    # Heads without their tumor that look as much like one as case 2, the least certain tumor.
    removed = np.repeat(stage.metrics.logits[2:3] + [0.0, 0.02, 0.0], 5, axis=0)
    stage.metrics.threshold_logits = np.concatenate([stage.metrics.logits, removed])
    stage.metrics.threshold_diagnosis = np.concatenate([stage.metrics.diagnosis, np.zeros(5, int)])
    for one in (stage, alone):
        one.select(0, dice=0.5)
    assert float(stage.network.temperature) == float(alone.network.temperature)
    assert float(stage.network.threshold) > tumor_probability(removed, float(stage.network.temperature))[0]
    assert float(alone.network.threshold) < float(stage.network.threshold)


def test_the_head_of_fixed_constant_keeps_it_and_the_threshold_is_above_it(tmp_path):
    stage = Selecting(tmp_path, evidence="rectified")
    fixed = stage.network.fixed_part.numpy()
    # Two tumors without any evidence, beside sure ones of both kinds and a mistake.
    logits = np.array([[0.0, -9, -9], [0, 0, 0], [0, 0, 0], [0, 9, 0], [0, 0, 5], [0, 3, 0]]) + fixed
    logits[0] -= fixed
    stage.metrics.logits = stage.metrics.threshold_logits = logits
    stage.metrics.diagnosis = stage.metrics.threshold_diagnosis = np.array([0, 1, 2, 1, 2, 2])
    stage.select(0, dice=0.5)
    temperature, threshold = float(stage.network.temperature), float(stage.network.threshold)
    assert temperature == pytest.approx(fit_temperature(logits, stage.metrics.diagnosis, fixed), rel=1e-3)
    assert temperature != 1.0
    assert threshold > AT_ZERO + 0.001
    assert torch.equal(stage.network.fixed_part, stage.network.constant())
    # Weights of before say nothing of it: their temperature divides all.
    state = torch.load(tmp_path / WEIGHTS)
    assert load_weights(tiny(evidence="rectified"), tmp_path / WEIGHTS).fixed_part.any()
    del state["fixed_part"]
    torch.save(state, tmp_path / "old.pt")
    old = load_weights(tiny(evidence="rectified"), tmp_path / "old.pt")
    assert not old.fixed_part.any()
    assert float(old.temperature) == pytest.approx(temperature)
    del state["threshold"]
    torch.save(state, tmp_path / "less.pt")
    with pytest.raises(ValueError, match="missing keys"):
        load_weights(tiny(evidence="rectified"), tmp_path / "less.pt")


def test_without_any_diagnosis_threshold_and_temperature_stay(tmp_path):
    stage = Selecting(tmp_path)
    stage.metrics.logits, stage.metrics.diagnosis = np.empty((0, 3)), np.empty(0, dtype=int)
    stage.select(0, dice=0.5)
    state = torch.load(tmp_path / WEIGHTS)
    assert (float(state["threshold"]), float(state["temperature"])) == (0.5, 1.0)


def test_metric_that_is_unknown_or_undefined_is_refused(tmp_path):
    said = r"key_metric is one of dice, balanced_accuracy, auc, combined, false_masks, got 'because'"
    with pytest.raises(ValueError, match=said):
        Stage(tmp_path, key_metric="because").checkpoint.run()
    with pytest.raises(ValueError, match=r"no case that defines 'dice': add cases with a tumor mask"):
        Selecting(tmp_path).select(0, dice=float("nan"))
    with pytest.raises(ValueError, match=r"no case that defines 'balanced_accuracy': add cases with a diagnosis"):
        Selecting(tmp_path, "balanced_accuracy").select(0, balanced_accuracy=float("nan"))
    assert not (tmp_path / WEIGHTS).exists()
