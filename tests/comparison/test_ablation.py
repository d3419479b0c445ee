"""The ablation: overlays build what they name and nothing else, variants run in order, ensembles are calibrated."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil

import pytest
import torch
import yaml
from monai.bundle import ConfigParser

from scripts.__main__ import main as command
from scripts.command.errors import one_sentence_errors
from scripts.command.locations import CONFIGS
from scripts.comparison import ablation
from scripts.comparison.ablation import VARIANTS, planned_epochs, run_ablation, train_variant, write_ablation
from scripts.data.samplers import has_mask
from scripts.networks.classifiers import ClassifierEnsemble, ImageClassifier
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.networks.normalization import ForegroundInstanceNorm, PlainNorm
from scripts.runs import folder as runs
from tests.made_runs import case_rows, made_certificate, made_evaluation, made_stage, map_rows

SMOKE = CONFIGS / "smoke.yaml"
TRAINED = [name for name in VARIANTS if name not in ("ours", "ensemble")]


def files(name: str | None, stage: str) -> list[str]:
    own = [] if stage == runs.JOINT else [str(CONFIGS / f"{stage}.yaml")]
    overlay = VARIANTS[name].overlay if name else None
    return [str(CONFIGS / "train.yaml"), *own, str(SMOKE), *([str(CONFIGS / overlay)] if overlay else [])]


def built(small_data, tmp_path, name: str, stage: str = "stage3_joint") -> ConfigParser:
    """The parser of a variant's stage, that builds its parts when they are asked for."""
    parser = ConfigParser()
    parser.read_config(files(name, stage))
    # The weights of the stage before are not needed to see what is built.
    parser.update({**small_data.paths, "run_dir": str(tmp_path), "num_classes": 2, "initial_weights": None})
    return parser


def stage_of(name: str) -> str:
    return runs.JOINT if VARIANTS[name].joint else "stage3_joint"


@pytest.mark.parametrize("name", TRAINED)
def test_an_overlay_changes_what_it_names_and_nothing_else(name):
    stage = stage_of(name)
    ours, own = (runs.merged_config(files(which, stage)) for which in (None, name))
    overlay = yaml.safe_load((CONFIGS / VARIANTS[name].overlay).read_text(encoding="utf-8"))
    changed = {key for key in ours.keys() | own.keys() if ours.get(key) != own.get(key)}
    assert changed == {key.split("#")[0] for key in overlay} - unchanged(overlay, ours)
    if changed == {"network_def"} and "network_def" not in overlay:
        arguments = {k for k in own["network_def"] if own["network_def"].get(k) != ours["network_def"].get(k)}
        assert arguments == {key.split("#")[1] for key in overlay}


def unchanged(overlay, ours):
    return {key for key, value in overlay.items() if "#" not in key and ours.get(key) == value}


@pytest.mark.parametrize("name", TRAINED)
def test_an_overlay_trains_one_step(small_data, tmp_path, name):
    parser = built(small_data, tmp_path, name, stage_of(name))
    step, loss, optimizer = (parser.get_parsed_content(f"train#{part}") for part in ("step", "loss", "optimizer"))
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(4, 1, 64, 64)
    image[:, :, 8:56, 8:56] = torch.rand(4, 1, 48, 48, generator=generator) + 0.1
    has_mask = torch.tensor([True, False, True, True])
    label = (image > 0.9).to(torch.uint8) * has_mask.view(-1, 1, 1, 1)
    target = {"label": label, "foreground": (image != 0).to(torch.uint8), "has_mask": has_mask}
    target["diagnosis"] = torch.tensor([1, 0, 1, 0])
    before = {part: [p.clone() for p in step.network.parameters_of(part)] for part in ("encoder", "decoder", "head")}
    step.train()
    loss(step(image, has_mask), target).backward()
    optimizer.step()
    moved = {
        part: any(not torch.equal(a, b) for a, b in zip(old, step.network.parameters_of(part), strict=True))
        for part, old in before.items()
    }
    segments, classifies = name not in CLASSIFIERS, name != "segmentation_only"
    # Weight decay moves parameters without a task too; those without a gradient stay.
    assert moved == {"encoder": True, "decoder": segments, "head": classifies}
    named = {"segmentation": segments, "classification": classifies}
    named["evidence"] = name not in (*CLASSIFIERS, "baseline", "segmentation_only", "no_evidence_supervision")
    assert {part for part in loss.parts if part in named} == {part for part, there in named.items() if there}


CLASSIFIERS = ("classification_only", "densenet121", "efficientnet_b0")


def network(small_data, tmp_path, name):
    return built(small_data, tmp_path, name, stage_of(name)).get_parsed_content("network_def")


def test_the_network_of_an_overlay_is_the_one_it_names(small_data, tmp_path):
    def norms(net):
        return {type(m) for m in net.bottleneck.modules() if isinstance(m, (PlainNorm, ForegroundInstanceNorm))}

    ours, plain, unmasked, coarse, mean = (
        network(small_data, tmp_path, name)
        for name in ("ours", "plain_normalization", "unmasked_pooling", "bottleneck_evidence", "mean_pooling")
    )
    assert norms(ours) == {ForegroundInstanceNorm}
    assert norms(plain) == {PlainNorm}
    assert (ours.head.masked, unmasked.head.masked) == (True, False)
    assert (ours.head.pooling, mean.head.pooling) == ("logsumexp", "mean")
    image = torch.ones(1, 1, 64, 64)
    grids = [tuple(net.eval()(image, output="evidence").shape[2:]) for net in (ours, coarse)]
    assert grids == [(16, 16), (8, 8)]
    assert not network(small_data, tmp_path, "baseline").has_evidence
    for name, architecture in (("densenet121", "densenet121"), ("efficientnet_b0", "efficientnet-b0")):
        net = network(small_data, tmp_path, name)
        assert isinstance(net, ImageClassifier)
        assert (net.architecture, net.num_classes) == (architecture, 2)


def test_separate_batches_hold_items_with_masks_or_items_without(small_data, tmp_path):
    parser = built(small_data, tmp_path, "separate_batches")
    sampler = parser.get_parsed_content("train#sampler")
    masked = has_mask(parser.get_parsed_content("train#dataset#data"))
    kinds = [{masked[int(i)] for i in batch} for batch in sampler]
    assert {len(kind) for kind in kinds} == {1}
    assert set.union(*kinds) == {True, False}
    ours = built(small_data, tmp_path, "ours").get_parsed_content("train#sampler")
    assert any(len({masked[int(i)] for i in batch}) == 2 for batch in ours)
    # Stage 1 has items with a mask alone: there is nothing to keep apart.
    first = built(small_data, tmp_path, "separate_batches", "stage1_segmentation").get_parsed_content("train#sampler")
    assert not first.alternating


def test_joint_training_has_the_epochs_of_the_stages_together_and_one_learning_rate(small_data, tmp_path):
    assert planned_epochs([CONFIGS / "demo.yaml"], 0.5) == {
        "stage1_segmentation": 6,
        "stage2_classification": 2,
        "stage3_joint": 7,
        "joint": 15,
    }
    assert planned_epochs([SMOKE], 0.01)["stage3_joint"] == 1
    groups = built(small_data, tmp_path, "no_stages", runs.JOINT).get_parsed_content("train#optimizer").param_groups
    assert {group["lr"] for group in groups} == {0.002}


@pytest.mark.parametrize("name", ["segmentation_only", *CLASSIFIERS])
def test_a_model_of_one_task_is_trained_on_the_items_that_have_its_target(small_data, tmp_path, name):
    everything = built(small_data, tmp_path, "no_stages", runs.JOINT).get_parsed_content("train#dataset").data
    items = built(small_data, tmp_path, name, runs.JOINT).get_parsed_content("train#dataset").data
    # A batch without any target, as the last of an epoch can be, would stop the training.
    target = "label" if name == "segmentation_only" else "diagnosis"
    having = [item["name"] for item in everything if item.get(target) is not None or item.get("lesion_free")]
    assert having
    assert [item["name"] for item in items] == having
    assert any("label" not in item for item in items)  # of images without a tumor the empty mask is known


def test_every_overlay_of_the_folders_is_a_variant():
    there = {
        f"{p.parent.name}/{p.name}" for folder in ("ablations", "comparison") for p in (CONFIGS / folder).iterdir()
    }
    assert there == {v.overlay for v in VARIANTS.values() if v.overlay and "/" in v.overlay}


def made_variant(folder, seed, tasks=("segmentation", "classification"), shift=0.0):
    """One stage with an evaluation whose Dice and energy are lower by ``shift``."""
    flags = {f"train_{task}": task in tasks for task in ("segmentation", "classification")}
    made_stage(folder / "joint", seed, **flags)
    dice = [0.8 - shift, 0.6 - shift, 0.5 - shift]
    maps = map_rows([0.9 - shift, 0.7 - shift, 0.5 - shift]) if "classification" in tasks else None
    made_evaluation(folder, case_rows(dice=dice), maps)


@pytest.fixture
def trained(monkeypatch):
    """`train_variant` that makes its run at once, and which it made."""
    made: list[str] = []

    def train_variant(name, folder, seed, overlays, epochs, paths, overrides=None, joint=False):
        if not folder.exists():
            made.append(f"{name} {seed}")
            shift = 0.0 if name == "ours" else 0.1
            made_variant(folder, seed, ("segmentation",) if name == "segmentation_only" else (
                "segmentation", "classification"), shift)  # fmt: skip

    monkeypatch.setattr(ablation, "train_variant", train_variant)
    return made


PATHS = {"dataset_dir": "data", "datalist_file": "list.json"}


def test_variants_run_seed_by_seed_with_the_reference_first_and_again_only_what_lacks(tmp_path, trained):
    only = ["plain_normalization"]
    result = run_ablation(tmp_path, PATHS, [0, 1], [SMOKE], 0.5, only)
    order = ["ours", "plain_normalization"]
    assert trained == [f"{name} {seed}" for seed in (0, 1) for name in order]
    assert [row["name"] for row in result["rows"]] == order
    assert result["rows"][1]["seeds"] == [0, 1]
    assert result["rows"][1]["difference"]["dice"]["difference"] == pytest.approx(-0.1)
    assert result["rows"][1]["difference"]["dice"]["claim"] == "not settled", "two patients, changed alike"
    assert result["rows"][1]["difference"]["tumor_energy"]["by_seed"] == pytest.approx([-0.1, -0.1])
    assert (result["reference"], result["epochs"]["joint"], result["not_run"]) == ("ours", 3, [])
    shutil.rmtree(tmp_path / "plain_normalization" / "seed1")
    trained.clear()
    command(["ablation", "--dataset_dir", "d", "--datalist_file", "l", "--out", str(tmp_path), "--table_only"])
    told = json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))
    assert trained == []
    assert (told["rows"][1]["seeds"], told["epochs"]) == ([0], result["epochs"])
    assert "baseline" in told["not_run"]
    run_ablation(tmp_path, PATHS, [0, 1], [SMOKE], 0.5, only)
    assert trained == ["plain_normalization 1"]


def test_what_was_not_run_is_said_and_a_half_finished_run_is_left_out(tmp_path, trained):
    run_ablation(tmp_path, PATHS, [0], [SMOKE], 0.5, ["segmentation_only"])
    made_variant(tmp_path / "mean_pooling" / "seed0", 0)
    (tmp_path / "mean_pooling" / "seed0" / "explanations" / "cases.csv").unlink()  # interrupted before it was explained
    result = write_ablation(tmp_path)
    assert [row["name"] for row in result["rows"]] == ["ours", "segmentation_only"]
    assert set(result["not_run"]) == set(VARIANTS) - {"ours", "segmentation_only"}
    assert result["variants"]["segmentation_only"]["title"] == "segmentation only"
    page = (tmp_path / "section.html").read_text(encoding="utf-8")
    assert "What each part is worth" in page
    assert "Not run: baseline, plain_normalization" in page
    assert json.loads((tmp_path / "ablation.json").read_text(encoding="utf-8"))["not_run"] == result["not_run"]


def test_unknown_variants_and_an_ensemble_without_members_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="variants nothing not known; there are ours, baseline"):
        run_ablation(tmp_path, PATHS, [0], only=["nothing"])
    with pytest.raises(ValueError, match="made of densenet121 and efficientnet_b0; name them too"):
        run_ablation(tmp_path, PATHS, [0], only=["ensemble", "densenet121"])
    with pytest.raises(FileNotFoundError, match="holds no finished seed: every variant is compared with it"):
        write_ablation(tmp_path)
    with pytest.raises(SystemExit), one_sentence_errors():
        command(["ablation", "--dataset_dir", "d", "--datalist_file", "l", "--out", str(tmp_path), "--only", "nothing"])
    assert capsys.readouterr().err.startswith("error: variants nothing not known")


def test_every_variant_is_certified_and_put_beside_the_others(tmp_path, trained, monkeypatch, capsys):
    asked = []

    def certify_missing(folder, paths):
        asked.append(f"{folder.parent.name} {folder.name}")
        made_certificate(folder, painted_out=0.9 if folder.parent.name == "ours" else 0.3)

    monkeypatch.setattr(ablation, "certify_missing", certify_missing)
    arguments = ["ablation", "--dataset_dir", "d", "--datalist_file", "l", "--out", str(tmp_path), "--certify"]
    with pytest.raises(FileNotFoundError, match="holds no certified run"):
        ablation.write_interventions(tmp_path)
    run_ablation(tmp_path, PATHS, [0], [SMOKE], 0.5, ["counterfactual"], joint=True, certified=True)
    assert asked == ["ours seed0", "counterfactual seed0"]
    command([*arguments, "--table_only"])
    assert "| TumorLens | 1 | 0.95 | 0.90 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="variants segmentation_only have no verdict and mask of one network"):
        run_ablation(tmp_path, PATHS, [0], only=["segmentation_only"], certified=True)


def test_all_variants_train_in_one_stage_where_that_is_asked_for(small_data, tmp_path, monkeypatch):
    stages = []
    monkeypatch.setattr(ablation, "train", lambda folder, overlays, stages_of, **_: stages.append(tuple(stages_of)))
    monkeypatch.setattr(ablation, "evaluate_missing", lambda folder, paths: None)
    monkeypatch.setattr(ablation, "stage_folders", lambda folder: [])
    for joint in (False, True):
        train_variant("ours", tmp_path, 0, [], {}, small_data.paths, joint=joint)
    assert stages == [runs.STAGES, (runs.JOINT,)]


def classifier_run(folder, small_data, seed):
    torch.manual_seed(seed)
    definition = {"_target_": "scripts.networks.ImageClassifier", "architecture": "efficientnet-b0"}
    digest = hashlib.sha256(small_data.datalist_file.read_bytes()).hexdigest()
    return made_stage(folder / "joint", seed, digest, network_def=definition, train_segmentation=False).parent


def test_an_ensemble_is_a_run_with_its_members_weights_calibrated_on_validation(small_data, tmp_path, monkeypatch):
    members = [classifier_run(tmp_path / name, small_data, seed) for seed, name in enumerate("ab")]
    paths = ["--dataset_dir", str(small_data.dataset_dir), "--datalist_file", str(small_data.datalist_file)]
    parts, items_of = [], runs.stage_items
    monkeypatch.setattr(runs, "stage_items", lambda of, part, *rest: parts.append(part) or items_of(of, part, *rest))
    command(["ensemble", *map(str, members), "--run_dir", str(tmp_path / "both"), *paths])
    assert parts == ["validation"]
    net, config, folder = runs.load_run(tmp_path / "both")
    assert isinstance(net, ClassifierEnsemble)
    assert folder == tmp_path / "both"
    for member, run in zip(net.members, members, strict=True):
        state = runs.load_run(run).network.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in member.state_dict().items())
    assert runs.trained_tasks(folder) == {"classification"}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["training_seconds"] == 60.0
    assert float(net.temperature) > 0
    assert config["members"] == [str(run) for run in members]
    made_stage(tmp_path / "c" / "joint", 0)
    with pytest.raises(ValueError, match="c is a MultiTaskDynUNet; an ensemble is made of stand-alone classifiers"):
        command(["ensemble", str(members[0]), str(tmp_path / "c"), "--run_dir", str(tmp_path / "no"), *paths])
    other = made_stage(
        tmp_path / "d" / "joint", 0, "a" * 64, network_def=config["network_def"]["members"][0], train_segmentation=False
    )
    with pytest.raises(ValueError, match="trained on another datalist"):
        command(["ensemble", str(members[0]), str(other.parent), "--run_dir", str(tmp_path / "no"), *paths])


def test_tasks_of_a_run_are_those_of_its_stages_together(tmp_path):
    first = made_stage(tmp_path / "stage1_segmentation", train_classification=False, cls_weight=0.0)
    second = made_stage(
        tmp_path / "stage2_classification",
        run_dir="elsewhere",
        initial_weights="$@run_dir + '/stage1_segmentation/model.pt'",
        train_segmentation=False,
    )
    assert runs.trained_tasks(first) == {"segmentation"}
    assert runs.trained_tasks(second) == {"segmentation", "classification"}
    assert isinstance(runs.load_run(tmp_path).network, MultiTaskDynUNet)


def test_a_stand_alone_classifier_is_trained_evaluated_explained_and_compared(small_run, tmp_path, capsys):
    shutil.copytree(
        small_run.run("ours"), tmp_path / "ours", ignore=shutil.ignore_patterns("evaluation", "explanations")
    )
    folder, epochs = tmp_path / "efficientnet_b0" / "seed0", {"joint": 1}
    own = {"cache_dir": str(tmp_path / "cache")}
    train_variant("efficientnet_b0", folder, 0, [SMOKE], epochs, small_run.paths, own)
    weights = (folder / "joint" / "model.pt").stat().st_mtime_ns
    train_variant("efficientnet_b0", folder, 0, [SMOKE], epochs, small_run.paths, own)
    assert (folder / "joint" / "model.pt").stat().st_mtime_ns == weights
    metrics = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["notes"][0] == "this run segments nothing: there are no figures of segmentation"
    assert metrics["test"]["overall"]["segmentation"]["dice"] | {"ci95": None} == {
        "n": 0, "clusters": 0, "mean": None, "std": None, "median": None, "ci95": None}  # fmt: skip
    with open(folder / "evaluation" / "cases.csv", encoding="utf-8", newline="") as file:
        assert {(row["dice"], row["predicted_pixels"], row["lesions"]) for row in csv.DictReader(file)} == {
            ("", "", "")
        }
    rows = json.loads((folder / "explanations" / "localization.json").read_text(encoding="utf-8"))
    assert {(r["method"], r["layer"]) for r in rows if r["layer"] != "none"} == {
        ("gradcam", "net._avg_pooling.features")
    }
    assert {r["mask"] for r in rows} == {"true"}
    capsys.readouterr()
    paths = ["--dataset_dir", small_run.paths["dataset_dir"], "--datalist_file", small_run.paths["datalist_file"]]
    command(["compare", str(tmp_path / "ours"), str(folder), "--no_stages", "--out", str(tmp_path / "out"), *paths])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("efficientnet_b0: map: gradcam at net._avg_pooling.features") for line in lines)
    content = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    ours, other = content["rows"]
    assert ours["measures"]["dice"]["n"] == other["measures"]["empty"]["n"] > 0
    assert other["measures"]["dice"] == {"missing": "not trained for segmentation"}
    assert other["difference"]["roc_auc"]["n"] == other["measures"]["roc_auc"]["n"]
    assert other["training_seconds"] > 0
