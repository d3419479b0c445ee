"""Inference on pictures and volumes: the pixels of training in, masks and maps on the file's own grid out."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import decollate_batch
from PIL import Image

from scripts.data.preprocessing import make_preprocessing
from scripts.inference.inferers import MultiTaskInferer
from scripts.inference.postprocessing import labels_of, shown_evidence, to_original_grid
from scripts.inference.scan_files import acquired_plane
from scripts.inference.scans import PrepareScand, Scan, to_slice_grid
from scripts.inference.volume_rule import volume_probability
from tests.scans import ROOT, head, oblique, save, save_picture, write_overlay

PLANES = ("axial", "coronal", "sagittal")
SIZE = (32, 32)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """The same anatomy in three files: straight, axes permuted, axes permuted and flipped."""
    folder = tmp_path_factory.mktemp("scan")
    volume, affine = head(), oblique()
    return {code: save(folder / f"{code}.nii.gz", volume, affine, code) for code in ("LPS", "SRA", "PIL")}


@pytest.fixture(scope="module")
def overlay(tmp_path_factory):
    return write_overlay(tmp_path_factory.mktemp("overlay"), SIZE)


def config(overlay, **values):
    parser = ConfigParser()
    parser.read_config([str(ROOT / "configs" / "inference.yaml"), str(overlay)])
    for key, value in values.items():
        parser[key] = value
    return parser


def as_label_does(parser, path, **request):
    """Infer as MONAI Label's BundleInferTask: transforms one by one, one image in a batch, no second config file."""
    data = {"image": str(path), "image_path": str(path), "device": "cpu", "model": "x", **request}
    for transform in parser.get_parsed_content("preprocessing").transforms:
        data = transform(data)
    network = parser.get_parsed_content("network").eval()
    data["pred"] = decollate_batch(parser.get_parsed_content("inferer")(data["image"][None], network))[0]
    for transform in parser.get_parsed_content("postprocessing").transforms:
        data = transform(data)
    return data


def to_lps(value, path):
    """An output (1, X, Y, Z) on a file's grid, turned to LPS."""
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(nib.load(path).affine), nib.orientations.axcodes2ornt(tuple("LPS"))
    )
    return nib.orientations.apply_orientation(value[0].numpy(), turn)


@pytest.mark.parametrize("plane", PLANES)
def test_every_slice_of_a_volume_is_what_training_would_see(scan, plane):
    pipeline = make_preprocessing(SIZE, trace=False)
    for path in scan.values():
        item = PrepareScand(SIZE, plane=plane)({"image": str(path)})
        prepared = Scan.of(item["image"])
        assert item["image"].shape == (1, *SIZE, len(prepared.placements))
        for position in (0, len(prepared.placements) // 2, -1):
            expected = pipeline({"image": str(path), "slice": prepared.placements[position].index, "plane": plane})
            assert torch.equal(item["image"].as_tensor()[..., position], expected["image"])
            assert torch.equal(item["foreground"][..., position], expected["foreground"])


def test_a_picture_is_what_training_would_see(tmp_path):
    path = save_picture(tmp_path / "a.png", head()[:, :, 4])
    item = PrepareScand(SIZE)({"image": str(path)})
    expected = make_preprocessing(SIZE, trace=False)({"image": str(path)})
    assert torch.equal(item["image"].as_tensor(), expected["image"])
    assert torch.equal(item["foreground"], expected["foreground"])
    assert list(item["image"].meta["spatial_shape"]) == [40, 46]


@pytest.mark.parametrize("plane", PLANES)
def test_slices_turned_back_are_the_file_in_any_orientation(tmp_path, plane):
    volume = head((6, 7, 5))
    for order, signs in itertools.product(itertools.permutations("LPS"), itertools.product((0, 1), repeat=3)):
        code = "".join(c if not s else {"L": "R", "P": "A", "S": "I"}[c] for c, s in zip(order, signs, strict=True))
        path = save(tmp_path / "a.nii", volume, oblique(), code)
        prepared, slices, _ = PrepareScand(SIZE, plane=plane)._slices({"image": str(path)})
        values = [torch.from_numpy(np.ascontiguousarray(one[0])) for one in slices]
        prepared.placements = [None] * len(values)  # type: ignore[list-item]
        placed = Scan(**{**vars(prepared), "placements": [_Index(i) for i in range(len(values))]})
        own = nib.load(path)
        assert np.array_equal(placed.restore(values).numpy(), own.get_fdata(dtype=np.float32)), code
        assert np.allclose(prepared.affine, own.affine)


class _Index:
    def __init__(self, index):
        self.index = index


def test_the_way_back_from_the_network_grid_equals_monais_inverse(tmp_path):
    path = save_picture(tmp_path / "a.png", head()[:, :, 4])
    prepared = Scan.of(PrepareScand(SIZE)({"image": str(path)})["image"])
    pipeline = make_preprocessing(SIZE)
    image = pipeline({"image": str(path)})["image"]
    value = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))
    ours = to_slice_grid(value, prepared.placements[0], prepared.slice_shape)
    theirs = to_original_grid(value, image, pipeline).as_tensor()
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_study_survives_as_text():
    prepared = Scan("a.nii", False, [3, 4, 5], oblique().tolist(), "coronal", 4, [3, 5])
    assert Scan.from_json(prepared.to_json()) == prepared


def test_orientation_of_the_file_changes_nothing_but_the_grid(scan, overlay, tmp_path):
    results = {}
    for code, path in scan.items():
        data = as_label_does(config(overlay, output_dir=str(tmp_path)), path)
        source = nib.load(path)
        assert data["pred"].shape == (1, *source.shape)
        assert data["pred"].dtype == torch.uint8
        assert np.allclose(data["pred"].affine, source.affine)
        results[code] = (to_lps(data["pred"], path), to_lps(data["evidence"], path), data["result"])
    mask, evidence, result = results["LPS"]
    assert 0 < mask.sum() < mask.size / 2
    assert evidence.max() > 0 == evidence.min()
    assert result["plane"] == "axial"
    for code in ("SRA", "PIL"):
        assert np.array_equal(results[code][0], mask), code
        assert np.array_equal(results[code][1], evidence), code
        assert results[code][2]["slice_probabilities"] == result["slice_probabilities"]


def test_as_the_bundle_runs_it_and_as_label_does_are_one(scan, overlay, tmp_path):
    picture = save_picture(tmp_path / "slice.png", head()[:, :, 4])
    for path in (picture, scan["LPS"], scan["SRA"]):
        workflow = ConfigWorkflow(
            workflow_type="infer", config_file=[str(ROOT / "configs" / "inference.yaml"), str(overlay)],
            meta_file=str(ROOT / "configs" / "metadata.json"), logging_file=False, bundle_root=str(ROOT),
            input=str(path), output_dir=str(tmp_path / "run"),
        )  # fmt: skip
        workflow.initialize()
        workflow.run()
        data = as_label_does(config(overlay, output_dir=str(tmp_path / "label")), path, channel="all", plane="auto")
        name = path.name.split(".")[0]
        written = json.loads((tmp_path / "run" / f"{name}_result.json").read_text(encoding="utf-8"))
        assert Path(written.pop("weights")).name == "model.pt"
        assert len(written.pop("weights_sha256")) == 64
        assert {**data["result"], "image": 0, "evidence": 0} == {**written, "image": 0, "evidence": 0}
        assert json.loads(json.dumps(data["result"])) == data["result"]
        first, second = (nib.load(p["evidence"]) for p in (written, data["result"]))
        assert np.array_equal(first.get_fdata(), second.get_fdata())
        if path is picture:  # MONAI Label takes the channel axis off volumes alone
            mask = np.asarray(Image.open(tmp_path / "run" / "slice_mask.png"))
            assert np.array_equal(mask > 0, data["pred"].numpy().T > 0)
            assert list(data["image"].meta["spatial_shape"]) == list(data["pred"].shape)
        else:
            mask = nib.load(tmp_path / "run" / f"{name}_mask.nii.gz")
            assert np.array_equal(mask.get_fdata(), data["pred"][0].numpy())
            assert np.allclose(mask.affine, nib.load(path).affine)
            assert np.allclose(first.affine, nib.load(path).affine)
            assert list(data["image"].meta["spatial_shape"]) == list(data["pred"].shape[1:])


def test_one_slice_alone_is_that_slice_of_the_whole(scan, overlay, tmp_path):
    parser = config(overlay, output_dir=str(tmp_path), slice_batch_size=1)
    whole = as_label_does(parser, scan["LPS"])
    alone = as_label_does(parser, scan["LPS"], slice=5)
    assert torch.equal(alone["pred"][..., 5], whole["pred"][..., 5])
    assert int(alone["pred"].sum()) == int(whole["pred"][..., 5].sum()) > 0
    assert alone["result"]["slice_probabilities"][5] == whole["result"]["slice_probabilities"][5]
    assert alone["result"]["slice_probabilities"][4] is None
    with pytest.raises(ValueError, match="axial slices 0 to 8, not 9"):
        as_label_does(parser, scan["LPS"], slice=9)


def test_slices_without_a_head_are_named_and_have_no_probability(scan):
    item = PrepareScand(SIZE)({"image": str(scan["LPS"])})
    prepared = Scan.of(item["image"])
    flags = {flag["code"]: flag for flag in prepared.flags}
    assert flags["slices_without_head"]["slices"] == [0]
    assert (
        "1 of 9 slices show no head (no foreground found: the image is constant)"
        in flags["slices_without_head"]["message"]
    )
    assert [p.index for p in prepared.placements] == list(range(1, 9))


def test_a_volume_without_any_head_is_an_error(tmp_path):
    path = save(tmp_path / "air.nii", np.zeros((20, 20, 3), np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"air.nii: none of 3 axial slices shows a head .*constant"):
        PrepareScand(SIZE)({"image": str(path)})


def test_one_volume_of_a_4d_file_is_asked_for(tmp_path):
    volume, affine = head(), oblique()
    both = np.stack([volume, np.flip(volume, 0)], axis=-1)
    nib.save(nib.Nifti1Image(both, affine), tmp_path / "both.nii.gz")
    save(tmp_path / "second.nii.gz", np.ascontiguousarray(both[..., 1]), affine)
    with pytest.raises(ValueError, match="has 2 channels and the network takes 1: give 'channel', 0 to 1"):
        PrepareScand(SIZE)({"image": str(tmp_path / "both.nii.gz")})
    with pytest.raises(ValueError, match="has channels 0 to 1, not 2"):
        PrepareScand(SIZE, channel=2)({"image": str(tmp_path / "both.nii.gz")})
    alone = PrepareScand(SIZE)({"image": str(tmp_path / "second.nii.gz")})["image"]
    for picked in (PrepareScand(SIZE, channel=1), PrepareScand(SIZE)):
        item = picked({"image": str(tmp_path / "both.nii.gz"), "channel": 1})
        assert torch.equal(item["image"].as_tensor(), alone.as_tensor())
    two = PrepareScand(SIZE, in_channels=2)
    stacked = two({"image": str(tmp_path / "both.nii.gz")})["image"]
    listed = two({"image": [str(save(tmp_path / "first.nii.gz", volume, affine)), str(tmp_path / "second.nii.gz")]})
    assert stacked.shape[0] == 2
    assert torch.equal(stacked.as_tensor(), listed["image"].as_tensor())


def test_the_users_foreground_is_what_the_network_sees(tmp_path):
    volume, affine = head(), oblique()
    mask = np.zeros(volume.shape, np.uint8)
    mask[10:30, 12:33, 2:7] = 1
    path = save(tmp_path / "scan.nii.gz", volume, affine, "SRA")
    for foreground in (
        str(save(tmp_path / "mask.nii.gz", mask, affine, "SRA")),
        nib.load(tmp_path / "mask.nii.gz").get_fdata(),
        str(save(tmp_path / "turned.nii.gz", mask, affine, "LPS")),
    ):
        item = PrepareScand(SIZE)({"image": str(path), "foreground": foreground})
        prepared = Scan.of(item["image"])
        assert [p.index for p in prepared.placements] == [2, 3, 4, 5, 6]
        assert all(p.box == [[6, 34], [8, 37]] for p in prepared.placements)
        assert torch.equal(item["image"].as_tensor() != 0, item["foreground"] != 0)
    away = affine @ np.diag([1, 1, 1.1, 1])
    with pytest.raises(ValueError, match="are not on the same grid: their corners lie up to 4 mm apart"):
        PrepareScand(SIZE)({"image": str(path), "foreground": str(save(tmp_path / "o.nii.gz", mask, away, "LPS"))})
    with pytest.raises(ValueError, match="foreground has size"):
        PrepareScand(SIZE)({"image": str(path), "foreground": mask})


def test_a_3d_network_takes_the_volume_whole(tmp_path):
    overlay = write_overlay(tmp_path, (32, 32, 16), spatial_dims=3)
    path = save(tmp_path / "scan.nii.gz", head((40, 46, 20)), oblique((1, 1, 2)), "SRA")
    data = as_label_does(config(overlay, output_dir=str(tmp_path)), path)
    assert data["image"].shape == (1, 32, 32, 16)
    assert data["pred"].shape == (1, 20, 40, 46)
    assert data["result"]["slice_probabilities"] is None
    assert data["evidence"].max() > 0
    traced = make_preprocessing((32, 32, 16), trace=False)({"image": str(path)})
    assert torch.equal(data["image"].as_tensor(), traced["image"])
    straight = save(tmp_path / "straight.nii.gz", head((40, 46, 20)), oblique((1, 1, 2)))
    mask = (head((40, 46, 20)) > 30).astype(np.uint8)
    other = as_label_does(config(overlay, output_dir=str(tmp_path)), straight)
    assert 0 < other["pred"].sum() < other["pred"].numel() / 2
    assert np.array_equal(to_lps(other["pred"], straight), to_lps(data["pred"], path))
    given = PrepareScand((32, 32, 16))({"image": str(straight), "foreground": mask})
    assert Scan.of(given["image"]).placements[0].share == pytest.approx(float(mask.mean()))


@pytest.mark.parametrize(
    ("spacing", "shape", "plane"),
    [
        ((1, 1, 5), (40, 46, 9), "axial"),
        ((1, 5, 1), (40, 9, 46), "coronal"),
        ((5, 1, 1), (9, 46, 40), "sagittal"),
        ((1, 1, 1.1), (40, 46, 40), "axial"),
        ((1, 1, 1), (40, 1, 46), "coronal"),
    ],
)
def test_a_volume_is_cut_in_the_plane_it_was_acquired_in(spacing, shape, plane):
    assert acquired_plane(shape, np.diag([*spacing, 1.0])) == plane


def test_unusual_intensities_are_flagged(tmp_path):
    volume, affine = head(), oblique()
    codes = {}
    for name, array in (("plain", volume), ("shifted", volume / 20 - 4), ("labels", (volume > 50).astype(np.float32))):
        path = save(tmp_path / f"{name}.nii.gz", array.astype(np.float32), affine)
        prepared = PrepareScand(SIZE)._slices({"image": str(path)})[0]
        codes[name] = [flag["code"] for flag in prepared.flags]
    assert codes == {"plain": [], "shifted": ["shifted_air"], "labels": ["few_values"]}


def test_volume_probability_is_the_mean_over_its_most_suspicious_run():
    tumor = torch.tensor([0.1, 0.9, 0.7, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.95])
    probability = torch.stack([1 - tumor, tumor], dim=1)
    votes = torch.ones(11, dtype=torch.bool)
    votes[10] = False
    assert volume_probability(probability, votes, 0.2)[1] == pytest.approx(0.8)
    assert volume_probability(probability, votes, 0.01)[1] == pytest.approx(0.9)
    assert volume_probability(probability, ~votes, 0.2)[1] == pytest.approx(0.95)
    assert volume_probability(probability, torch.zeros(11, dtype=torch.bool), 1.0)[1] == pytest.approx(
        float(tumor.mean())
    )


def test_volume_probability_does_not_grow_with_the_number_of_slices():
    generator = torch.Generator().manual_seed(0)
    means = {}
    for count in (20, 200):
        tumor = torch.rand(200, count, generator=generator) * 0.5
        volumes = [volume_probability(torch.stack([1 - t, t], 1), t > -1, 0.1)[1] for t in tumor]
        means[count] = (float(torch.stack(volumes).mean()), float(tumor.amax(1).mean()))
    assert means[200][0] - means[20][0] < 0.015
    assert means[200][1] - means[20][1] > 0.018


def test_evidence_is_on_one_scale_for_all_images():
    value = torch.tensor([-2.0, 0.0, 1.0, 3.0])
    assert torch.allclose(shown_evidence(value), (2 * torch.sigmoid(value) - 1).clamp(min=0))


def test_labels_are_the_most_probable_class_and_background_where_nothing_was_predicted():
    tumor = torch.tensor([[0.0, 0.2, 0.5, 0.6, 0.3], [0.0, 0.3, 0.1, 0.3, 0.4]])
    assert labels_of(tumor).tolist() == [0, 0, 1, 1, 2]
    assert labels_of(tumor[:1]).tolist() == [0, 0, 0, 1, 0]


def test_batches_and_stacks_give_what_single_slices_give(overlay):
    network = config(overlay).get_parsed_content("network").eval()
    stack = torch.rand(1, 1, 32, 32, 7, generator=torch.Generator().manual_seed(0)) + 0.1
    whole = MultiTaskInferer(3)(stack, network)
    assert whole["seg"].shape == (1, 7, 2, 32, 32)
    for i in range(7):
        one = MultiTaskInferer(3)(stack[..., i], network)
        for key in ("seg", "evidence", "probability"):
            assert torch.allclose(one[key][:, 0], whole[key][:, i], atol=1e-5)
    with torch.no_grad():
        logits = network(stack[..., 2], output="cls")
    assert torch.allclose(whole["probability"][:, 2], torch.softmax(logits / 1.5, 1), atol=1e-5)
    assert float(whole["threshold"]) == pytest.approx(0.4)
