from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts.evaluation.galleries import Shown, _panel
from scripts.networks.multitask_dynunet import MultiTaskDynUNet
from scripts.pictures.planes import PicturePlane, check_channel


@pytest.fixture
def volume() -> np.ndarray:
    """Two channels of a head in slices 1 to 5 of 8; the second one is dark in slice 5."""
    image = np.zeros((2, 6, 7, 8), np.float32)
    for z, side in ((1, 1), (2, 2), (3, 4), (4, 3), (5, 2)):
        image[:, :side, :side, z] = z
    image[1, ..., 5] = 0
    return image


def plane(*slices: tuple[int, float]) -> np.ndarray:
    found = np.zeros((1, 6, 7, 8), np.float32)
    for z, value in slices:
        found[0, 0, 0, z] = value
    return found


def test_a_2d_image_has_one_plane_and_words_for_its_channel_alone():
    image = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    shown = PicturePlane.of(image, np.ones((1, 3, 4)), channel=1)
    assert np.array_equal(shown.image(image), image[1:])
    assert np.array_equal(shown.map(image[:1]), image[:1])
    assert shown.mask(None) is None
    assert shown.where == "channel 1 of 2"
    assert PicturePlane.of(image[:1]).where == ""


def test_the_slice_is_that_of_the_most_tumor_then_of_the_map_then_of_the_prediction_then_of_the_most_head(volume):
    mask = np.zeros((1, 6, 7, 8), np.uint8)
    mask[0, :1, :1, 2], mask[0, :2, :2, 4] = 1, 1
    heat, predicted = plane((1, 0.5), (2, 1.0)), plane((1, 1))
    nothing = np.zeros_like(mask)
    assert PicturePlane.of(volume, mask, heat, predicted).slice == 4
    assert PicturePlane.of(volume, nothing, heat, predicted).slice == 2
    assert PicturePlane.of(volume, None, heat, predicted).slice == 2
    assert PicturePlane.of(volume, nothing, nothing, predicted).slice == 1
    assert PicturePlane.of(volume, None, None, nothing).slice == 3
    shown = PicturePlane.of(torch.from_numpy(volume), torch.from_numpy(mask))
    assert shown.where == "channel 0 of 2, axial slice 4 of 8"
    assert np.array_equal(shown.image(volume), volume[:1, ..., 4])
    assert np.array_equal(shown.mask(torch.from_numpy(mask)), mask[..., 4])


def test_a_slice_that_shows_nothing_of_the_channel_is_not_chosen(volume):
    heat = plane((0, 1.0), (2, 0.2), (5, 0.9))
    assert PicturePlane.of(volume, None, heat).slice == 5
    assert PicturePlane.of(volume, None, heat, channel=1).slice == 2


@pytest.mark.parametrize("channel", [-1, 2, True, "1", None])
def test_a_channel_that_is_not_there_is_refused(volume, channel):
    with pytest.raises(ValueError, match="channels 0 to 1, got"):
        PicturePlane.of(volume, channel=channel)
    network = MultiTaskDynUNet(3, 2, 2, [3] * 3, [1, 2, 2], [2] * 2, filters=[4, 8, 8])
    with pytest.raises(ValueError, match="channels 0 to 1, got"):
        check_channel(channel, network)
    check_channel(1, network)


def test_an_array_without_a_channel_axis_is_refused():
    with pytest.raises(ValueError, match=r"channel-first array \(C, X, Y\[, Z\]\), got shape \(4, 4\)"):
        PicturePlane.of(np.ones((4, 4)))


@pytest.mark.parametrize(("empty", "words"), [(True, "no evidence"), (False, "no evidence in this slice")])
def test_a_slice_beside_the_map_is_not_called_an_empty_map(volume, monkeypatch, empty, words):
    said = []
    monkeypatch.setattr("scripts.pictures.overlays.say_empty", lambda picture, text: said.append(text) or picture)
    mask = torch.zeros(1, 6, 7, 8, dtype=torch.uint8)
    mask[0, :2, :2, 4] = 1
    heat = torch.zeros(1, 6, 7, 8) if empty else torch.from_numpy(plane((2, 1.0)))
    case = {"image": torch.from_numpy(volume), "label": mask, "has_mask": True, "diagnosis": 1, "name": "a"}
    shown = Shown(case, np.array([0.4, 0.6]), 0, heat[None], heat, empty, None)
    _panel(shown, {"0": "none", "1": "tumor"})
    assert said == [words]


def test_other_slices_of_a_volume_span_what_is_shown_and_hold_the_one_that_is_shown_first(volume):
    shown = PicturePlane.of(volume, plane((2, 1), (3, 5)))
    assert [one.slice for one in shown.around(9, plane((2, 1), (3, 5)), None)] == [1, 2, 3, 4], (
        "one more to either side"
    )
    assert [one.slice for one in shown.around(9, plane((2, 1)), plane((6, 1)))] == [1, 2, 3, 4, 5, 6, 7]
    few = shown.around(3, plane((0, 1)), plane((7, 1)))
    assert [one.slice for one in few] == [0, 3, 7], "the middle one makes room for the one that is shown"
    assert [one.slice for one in shown.around(9, None)] == [2, 3, 4]
    assert all((one.channel, one.slices) == (shown.channel, 8) for one in few)
    flat = PicturePlane.of(volume[..., 3])
    assert flat.around(9) == [flat]
