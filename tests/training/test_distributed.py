"""Two processes train like one: the same loss, gradients, metrics and files, for every stage."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.inferers import Inferer, SimpleInferer
from torch.utils.data import default_collate

from scripts.command.locations import CONFIGS
from scripts.data.samplers import DrawnItems, MixedBatchSampler, SampleIndex, ShareSampler
from scripts.runs import folder as runs
from scripts.runs import parallel
from scripts.training.checkpoints import StageCheckpoint
from scripts.training.engines import MultiTaskStep, parameter_groups, prepare_batch
from scripts.training.handlers.control import SameGradients
from scripts.training.handlers.validation import ValidationMetrics
from scripts.training.losses import MultiTaskLoss
from scripts.training.train import train
from tests.networks.nets import gradients, heads, tiny
from tests.ports import free_port
from tests.processes import together
from tests.stages import age, kill_self, logged
from tests.training.test_training import scalars

STAGES = {
    "segmentation": (
        {"classification": False},
        {"seg_weight": 1.0, "cls_weight": 0.0, "evidence_weight": 0.0},
    ),
    "classification": (
        {"segmentation": False, "frozen": ["encoder", "decoder"]},
        {"seg_weight": 0.0, "cls_weight": 0.5, "evidence_weight": 0.5},
    ),
    "joint": ({}, {"seg_weight": 1.0, "cls_weight": 0.5, "evidence_weight": 0.5, "class_weights": [1.0, 2.0, 0.5]}),
    "joint, label smoothing": ({}, {"label_smoothing": 0.1}),
    "joint, focal": ({}, {"focal_gamma": 2.0}),
    "evidence without classification": ({"classification": False, "evidence": True}, {"cls_weight": 0.0}),
}
# Items k go to process k % 2: in the first row all masks to one process, in the third row all known classes too.
MASKS = {
    "segmentation": [[True, False, True, False], [True, True, True, False], [True]],
    "classification": [[True, False, True, False], [False] * 4, [False]],
    "joint": [[True, False, True, False], [False] * 4, [True, False, True, True, False], [True]],
}


def items(masks: list[bool], step: int) -> list[dict]:
    images = heads(size=16, batch=5, channels=1)
    return [
        {
            "image": images[i] * (1 + 0.1 * step),
            "label": ((images[i] > 1) & torch.tensor(masked)).to(torch.uint8),
            "foreground": (images[i] != 0).to(torch.uint8),
            "has_mask": masked,
            "diagnosis": [1, 0, 2, -1, 1][i],
        }
        for i, masked in enumerate(masks)
    ]


def share(masks: list[bool], step: int) -> dict:
    """A step's batch, or every second item of it, as a loader gives it; one that does not count if none is left."""
    data = DrawnItems(Dataset(items(masks, step)))
    draws = [SampleIndex(k, k) for k in range(len(masks))][parallel.rank() :: parallel.world()]
    return default_collate([data[draw] for draw in draws or [SampleIndex(0, 0, filler=True)]])


def learn(name: str, accumulation_steps: int = 1) -> list[dict]:
    """Loss, parts and gradients of a few steps of a stage; the decoder has no targets in some of them."""
    options, weights = STAGES[name]
    network = tiny()
    step = MultiTaskStep(network, accumulation_steps=accumulation_steps, **options).train()
    wrapped = parallel.wrapped(step, "cpu")
    loss = MultiTaskLoss(**weights)
    optimizer = torch.optim.AdamW(parameter_groups(network, 1e-3), lr=1e-3)
    found = []
    for number, masks in enumerate(MASKS[name.split(",")[0]] if name.split(",")[0] in MASKS else MASKS["joint"][::2]):
        image, target, _, options = prepare_batch(share(masks, number), "cpu")
        optimizer.zero_grad(set_to_none=False)
        value = loss(wrapped(image, **options), target)
        value.backward()
        optimizer.step()
        parts = {part: float(v) for part, v in loss.parts.items()}
        found.append({"loss": value.item(), "parts": parts, "gradients": gradients(network)})
    return found


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path, name, accumulation_steps):
    def work(rank: int) -> list[dict]:
        parallel.start("gloo")
        return learn(name, accumulation_steps)

    expected = learn(name)
    for found in together(work, tmp_path):
        assert len(found) == len(expected) >= 2
        for one, two in zip(expected, found, strict=True):
            assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
            assert two["parts"] == pytest.approx(one["parts"], abs=1e-5)
            for key, gradient in one["gradients"].items():
                own = two["gradients"][key]
                # Where one process has no gradient, two may have one of exactly 0.
                assert gradient is not None or own is None or not own.any(), key
                if gradient is not None:
                    assert own is not None, key
                    torch.testing.assert_close(own, gradient, atol=1e-5, rtol=0, msg=key)
        largest = max(float(g.abs().max()) for g in expected[0]["gradients"].values() if g is not None)
        assert largest > 0.01


class CallsTheInnerModule(Inferer):
    """The mistake: what is under the wrapper is called, and nothing averages the gradients."""

    def __call__(self, inputs, network, *args, **kwargs):
        return network.module(inputs, *args, **kwargs)


@pytest.mark.parametrize("mistake", [False, True])
def test_calling_the_module_under_the_wrapper_is_caught(tmp_path, mistake):
    def work(rank: int) -> float:
        parallel.start("gloo")
        network = tiny()
        step = MultiTaskStep(network)
        sampler = MixedBatchSampler([True] * 5, 4, rank=rank, world=2)
        drawn = DrawnItems(Dataset(items([True, True, False, True, True], 0)))
        trainer = SupervisedTrainer(
            device="cpu",
            max_epochs=1,
            train_data_loader=DataLoader(drawn, batch_sampler=sampler),
            network=parallel.wrapped(step, "cpu"),
            optimizer=torch.optim.AdamW(network.parameters()),
            loss_function=MultiTaskLoss(),
            inferer=CallsTheInnerModule() if mistake else SimpleInferer(),
            prepare_batch=prepare_batch,
            train_handlers=[SameGradients(list(step.parameters()))],
            decollate=False,
        )
        trainer.run()
        return float(sum(p.abs().sum() for p in network.parameters()))

    results = together(work, tmp_path, fails=mistake)
    if mistake:
        assert all("the gradients of 2 processes differ" in text for text in results)
        assert all("call the wrapped module itself" in text for text in results)
    else:
        assert results[0] == results[1], "the weights stay the same in both"


def validate() -> dict:
    """Metrics of five cases whose values differ, over this process's share."""
    generator = torch.Generator().manual_seed(1)
    logits, seg = torch.randn(5, 3, generator=generator), torch.randn(5, 2, 8, 8, generator=generator)
    label = (torch.rand(5, 1, 8, 8, generator=generator) > 0.6).to(torch.uint8)
    metrics = ValidationMetrics()
    engine = SimpleNamespace(state=SimpleNamespace(metrics={}))
    metrics.start(engine)
    for i in ShareSampler(range(5), parallel.rank(), parallel.world()):
        target = {"label": label[i : i + 1], "has_mask": torch.tensor([i != 3])}
        target["diagnosis"] = torch.tensor([[0, 1, 2, -1, 1][i]])
        engine.state.output = {"pred": {"seg": seg[i : i + 1], "cls": logits[i : i + 1]}, "label": target}
        engine.state.batch = {"source": ["ab"[i % 2]]}
        metrics.collect(engine)
    metrics.compute(engine)
    return {"all": engine.state.metrics, "by_source": metrics.by_source, "logits": metrics.logits.tolist()}


def test_validation_counts_every_case_once(tmp_path):
    def work(rank: int) -> dict:
        parallel.start("gloo")
        return validate()

    expected = validate()
    assert len(expected["logits"]) == 4
    for found in together(work, tmp_path):
        assert found == expected
    assert np.isfinite(list(expected["all"].values())).all()


def test_processes_share_every_batch_and_fill_up_an_empty_part():
    masks = [i % 3 == 0 for i in range(13)]
    whole = MixedBatchSampler(masks, 4, seed=5)
    parts = [list(MixedBatchSampler(masks, 4, seed=5, rank=r, world=2)) for r in range(2)]
    for k, batch in enumerate(whole):
        draws = [draw for part in parts for draw in part[k] if not draw.filler]
        assert sorted(draws) == sorted(batch)
        assert sorted(d.place for d in draws) == [d.place for d in batch]
    assert [d.filler for d in parts[1][-1]] == [True], "one item is left for two processes"
    data = DrawnItems(Dataset([{"has_mask": True, "diagnosis": 1}] * 13))
    last = parts[1][-1][0]
    assert data[last] == {"has_mask": False, "diagnosis": -1, "index": int(last)}
    shares = MixedBatchSampler(masks, 4, masked_share=0.5, rank=1, world=2)
    assert sum(masks[i] for batch in shares for i in batch) == len(shares)
    with pytest.raises(ValueError, match="batch_size 4 is less than 5 processes"):
        MixedBatchSampler(masks, 4, rank=0, world=5)
    with pytest.raises(ValueError, match="2 items cannot be shared by 3 processes"):
        ShareSampler(range(2), 0, 3)


def test_several_processes_with_a_config_for_one_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"started 2 processes, and the config is for one: add configs/multi_gpu"):
        parallel.start(None)


def test_processes_that_torchrun_restarts_never_read_the_addresses_of_those_before(tmp_path):
    """One store for all rounds, as torchrun keeps it: what a round writes, no other has written to."""
    port = free_port()
    store = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    known = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "2", "GROUP_WORLD_SIZE": "1"}

    def work(rank: int, count: int) -> float:
        os.environ |= {**known, "MASTER_PORT": str(port), "TORCHELASTIC_RESTART_COUNT": str(count)}
        parallel.start("gloo")
        return parallel.summed(torch.tensor(rank + 1.0)).item()

    written = [store.num_keys()]
    for count in range(3):
        assert together(lambda rank, count=count: work(rank, count), tmp_path) == [3.0, 3.0]
        written.append(store.num_keys())
    _, second, third = np.diff(written).tolist()
    assert second == third > 0


def test_restarts_on_several_machines_with_one_store_for_all_rounds_are_refused(monkeypatch):
    for name, value in {
        "WORLD_SIZE": "2", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3",
        "GROUP_WORLD_SIZE": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 and give --rdzv_backend=c10d"):
        parallel.start("gloo")


def test_a_killed_run_of_two_processes_ends_like_one_process_and_only_the_first_writes(small_run, tmp_path):
    overlays = [CONFIGS / "smoke.yaml", CONFIGS / "multi_gpu_train.yaml"]
    run = tmp_path / "two"
    whole = small_run.run("ours")

    def work(rank: int, kill: bool) -> list[str]:
        written: list[str] = []

        def note(event: str, arguments: tuple) -> None:
            if event in ("open", "os.rename", "os.mkdir") and str(run) in str(arguments[0]):
                reads = event == "open" and not (set(str(arguments[1])) & set("wax+"))
                if not reads:
                    written.append(f"{event} {arguments[0]}")

        sys.addaudithook(note)
        if kill:
            save = StageCheckpoint.save

            def save_then_die(self, engine) -> None:
                save(self, engine)
                if engine.state.epoch == 1 and self.stage_dir.name == runs.STAGES[1]:
                    engine.add_event_handler(Events.ITERATION_COMPLETED, kill_self)

            StageCheckpoint.save = save_then_die
        train(run, overlays, **small_run.paths)
        return written

    with pytest.raises(AssertionError, match=r"\[-9, -9\]"):
        together(lambda rank: work(rank, True), tmp_path)
    assert json.loads((run / runs.STAGES[0] / "manifest.json").read_text(encoding="utf-8"))["finished"]
    age(run)
    first, second = together(lambda rank: work(rank, False), tmp_path)
    assert first
    assert second == []
    for stage in runs.STAGES:
        names = [sorted(p.name.split(".out.")[0] for p in (r / stage).iterdir()) for r in (whole, run)]
        assert sorted(set(names[0])) == sorted(set(names[1]))
        one, two = logged(whole / stage), logged(run / stage)
        assert {k: [s for s, _ in v] for k, v in one.items()} == {k: [s for s, _ in v] for k, v in two.items()}
        # AdamW turns the rounding of a gradient that is nearly 0 into steps of its own; the losses hardly see it.
        for tag in (tag for tag in one if tag.startswith("train/loss/") or tag == "train/gradient_norm"):
            values = [dict(scalars(r / stage, tag)) for r in (whole, run)]
            assert values[1] == pytest.approx(values[0], rel=1e-3), (stage, tag)
        best = [json.loads((r / stage / "manifest.json").read_text(encoding="utf-8")) for r in (whole, run)]
        assert best[0]["best_metric"] == pytest.approx(best[1]["best_metric"], abs=1e-3)
        assert best[1]["processes"] == 2
    assert os.path.isfile(run / "network.yaml")
