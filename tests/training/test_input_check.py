"""What did not come through the pipeline is refused by name at the network's door, on every way to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from ignite.engine import Engine
from monai.bundle import ConfigParser

from bundle.predictor import Predictor
from scripts.command.locations import CONFIGS
from scripts.inference.pipeline import Inference
from scripts.runs import folder as runs
from scripts.training.handlers.control import InputCheck
from tests.networks.nets import heads

AIR = "air is not exactly 0"
NO_AIR = "no voxel is exactly 0|air is not exactly 0"


def batch(shift: float = 0.0) -> dict:
    image = heads(size=16, batch=2)
    foreground = image != 0
    image = (image - image[foreground].mean()) / image[foreground].std() * foreground
    image[1] += shift
    return {"image": image, "foreground": foreground.to(torch.uint8), "name": ["one", "two"]}


@pytest.mark.parametrize(("every_batch", "wrong"), [(False, 0), (True, 0), (True, 2)])
def test_a_wrong_item_is_refused_by_name(every_batch, wrong):
    batches = [batch(1.0 if k == wrong else 0.0) for k in range(3)]
    engine = Engine(lambda engine, data: None)
    InputCheck(every_batch).attach(engine)
    with pytest.raises(ValueError, match=f"network input of two: {AIR}"):
        engine.run(batches)
    assert engine.state.iteration == wrong, "before the engine works on it"


def test_the_first_batch_of_each_run_is_looked_at_and_good_ones_pass():
    engine = Engine(lambda engine, data: None)
    InputCheck().attach(engine)
    engine.run([batch(), batch(1.0)])
    with pytest.raises(ValueError, match="network input of two"):
        engine.run([batch(1.0)])
    every = Engine(lambda engine, data: None)
    InputCheck(every_batch=True).attach(every)
    every.run([batch()] * 3, max_epochs=2)
    assert every.state.iteration == 6


@pytest.mark.parametrize(("loader", "engine"), [("train", "trainer"), ("validate", "evaluator")])
def test_training_and_validation_refuse_it(small_data, tmp_path, loader, engine):
    values = {**small_data.paths, "run_dir": str(tmp_path), "train#dataset#progress": False}
    config = runs.merged_config([CONFIGS / "train.yaml", CONFIGS / "smoke.yaml"], values)
    config["train"]["handlers"] = [h for h in config["train"]["handlers"] if "Valid" not in h["_target_"]]
    parser = ConfigParser(config)
    good = next(iter(parser.get_parsed_content(f"{loader}#dataloader")))
    running = parser.get_parsed_content(f"{loader}#{engine}")
    running.data_loader = [{**good, "image": good["image"] - 1.03}]
    running.state.trainer_epoch = 0
    name = good["name"][0]
    with pytest.raises(ValueError, match=f"network input of {name}: {AIR}"):
        running.run()


def test_validation_is_on_the_validation_part_alone_and_both_parts_are_written_as_seen(small_data, tmp_path):
    values = {**small_data.paths, "run_dir": str(tmp_path)}
    config = runs.merged_config([CONFIGS / "train.yaml", CONFIGS / "smoke.yaml"], values)
    parser = ConfigParser(config)
    listed = runs.read_datalist(small_data.paths["datalist_file"], small_data.paths["dataset_dir"])
    for section, part in (("train", "training"), ("validate", "validation")):
        items = parser.get_parsed_content(f"{section}#dataset#data")
        known = {str(small_data.dataset_dir / item["image"]) for item in listed[part]}
        assert {item["image"] for item in items} == known, part
    lists = [value for value in config.values() if isinstance(value, list)]
    seen = [line for lines in lists for line in lines if "write_seen" in str(line)]
    assert seen == ["$seen.write_seen(@stage_dir, training=@train::dataset::data, validation=@validate::dataset::data)"]


def test_evaluation_refuses_it(small_run, tmp_path):
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "evaluate.yaml"))
    parser.update({"run_dir": str(small_run.run("ours")), "output_dir": str(tmp_path), **small_run.paths})
    good = next(iter(parser.get_parsed_content("dataloader")))
    evaluator = parser.get_parsed_content("evaluator")
    evaluator.data_loader = [{**good, "image": good["image"] - 1.03}]
    with pytest.raises(ValueError, match=f"network input of {good['name'][0]}: {AIR}"):
        evaluator.run()


SHIFT = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: x + 1"}


@pytest.fixture(scope="module")
def shifting(small_run, tmp_path_factory) -> list[str]:
    """Overlays of inference.yaml whose pipeline ends with a step that leaves air at 1."""
    own = yaml.safe_load((CONFIGS / "inference.yaml").read_text(encoding="utf-8"))["preprocessing"]
    path = tmp_path_factory.mktemp("overlay") / "shift.yaml"
    path.write_text(yaml.safe_dump({"preprocessing": {**own, "transforms": [*own["transforms"], SHIFT]}}))
    return [str(small_run.run("ours") / "network.yaml"), str(path)]


@pytest.fixture(scope="module", params=["picture", "volume"])
def image(request, small_run) -> str:
    pattern = "*.png" if request.param == "picture" else "*flair.nii.gz"
    folder = small_run.dataset_dir / ("singles/images" if request.param == "picture" else "patients")
    return str(sorted(Path(folder).rglob(pattern))[0])


def test_prediction_and_explanation_refuse_it(shifting, image):
    predictor = Predictor(overlay=shifting)
    for call in (predictor.predict, predictor.explain, lambda path: predictor.predict_batch([path])):
        with pytest.raises(ValueError, match=NO_AIR) as caught:
            call(image)
        assert f"network input of {image}: " in str(caught.value)


def test_inference_refuses_it(shifting, image, tmp_path):
    config = [str(CONFIGS / "inference.yaml"), *shifting]
    parser = ConfigParser()
    parser.read_config(config)
    parser.update({"input": image, "output_dir": str(tmp_path)})
    evaluator = parser.get_parsed_content("evaluator")
    with pytest.raises(ValueError, match=NO_AIR) as caught:
        evaluator.run()
    assert f"network input of {image}: " in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_the_pipeline_makes_passes(small_run, image):
    inference = Inference(overlay=small_run.run("ours") / "network.yaml")
    assert bool((inference.prepare({"image": image})["image"] == 0).any())
