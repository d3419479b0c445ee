"""MONAI Label with a real archive as its studies: next image, inference, saving; the label lies in the archive then.

Runs under ``make test-label``, which sets up the environment that it needs.
"""

from __future__ import annotations

import os

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


def test_next_image_inference_and_saving_go_through_the_archive(tmp_path):
    if missing := archive.available():
        pytest.skip(missing)
    pictures = make_pictures(tmp_path / "pictures")
    bundle = release(tmp_path / "dist", make_run(tmp_path / "run", pictures, size=64, seed=1), NAME)
    prepare_app(tmp_path / "app", [bundle])
    with archive.running(tmp_path / "archive") as address:
        for number in (0, 1):
            archive.upload(address, write_sample(tmp_path / "sent" / str(number), number))
        web = f"{address}/dicom-web"
        filtered = {"MONAI_LABEL_DICOMWEB_SEARCH_FILTER": '{"Modality": "MR"}'}  # its default is CT
        server = RunningServer(Label(tmp_path / "app", web, [NAME]), tmp_path / "server.log", **filtered)
        try:
            image = server.json("POST", "/activelearning/random")["id"]
            series = {one["0020000E"]["Value"][0] for one in Dicomweb(web)._client.search_for_series()}
            assert image in series
            mask = server.mask(NAME, image, tmp_path / "mask.nii.gz")
            shape = nib.load(mask).shape
            assert shape == (128, 128, 17)
            drawn = np.zeros(shape, np.uint8)
            drawn[30:50, 40:70, 5:9] = 1
            label = tmp_path / "label.nii.gz"
            nib.save(nib.Nifti1Image(drawn, nib.load(mask).affine), label)
            server.upload("PUT", "/datastore/label", "label", label, image=image)
        finally:
            server.stop()
        assert modalities(web) == ["MR", "MR", "SEG"]
