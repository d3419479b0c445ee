"""A 3D network of four sequences with nested regions in the real MONAI Label server: each region a label of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from bundle.label import Label, prepare_app
from bundle.release import NAME, release
from scripts.command.locations import CONFIGS
from scripts.data import datalists
from scripts.data.datalists.naming import CHANNELS
from scripts.data.datalists.regions import SCHEMES, own_values
from scripts.phantoms.sequences import SEQUENCES, write_pair
from scripts.runs import folder as runs
from scripts.training.train import train
from tests.label.running import RunningServer

if not os.environ.get("TUMORLENS_LABEL"):
    pytest.skip(
        "needs the environment of MONAI Label; make test-label sets it up and runs this", allow_module_level=True
    )

REGIONS = SCHEMES["brats2012"]
LABELS = dict(zip(REGIONS, own_values(REGIONS), strict=True))
RUN = """
import sys
import monai.bundle
monai.bundle.run(
    config_file="configs/inference.yaml", meta_file="configs/metadata.json", input=sys.argv[2], output_dir=sys.argv[1]
)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Any]:
    """The release of a network trained a little on volumes with regions; of each, one 4D file of its four sequences."""
    folder = tmp_path_factory.mktemp("regions")
    for k in range(4):
        write_pair(folder / "data", [7, k], f"v{k:03d}", (8.0, 8.0, 8.0))
    rule = datalists.SliceRule(planes=(), regions=REGIONS)
    datalist, _ = datalists.nifti_cases(
        folder / "data", rule=rule, channels=CHANNELS, patient_pattern=r"v\d+", progress=False
    )
    datalists.write(datalist, folder / "list.json")
    train(
        folder / "run", [CONFIGS / "volumetric_patches.yaml", CONFIGS / "smoke.yaml"], (runs.JOINT,),
        max_epochs=1, val_interval=1, batch_size=2, patches_per_epoch=10, spatial_size=[16, 16, 16], spacing_mm=8.0,
        dataset_dir=str(folder / "data"), datalist_file=str(folder / "list.json"),
        **{"network_def#filters": [4, 4, 8, 8]},
    )  # fmt: skip
    weights = folder / "run" / runs.JOINT / "model.pt"
    state = torch.load(weights)
    # After one epoch nothing is marked yet: now every region is a part of the head, and there is a tumor in each.
    network, _, _ = runs.load_run(folder / "run")
    with torch.no_grad():
        logits = network(torch.randn(1, 4, 16, 16, 16, generator=torch.Generator().manual_seed(0)))[0]
    for channel, share in enumerate((0.5, 0.4, 0.2)):
        state["output_block.conv.conv.bias"][channel] -= logits[channel].quantile(1 - share)
    state["head.evidence.conv.weight"] *= 50
    state["threshold"].fill_(0.0)
    torch.save(state, weights)
    bundle = release(folder / "dist", folder / "run", NAME)
    (folder / "studies").mkdir()
    volumes = sorted((folder / "data").rglob("*_flair.nii.gz"))
    for k, volume in enumerate(volumes):
        sequences = [nib.load(str(volume).replace("_flair", f"_{name}")) for name in SEQUENCES]
        whole = np.stack([np.asarray(image.dataobj) for image in sequences], axis=-1)
        nib.save(nib.Nifti1Image(whole, sequences[0].affine), folder / "studies" / f"case{k}.nii.gz")
    return {"folder": folder, "bundle": bundle, "volumes": volumes}


@pytest.fixture(scope="module")
def server(made) -> Iterator[RunningServer]:
    folder = made["folder"]
    prepare_app(folder / "app", [made["bundle"]])
    server = RunningServer(Label(folder / "app", folder / "studies", [NAME]), folder / "server.log")
    yield server
    server.stop()


def test_the_server_knows_each_region_by_the_value_that_it_is_painted_in(server):
    assert server.json("GET", "/info/")["models"][NAME]["labels"] == LABELS
    assert LABELS == {"whole_tumor": 2, "tumor_core": 1, "enhancing_tumor": 4}


def test_every_voxel_has_the_label_of_monai_bundle_run(server, made, tmp_path):
    source = made["folder"] / "studies" / "case0.nii.gz"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "out"), str(source)],
        cwd=made["bundle"], capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = (
        np.asarray(nib.load(path).dataobj)
        for path in (server.mask(NAME, "case0", tmp_path / "mask.nii.gz"), next((tmp_path / "out").glob("*_mask*")))
    )
    assert np.array_equal(ours, theirs)
    assert ours.shape == nib.load(source).shape[:3]
    assert set(np.unique(ours)) == {0, *LABELS.values()}
    result = json.loads(next((tmp_path / "out").glob("*_result.json")).read_text(encoding="utf-8"))
    params = server.infer(NAME, "case0")
    assert params["label_names"] == LABELS
    assert params["regions"] == result["regions"]


def test_training_on_labels_of_the_server_reads_the_regions(server, made):
    models = made["folder"] / "app" / "model" / NAME / "models"
    before = (models / "model.pt").read_bytes()
    for k, volume in enumerate(made["volumes"]):
        mask = next(volume.parent.glob("*seg*.nii.gz"))
        server.upload("PUT", "/datastore/label", "label", mask, image=f"case{k}", tag="final")
    task = server.train(NAME, max_epochs=1, val_split=0.34, multi_gpu=False)
    assert task["status"] == "DONE", "\n".join(task["details"][-30:])
    assert (models / "model.pt").read_bytes() != before


def test_a_label_value_of_no_region_is_refused_by_its_name(server, made, tmp_path):
    mask = next(made["volumes"][0].parent.glob("*seg*.nii.gz"))
    image = nib.load(mask)
    values = np.asarray(image.dataobj).copy()
    values[values == 2] = 9
    other = tmp_path / "case0.nii.gz"
    nib.save(nib.Nifti1Image(values, image.affine), other)
    server.upload("PUT", "/datastore/label", "label", other, image="case0", tag="final")
    task = server.train(NAME, max_epochs=1, val_split=0.34, multi_gpu=False)
    assert task["status"] == "ERROR"
    assert "9" in "\n".join(task["details"])
    assert "region" in "\n".join(task["details"])
