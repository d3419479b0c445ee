"""What is uploaded: files of every kind, and a reason for everything that is not an image."""

from __future__ import annotations

import gzip
import io
import zipfile

import itk
import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'service')")
from PIL import Image

from bundle.upload_formats import FormatRefused, whole_metaimage, whole_nrrd
from bundle.uploads import UploadRefused, stored
from tests.bundle.served import LIMITS, post
from tests.data.volume_files import write_series
from tests.scans import head


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def nifti(shape=(8, 8, 4)) -> bytes:
    return nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_bytes()


def png(size, mode="L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return buffer.getvalue()


def tiff(size=(20, 20), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, format="TIFF", **options)
    return buffer.getvalue()


def mpo() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), (k, 0, 0)) for k in range(2)]
    frames[0].save(buffer, format="MPO", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def zipped(files, **options) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


MHA = b"ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\n"
NRRD = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 4 4\nencoding: raw\n"
BAD = {
    "empty": (b"", 422, "empty"),
    "text": (b"# no image", 415, "no image that is read here"),
    "html": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no image"),
    "pdf": (b"%PDF-1.7\n", 415, "no image"),
    "MetaImage of another file": (MHA + b"ElementDataFile = /etc/passwd\n", 415, "lie in another file"),
    "MetaImage of other files by a comment": (
        MHA + b"Comment = ElementDataFile = LOCAL\nElementDataFile = LIST\n/etc/passwd\n",
        415,
        "lie in another file",
    ),
    "MetaImage by an empty comment": (
        MHA + b"Comment = \nElementDataFile = LOCAL\nElementDataFile = /etc/passwd\n",
        422,
        "noise",
    ),
    "NRRD of another file": (NRRD + b"data file: /etc/passwd\n\n", 415, "lie in another file"),
    "NRRD of another file, spelled otherwise": (NRRD + b"DataFile: /etc/passwd\n\n", 415, "lie in another file"),
    "huge MetaImage": (MHA.replace(b"4 4", b"40000 4") + b"ElementDataFile = LOCAL\n", 413, "40000 x 4"),
    "cut png": (png((64, 64))[:40], 422, "cannot be read as a picture"),
    "constant png": (png((64, 64)), 422, "constant"),
    "wide png": (png((513, 4)), 413, "513 x 4"),
    "many pixels": (png((300, 300)), 413, "65,536"),
    "wide BigTIFF": (tiff((600, 4), big_tiff=True), 413, "600 x 4"),
    "pages": (tiff(save_all=True, append_images=[Image.new("L", (20, 20))] * 3), 422, "4 frames"),
    "MPO": (mpo(), 422, "2 frames"),
    "gzip of text": (gz(b"hello"), 415, "no image"),
    "gzip bomb of nothing": (gz(bytes(8 << 20)), 415, "no image"),
    "gzip bomb of many slices": (gz(nifti()[:42] + b"\xff\x01" * 2 + b"\xff\x7f" + nifti()[48:]), 413, "32767"),
    "cut gzip": (gz(nifti())[:60], 422, "cut short"),
    "damaged gzip": (b"\x1f\x8b" + b"\xff" * 50, 422, "cannot be unpacked"),
    "cut nifti": (nifti()[:400], 422, "cut short"),
    "nifti of a pair": (nifti()[:344] + b"ni1\0" + nifti()[348:], 415, "pair"),
    "huge nifti": (nifti()[:42] + b"\xff\x7f" * 3 + nifti()[48:], 413, "32767"),
    "constant nifti": (nifti(), 422, "image"),
    "zip of pictures": (zipped({"a.png": png((20, 20))}), 415, "no DICOM file"),
    "zip bomb": (zipped({"a.dcm": bytes(128) + b"DICM" + bytes(8 << 20)}), 413, "unpacks to more than 4 MiB"),
    "zip of many": (zipped({f"{k}.dcm": b"" for k in range(17)}), 413, "17 files"),
    "cut zip": (zipped({"a.dcm": b"x"})[:-30], 422, "damaged"),
    "zip of a damaged DICOM file": (zipped({"../../a.dcm": bytes(128) + b"DICM" + b"\xff" * 300}), 422, "image"),
    "deflated DICOM": (bytes(128) + b"DICM" + b"1.2.840.10008.1.2.1.99" + bytes(64), 415, "deflated"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("route", ["/predict_multitask", "/explain"])
def test_bad_uploads_get_the_reason(client, kind, route):
    data, status, reason = BAD[kind]
    answer = post(client, data, route)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["detail"]
    assert answer.json()["detail"].startswith("image")
    assert "/tmp" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_above_the_limit_is_not_read_to_its_end(client, announced):
    data = b"x" * (5 << 20)
    boundary = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = boundary + data + b"\r\n--b--\r\n"
    read = []

    def pieces():
        for start in range(0, len(body), 1 << 16):
            read.append(start)
            yield body[start : start + (1 << 16)]

    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/predict_multitask", content=body if announced else pieces(), headers=headers)
    assert answer.status_code == 413
    assert "larger than" in answer.json()["detail"]


def test_one_file_above_the_limit_is_refused(client):
    answer = post(client, b"\x89PNG" + bytes((1 << 20) + 10))
    assert (answer.status_code, answer.json()["detail"]) == (413, "image: the file is larger than 1 MiB")


def test_200_broken_files_get_a_reason_and_no_5xx(client, files):
    random = np.random.default_rng(0)
    sources = [files["picture"].read_bytes(), gz(nifti((12, 12, 2))), nifti((12, 12, 2)), files["volume"].read_bytes()]
    buffer = io.BytesIO()
    Image.open(files["picture"]).save(buffer, format="JPEG")
    sources.append(buffer.getvalue())
    answered: dict[int, int] = {}
    for number in range(200):
        data = bytearray(sources[number % len(sources)])
        if number % 3 == 0:
            data = data[: random.integers(1, len(data))]
        header = min(len(data), 400)
        for place in random.integers(0, header if number % 2 else len(data), random.integers(1, 12)):
            data[place] = random.integers(256)
        status = post(client, bytes(data), arrays="false").status_code
        answered[status] = answered.get(status, 0) + 1
    assert set(answered) <= {200, 413, 415, 422}, answered
    assert answered[422] > 50


def test_uploads_are_deleted_after_use(files):
    with stored(files["volume"].read_bytes(), LIMITS) as path:
        assert path.name == "image.nii"
        assert path.is_file()
    assert not path.parent.exists()
    with pytest.raises(UploadRefused, match="empty"), stored(b"", LIMITS):
        pass


def test_volumes_of_every_kind_give_what_their_files_give(client, predictor, folder):
    image = itk.image_from_array(np.ascontiguousarray(head().T))
    image.SetSpacing([1.0, 1.1, 5.0])
    names = ("v.mha", "v.nrrd", "packed.mha", "packed.nrrd")
    for name in names:
        itk.imwrite(image, str(folder / name), compression=name.startswith("packed"))
    expected = predictor.predict(folder / "v.mha").probability
    for name in names:
        answer = post(client, (folder / name).read_bytes(), arrays="false")
        assert (answer.status_code, answer.json().get("tumor_probability")) == (200, expected), answer.text
    write_series(folder / "series", 10 * head(), np.eye(3), "p1")
    slices = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in (folder / "series").iterdir()}
    others = {"notes.txt": b"not a slice", "DICOMDIR": bytes(128) + b"DICM"}
    answer = post(client, zipped({**slices, **others}), name="series.zip", arrays="false")
    assert answer.status_code == 200, answer.text
    assert answer.json()["tumor_probability"] == predictor.predict(folder / "series").probability
    assert answer.json()["shape"] == [40, 46, 9]
    one = post(client, next(iter(slices.values())), arrays="false")
    assert one.json().get("shape", one.text) == [40, 46, 1]


def test_headers_keep_what_describes_the_values_alone():
    header = MHA + b"Comment = x\nHeaderSize = 4\nElementDataFile = LOCAL\n"
    assert whole_metaimage(header + b"\n1234") == MHA + b"ElementDataFile = LOCAL\n\n1234"
    assert whole_nrrd(NRRD + b"# c\nbyte skip: -1\nkey:=/etc/passwd\n\n12") == NRRD + b"\n12"
    with pytest.raises(FormatRefused, match="ascii"):
        whole_nrrd(NRRD.replace(b"raw", b"ascii") + b"\n")
    with pytest.raises(FormatRefused, match="does not end"):
        whole_metaimage(MHA)
