"""Donors and hosts show the same view, and a tumor that would not be seen is not put in."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.interventions import insertion
from scripts.interventions.insertion import Donor, check_seen
from scripts.interventions.interventions import transplant
from scripts.interventions.likeness import UNKNOWN_PLANE, UNLIKE, Look, Looks, Turn, turns
from scripts.interventions.regions import NoRoom, grow
from tests.interventions.heads import pair


def look(head: Donor) -> Look:
    return Look.of(head.image, head.foreground)


def long_head(seed: int = 1) -> Donor:
    """A healthy head, longer than wide and dark on one side, in a picture that is not square."""
    head = pair(seed)[1]
    image = head.image[:, :, 6:-10].repeat(2, axis=2)
    shade = np.linspace(1, 2, image.shape[1])[:, None] * np.linspace(1, 1.5, image.shape[2])
    foreground = head.foreground[:, 6:-10].repeat(2, axis=1)
    return Donor((image * shade).astype(np.float32), np.zeros_like(foreground), foreground)


@pytest.mark.parametrize("turn", turns(2))
def test_a_turned_head_is_found_with_the_turn_that_brings_it_back(turn):
    head = long_head()
    near = Looks([look(head.turned(turn))]).nearest(look(head))[0]
    assert near.distance == pytest.approx(0, abs=5e-3)
    assert near.turn == turn.back()
    np.testing.assert_array_equal(head.turned(turn).turned(near.turn).image, head.image)
    np.testing.assert_allclose(look(head.turned(turn)).vector(), look(head).vector(turn), atol=1e-5)


def test_a_gain_and_an_offset_do_not_change_the_distance_of_like_heads():
    heads = [pair(seed)[1] for seed in range(4)]
    looks = Looks([look(head) for head in heads])
    loud = Donor(heads[2].image * 30, heads[2].mask, heads[2].foreground)
    near = looks.nearest(look(loud), 1)
    assert [(head.place, head.turn) for head in near] == [(2, Turn())]
    assert near[0].distance == pytest.approx(0, abs=5e-3)


def test_a_head_of_other_proportions_is_of_no_same_view():
    head = long_head()
    square = Donor(head.image[:, :, ::2], head.mask[:, ::2], head.foreground[:, ::2])
    assert Looks([look(square)]).nearest(look(head)) == []
    distances = [np.linalg.norm(look(square).vector(turn) - look(head).vector()) for turn in turns(2)]
    assert min(distances) > UNLIKE


def test_volumes_are_mirrored_and_never_turned():
    assert turns(3) == (Turn(0, False), Turn(0, True))


@pytest.mark.parametrize(("kept", "seen"), [(1.0, True), (0.7, True), (0.5, False), (0.0, False)])
def test_a_tumor_that_lost_its_contrast_on_the_way_is_refused(kept, seen):
    head = pair(1)[0]
    region = grow(head.mask, 3) & head.foreground
    level = np.median(head.image[:, grow(region, 4) & ~region & head.foreground])

    def with_contrast(share: float) -> Donor:
        image = np.where(head.mask, level * (1 + 2 * share), head.image).astype(np.float32)
        return Donor(image, head.mask, head.foreground)

    if seen:
        check_seen(with_contrast(1.0), with_contrast(kept), region, 3)
    else:
        with pytest.raises(NoRoom, match="hardly be seen"):
            check_seen(with_contrast(1.0), with_contrast(kept), region, 3)


def test_a_transplant_asks_whether_the_tumor_is_seen(monkeypatch):
    donor, host = pair(1)[0], pair(2)[1]
    monkeypatch.setattr(insertion, "_KEPT", 9.0)
    with pytest.raises(NoRoom, match="hardly be seen"):
        transplant(host.image, host.foreground, donor, np.random.default_rng(0), "alpha")
    assert transplant(host.image, host.foreground, donor, np.random.default_rng(0), "alpha", control=True).region.any()


def at_distance(head: Look, distance: float, plane: str) -> Look:
    """A head of the same proportions that far away."""
    noise = np.random.default_rng(0).standard_normal(head.cells.shape)
    noise -= noise.mean() + head.cells * (noise * head.cells).mean()
    noise /= noise.std()
    like = 1 - distance**2 / 2
    cells = like * head.cells + np.sqrt(1 - like**2) * noise
    return Look(cells.astype(np.float32), head.sides, plane)


@pytest.mark.parametrize(
    ("plane", "distance", "taken"),
    [
        ("axial", UNLIKE - 0.03, True),
        ("axial", UNLIKE + 0.03, False),
        ("coronal", 0.1, False),
        ("", UNKNOWN_PLANE - 0.03, True),
        ("", UNKNOWN_PLANE + 0.03, False),
    ],
)
def test_planes_that_are_named_have_to_be_one_and_others_to_be_nearer(plane, distance, taken):
    head = pair(2)[1]
    own = Look.of(head.image, head.foreground, "axial")
    other = at_distance(own, distance, plane)
    near = Looks([other]).nearest(own)
    assert [round(found.distance, 2) for found in near if found.turn == Turn()] == (
        [round(distance, 2)] if taken else []
    )
    unnamed = Looks([other]).nearest(Look.of(head.image, head.foreground))
    assert (Turn() in [found.turn for found in unnamed]) == (distance < UNKNOWN_PLANE)


def test_volumes_have_no_plane_whatever_their_names_say():
    volume = pair(2, slices=4)[1]
    looks = [Look.of(volume.image, volume.foreground, plane) for plane in ("axial", "sagittal")]
    assert Looks([looks[1]]).nearest(looks[0], 1)[0].distance == pytest.approx(0, abs=5e-3)
