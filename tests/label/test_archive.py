"""MONAI Label with an archive as its studies: next image, inference, saving, and training with the labels saved there.

Runs under ``make test-label``, which sets up the environment that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.label import Label, prepare_app
from bundle.release import NAME, release
from scripts.dicom import archive
from scripts.dicom.samples import write_sample
from scripts.dicom.web import Server as Dicomweb
from tests.bundle.made_run import make_pictures, make_run
from tests.label.running import RunningServer

if not os.environ.get("TUMORLENS_LABEL"):
    pytest.skip(
        "needs the environment of MONAI Label; make test-label sets it up and runs this", allow_module_level=True
    )
pytest.importorskip("dicomweb_client", reason="dicomweb-client (the extra dicom) is not installed")


def modalities(address: str) -> list[str]:
    series = Dicomweb(address)._client.search_for_series()
    return sorted(one["00080060"]["Value"][0] for one in series)


@pytest.fixture(scope="module")
def label(tmp_path_factory) -> Label:
    """The stock app with a released bundle; its studies are set by each server."""
    folder = tmp_path_factory.mktemp("label")
    pictures = make_pictures(folder / "pictures")
    bundle = release(folder / "dist", make_run(folder / "run", pictures, size=64, seed=1), NAME)
    prepare_app(folder / "app", [bundle])
    return Label(folder / "app", "", [NAME])


@contextmanager
def started(label: Label, web: str, folder: Path) -> Iterator[RunningServer]:
    """A server that knows of the archive nothing but what it asks it now."""
    folder.mkdir()
    settings = {
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}',  # its default is CT
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "0",  # its default is two hours
    }
    server = RunningServer(replace(label, studies=web), folder / "server.log", **settings)
    try:
        yield server
    finally:
        server.stop()


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    """A label in a few slices of the head."""
    made = np.zeros(shape, np.uint8)
    made[50:75, 45:75, 5:11] = 1
    return made


def test_next_image_inference_saving_and_training_go_through_the_archive(label, tmp_path):
    if missing := archive.available():
        pytest.skip(missing)
    models = label.app / "model" / NAME / "models"
    before = (models / "model.pt").read_bytes()
    with archive.running(tmp_path / "archive") as address:
        for number in range(4):
            archive.upload(address, write_sample(tmp_path / "sent" / str(number), number))
        web = f"{address}/dicom-web"
        with started(label, web, tmp_path / "first") as server:
            series = {one["0020000E"]["Value"][0] for one in Dicomweb(web)._client.search_for_series()}
            labeled: set[str] = set()
            while len(labeled) < 3:
                image = server.json("POST", "/activelearning/random")["id"]
                assert image in series - labeled, "the next image is one without a label"
                mask = nib.load(server.mask(NAME, image, tmp_path / "mask.nii.gz"))
                assert mask.shape == (128, 128, 17)
                file = tmp_path / "label.nii.gz"
                nib.save(nib.Nifti1Image(drawn(mask.shape), mask.affine), file)
                server.upload("PUT", "/datastore/label", "label", file, image=image)
                labeled.add(image)
        assert modalities(web) == ["MR"] * 4 + ["SEG"] * 3
        with started(label, web, tmp_path / "second") as server:  # its labels are those of the archive
            task = server.train(NAME, max_epochs=1, val_split=0.34, multi_gpu=False)
            assert task["status"] == "DONE", "\n".join(task["details"][-30:])
            log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "not used" not in log, [line for line in log.splitlines() if "not used" in line]
    assert (models / "model.pt").read_bytes() != before
    assert (models / "model_previous.pt").read_bytes() == before
