"""Handlers of training and validation, one by one."""

from __future__ import annotations

import io
import random
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from scripts.data.samplers import DrawnItems, MixedBatchSampler
from scripts.runs import parallel
from scripts.training.averaging import WeightAverage
from scripts.training.checkpoints import WEIGHTS, load_weights
from scripts.training.engines import MultiTaskStep
from scripts.training.handlers.control import EpochSeed, GradientClip
from scripts.training.handlers.monitoring import (
    StageProgress,
    StageWriter,
    plain_values,
)
from scripts.training.handlers.validation import (
    ValidationImages,
    ValidationMetrics,
    ValidationScalars,
    evidence_strength,
)
from tests.networks.nets import heads, tiny
from tests.stages import EPOCHS, Stage, assert_same, logged


def at_epoch(epoch: int) -> SimpleNamespace:
    return SimpleNamespace(state=SimpleNamespace(epoch=epoch, iteration=0))


def test_each_process_draws_dropout_of_its_own(monkeypatch):
    drawn = set()
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        EpochSeed(7)(at_epoch(1))
        drawn.add(tuple(torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()))
    assert len(drawn) == 3


def test_epoch_seed_sets_every_generator_and_tells_sampler_and_items():
    sampler = MixedBatchSampler([True] * 4, 2)
    items = DrawnItems(SimpleNamespace(transform=None))
    drawn = {}
    for epoch in (1, 2, 1):
        EpochSeed(7, items, sampler)(at_epoch(epoch))
        values = (float(torch.rand(1)), float(np.random.rand()), random.random())
        assert (sampler.epoch, items.epoch) == (epoch, epoch)
        assert drawn.setdefault(epoch, values) == values
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))


def test_an_epoch_longer_than_its_loader_goes_on_with_other_draws():
    items = DrawnItems(list(range(8)), 7, change=lambda index, rng: (index, float(rng.random())))
    items.dataset = SimpleNamespace(transform=None, augmented=lambda item: item)
    sampler = MixedBatchSampler([True] * 8, 4)
    loader = DataLoader(items, batch_sampler=sampler, collate_fn=list)
    seen: dict[int, list] = {}
    engine = Engine(lambda engine, batch: seen.setdefault(engine.state.epoch, []).append(batch))
    EpochSeed(7, items, sampler).attach(engine)
    engine.run(loader, max_epochs=2, epoch_length=5)  # the loader has two batches
    draws = [value for batches in seen.values() for batch in batches for _, value in batch]
    assert len(draws) == 40
    assert len(set(draws)) == 40
    first, second = ([index for batch in seen[1][k : k + 2] for index, _ in batch] for k in (0, 2))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def gradients_of(values: list[float]) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


def test_clipping_scales_the_total_norm_down_and_notes_it():
    parameters = [gradients_of([3.0]), gradients_of([0.0, 4.0])]
    engine = at_epoch(1)
    GradientClip(parameters, 1.0)(engine)
    assert float(engine.state.gradient_norm) == pytest.approx(5.0)
    assert [p.grad.tolist() for p in parameters] == [[pytest.approx(0.6)], [0.0, pytest.approx(0.8)]]
    GradientClip(parameters, 10.0)(engine)
    assert parameters[0].grad.tolist() == [pytest.approx(0.6)], "what is below stays"


def test_scaled_gradients_are_clipped_at_their_true_size_and_an_overflow_skips_the_step():
    for overflow in (False, True):
        parameter = gradients_of([3.0, 4.0])
        parameter.grad *= torch.inf if overflow else 1024.0
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(torch.ones(1))  # sets the scaler up, as the loss does
        engine = SimpleNamespace(state=SimpleNamespace(), scaler=scaler, optimizer=optimizer)
        GradientClip([parameter], 1.0)(engine)
        scaler.step(optimizer)
        scaler.update()
        if overflow:
            assert not torch.isfinite(engine.state.gradient_norm)
            assert parameter.tolist() == [0.0, 0.0]
            assert scaler.get_scale() == 512.0
        else:
            assert float(engine.state.gradient_norm) == pytest.approx(5.0)
            assert parameter.tolist() == pytest.approx([-0.6, -0.8], abs=1e-5)


class TestWeightAverage:
    def test_average_by_hand(self):
        network = torch.nn.Linear(1, 1, bias=False)
        average = WeightAverage(network, 0.25)
        expected = 0.0
        for n, value in enumerate([2.0, 3.0, -1.0, 5.0]):
            with torch.no_grad():
                network.weight.fill_(value)
            if n == 0:
                average.restart()
                expected = value
            else:
                average.update()
                decay = min(0.25, (1 + n) / (10 + n))
                expected = decay * expected + (1 - decay) * value
            assert float(average.selected.weight) == pytest.approx(expected, rel=1e-6)

    def test_without_a_decay_it_is_the_network_itself(self):
        network = tiny()
        average = WeightAverage(network)
        average.restart()
        average.update()
        assert average.selected is network
        assert average.state_dict() == {}

    @pytest.mark.parametrize("decay", [0.0, 1.0, -1])
    def test_decay_out_of_range_is_refused(self, decay):
        with pytest.raises(ValueError, match="ema_decay lies between 0 and 1, or is null"):
            WeightAverage(tiny(), decay)

    def test_it_is_what_is_validated_kept_and_handed_over(self, tmp_path):
        stage = Stage(tmp_path / "first", ema_decay=0.9).run()
        kept = stage.files()[WEIGHTS]
        trained = stage.files()["checkpoint.pt"]["network"]
        name = "bottleneck.conv1.conv.weight"
        assert not torch.equal(kept[name], trained[name])
        following = Stage(tmp_path / "next", max_epochs=1, ema_decay=0.5)
        load_weights(following.network, tmp_path / "first" / WEIGHTS)
        following.run()
        assert following.values[0] == max(stage.values.values())
        plain = Stage(tmp_path / "plain").run()
        assert plain.values[0] == stage.values[0]
        assert plain.values != stage.values

    def test_frozen_parts_of_the_average_stay_bit_identical(self, tmp_path):
        before = {k: v.clone() for k, v in tiny(dropout=0.2).state_dict().items()}
        stage = Stage(tmp_path, ema_decay=0.9, frozen=("encoder", "decoder"), key_metric="balanced_accuracy").run()
        after = stage.average.selected.state_dict()
        head = {k for k in before if k.startswith("head.")}
        rest = before.keys() - head - {"threshold", "temperature"}
        assert_same({k: before[k] for k in rest}, {k: after[k] for k in rest})
        assert any(not torch.equal(before[k], after[k]) for k in head)


class TestValidationMetrics:
    def run(self, batches: list[dict]) -> tuple[dict, ValidationMetrics]:
        metrics = ValidationMetrics()
        engine = SimpleNamespace(state=SimpleNamespace(metrics={}))
        metrics.start(engine)
        for batch in batches:
            named = {key: batch[key] for key in ("source", "intervention") if key in batch}
            engine.state.output, engine.state.batch = batch, named
            metrics.collect(engine)
        metrics.compute(engine)
        return engine.state.metrics, metrics

    def batch(self, rows: list[tuple[str, list[float], int, int, int]]) -> dict:
        """(source, logits, diagnosis, tumor pixels, pixels found of them) on images of 8 pixels."""
        seg, label = torch.zeros(len(rows), 2, 2, 4), torch.zeros(len(rows), 1, 2, 4, dtype=torch.uint8)
        for i, (_, _, _, tumor, found) in enumerate(rows):
            label[i].view(-1)[:tumor] = 1
            seg[i, 1].view(-1)[:found] = 1
            seg[i, 0] = 0.5
        return {
            "source": [row[0] for row in rows],
            "pred": {"seg": seg, "cls": torch.tensor([row[1] for row in rows])},
            "label": {
                "label": label,
                "has_mask": torch.tensor([row[3] >= 0 for row in rows]),
                "diagnosis": torch.tensor([row[2] for row in rows]),
            },
        }

    def test_by_hand_over_cases_and_by_source(self):
        rows = [
            ("a", [0.0, 2.0], 1, 4, 4),  # Dice 1
            ("a", [1.0, 0.0], 0, 0, 3),  # no tumor: no Dice
            ("b", [1.0, 0.0], 1, 4, 2),  # Dice 2 * 2 / 6, taken for none
            ("b", [0.0, 1.0], -1, 2, 0),  # Dice 0, diagnosis unknown
        ]
        found, metrics = self.run([self.batch(rows[:3]), self.batch(rows[3:])])
        assert found["dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)
        assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
        assert found["auc"] == roc_auc_score([1, 0, 1], [2.0, -1.0, -1.0])
        assert found["combined"] == pytest.approx((found["dice"] + found["balanced_accuracy"]) / 2)
        assert metrics.by_source["a"] == {"dice": 1.0, "balanced_accuracy": 1.0, "auc": 1.0, "combined": 1.0}
        b = metrics.by_source["b"]
        assert b["dice"] == pytest.approx(1 / 3)
        assert b["balanced_accuracy"] == 0.0
        assert "auc" not in b, "one kind of case only"
        assert metrics.diagnosis.tolist() == [1, 0, 1]
        assert metrics.logits.tolist() == [[0.0, 2.0], [1.0, 0.0], [1.0, 0.0]]

    def test_changed_items_count_for_themselves_alone(self):
        rows = [
            ("a", [0.0, 2.0], 1, 4, 4),
            ("a", [1.0, 0.0], 0, 0, 3),  # no tumor, with a mask
            ("a", [1.0, 0.0], 0, 0, 0),
            ("a", [0.0, 1.0], 0, 0, 3),  # removed, still called a tumor
            ("a", [1.0, 0.0], 0, 0, 0),  # removed, right
            ("a", [0.0, 1.0], 1, 4, 0),  # moved, right
        ]
        batch = self.batch(rows) | {"intervention": ["", "", "", "removed", "removed", "moved"]}
        found, metrics = self.run([batch])
        assert (found["dice"], found["balanced_accuracy"], found["false_masks"]) == (1.0, 1.0, 0.5)
        assert (found["removed"], found["moved"]) == (0.5, 1.0)
        assert found["because"] == pytest.approx((0.5 + 1 + 1) / 3)
        assert metrics.diagnosis.tolist() == [1, 0, 0]
        assert metrics.threshold_diagnosis.tolist() == [1, 0, 0, 0, 0, 1]
        assert metrics.threshold_logits[3:].tolist() == [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]

    def test_classes_that_are_only_predicted_do_not_count(self):
        found, _ = self.run([self.batch([("a", [0.0, 1.0], 1, 1, 1), ("a", [1.0, 0.0], 1, 1, 1)])])
        assert found["balanced_accuracy"] == 0.5
        assert np.isnan(found["auc"])


def test_evidence_strength_is_dark_without_evidence_and_not_stretched():
    evidence = torch.tensor([[0.0, 0.0, 0.0], [0.0, -3.0, 0.5], [-50.0, -50.0, -50.0]]).view(1, 3, 1, 3)
    strength = evidence_strength(evidence).flatten().tolist()
    assert strength[:2] == [0.0, 0.0]
    assert strength[2] == pytest.approx(2 / (1 + np.exp(-0.5)) - 1, abs=1e-6)


def test_pictures_show_the_mask_where_it_is_and_leave_the_rest_gray(tmp_path):
    shown = {}
    writer = SimpleNamespace(add_image=lambda tag, image, step: shown.__setitem__((tag, step), image))
    handler = ValidationImages(writer, images=1, every=5)
    image = heads(size=16, batch=1)
    label = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    label[0, 0, 4:8, 9] = 1  # X 4 to 7, Y 9
    pred = MultiTaskStep(tiny()).eval()(image)
    output = {"image": image, "label": {"label": label, "has_mask": torch.tensor([True])}, "pred": pred}
    for epoch in (0, 3):
        state = SimpleNamespace(trainer_epoch=epoch, iteration=2, epoch_length=1, output=output)
        handler(SimpleNamespace(state=state))
    assert {step for _, step in shown} == {0}
    picture = torch.as_tensor(shown["validation/mask", 0])
    assert picture.shape == (3, 16, 16)
    colored = (picture.amax(0) - picture.amin(0)) > 0.05
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[9, 4:8] = True  # row Y, column X
    assert torch.equal(colored, expected)
    assert float(picture[:, 0, 0].max()) == 0, "air is black"


def test_pictures_are_of_tumors_wherever_they_come_and_evidence_stays_in_the_head():
    shown = {}
    writer = SimpleNamespace(add_image=lambda tag, image, step: shown.__setitem__((tag, step), image))
    handler = ValidationImages(writer, images=1, every=1)
    image = heads(size=16, batch=2)
    evidence = torch.zeros(2, 4, 4, 4)
    for iteration in range(1, 4):
        label = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
        if iteration == 2:
            label[1, 0, 6:9, 6:9] = 1  # the only tumor: last item of the second of three batches
            evidence = torch.zeros(2, 4, 4, 4)
            evidence[1, 2] = 3.0
        target = {"label": label, "has_mask": torch.tensor([True, True]), "diagnosis": torch.tensor([0, 0])}
        output = {"image": image, "label": target, "pred": {"evidence": evidence if iteration == 2 else evidence * 0}}
        handler(
            SimpleNamespace(state=SimpleNamespace(trainer_epoch=0, iteration=iteration, epoch_length=3, output=output))
        )
    assert set(shown) == {("validation/mask", 0), ("validation/evidence", 0)}
    colored = torch.as_tensor(shown["validation/mask", 0])
    assert float((colored.amax(0) - colored.amin(0))[6:9, 6:9].min()) > 0.05, "the tumor's case is the one shown"
    picture = torch.as_tensor(shown["validation/evidence", 0])
    air = (image[1, 0] == 0).T
    assert float(picture[:, air].abs().max()) == 0
    assert float((picture.amax(0) - picture.amin(0))[~air].min()) > 0.05


def test_no_evidence_is_dark_whatever_the_number_of_classes_and_the_scale_is_fixed():
    assert float(evidence_strength(torch.zeros(1, 4, 2, 2)).abs().max()) == 0.0
    evidence = torch.zeros(1, 4, 1, 2)
    evidence[0, 2, 0, 1] = float(np.log(3))  # odds of 3 to 1 for one class
    assert evidence_strength(evidence).flatten().tolist() == [0.0, pytest.approx(0.5)]


def test_writer_is_silent_in_other_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    writer = StageWriter(tmp_path)
    writer.add_scalar("a", 1.0, 0)
    writer.hyperparameters({"a": 1}, ["a"])
    writer.flush()
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_writer_says_where_to_continue_before_it_is_open(tmp_path):
    writer = StageWriter(tmp_path)
    writer.add_scalar("a", 1.0, 0)
    with pytest.raises(RuntimeError, match="already open"):
        writer.continue_after(3)
    writer.close()


def test_hyperparameters_are_the_plain_values():
    config = {
        "seed": 0, "precision": "bfloat16", "device": "$torch.device('cpu')", "run_dir": "/a", "weights": None,
        "network_def": {"_target_": "x.Y", "filters": [4, 8], "head": "evidence", "classes": "@n"}, "shares": [],
    }  # fmt: skip
    assert plain_values(config) == {
        "seed": 0, "precision": "bfloat16", "network_def#filters": "[4, 8]", "network_def#head": "evidence",
    }  # fmt: skip


def test_log_holds_learning_rates_norms_and_pictures(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3\nlearning_rate: 0.02\n", encoding="utf-8")
    Stage(tmp_path).run()
    log = logged(tmp_path)
    steps = {tag: [step for step, _ in values] for tag, values in log.items()}
    for tag in ("learning_rate/encoder", "learning_rate/head", "train/gradient_norm", "train/loss/evidence"):
        assert steps[tag] == list(range(1, EPOCHS + 1)), tag
    assert steps["validation/prediction"] == [0, 2, 4]
    assert "_hparams_/session_start_info" in log
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    declared = events.SummaryMetadata("_hparams_/experiment").plugin_data.content.decode("latin-1")
    for name in ("dice", "balanced_accuracy", "combined"):  # of the best epoch, the last that is written
        epoch, value = log[f"best/{name}"][-1]
        assert dict(log[f"validation/{name}"])[epoch] == value
        assert f"best/{name}" in declared
    combined = {step: struct.unpack("<f", value[-4:])[0] for step, value in log["validation/combined"]}
    assert combined[log["best/combined"][-1][0]] == max(combined.values())
    content = log["validation/mask"][0][1]
    start = content.index(b"\x89PNG")
    assert Image.open(io.BytesIO(content[start:])).size == (32, 16)


def test_the_reliability_figure_is_drawn_at_the_epochs_that_are_asked_for():
    """The figure itself: tests.stages has a plain one in its place."""
    pictures = []
    metrics = SimpleNamespace(logits=np.array([[1.0, 0.0], [0.0, 2.0], [0.5, 0.0]]), diagnosis=np.array([0, 1, 1]))
    metrics.by_source = {}
    writer = SimpleNamespace(add_pr_curve=lambda *_: None, add_image=lambda *given: pictures.append(given))
    for epoch in (1, 2):
        state = SimpleNamespace(metrics={}, trainer_epoch=epoch)
        ValidationScalars(metrics, every=2)(SimpleNamespace(state=state), writer)
    ((tag, picture, epoch),) = pictures
    assert (tag, epoch) == ("validation/reliability", 2)
    assert min(picture.shape[1:]) > 500, "the figure, on white, with its marks"
    assert bool((picture[:, 0, 0] == 1).all())
    assert 0.001 < float((picture < 0.5).any(0).float().mean()) < 0.2


def test_progress_bar_shows_epoch_loss_and_best(capsys):
    state = SimpleNamespace(max_epochs=2, epoch_length=3, iteration=3, epoch=2, best_metric=0.5)
    state.output = {"loss": torch.tensor(0.25)}
    engine = SimpleNamespace(state=state)
    progress = StageProgress("stage")
    progress.open(engine)
    for _ in range(3):
        progress.update(engine)
    progress.close(engine)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "epoch 2/2, loss 0.250, best 0.500" in shown
