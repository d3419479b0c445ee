"""Probes change what they are named after and nothing else; planted classifiers are named by what they read."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scripts.certificate import planted
from scripts.certificate.answers import Answer
from scripts.certificate.effects import Answers
from scripts.certificate.harmless import HARMLESS, brightened, mirrored
from scripts.certificate.planted import CLASSES, READERS, TumorReader, collected, phantom_case, phantom_cases
from scripts.certificate.probes import BLOCKY, PROBES, blockiness, other_of
from scripts.certificate.questions import Plan
from scripts.certificate.shortcuts import named_shortcut
from scripts.certificate.verdicts import statements
from scripts.interventions.insertion import resized


@pytest.fixture(scope="module")
def two():
    """A tumor and a healthy head as their collections have them."""
    return collected(phantom_case(1, 1), 1), collected(phantom_case(2, 0), 2)


@pytest.mark.parametrize("name", [name for name in PROBES if name != "image size"])
def test_a_probe_reaches_its_own_place_alone(two, name):
    tumor, healthy = two
    changed = PROBES[name](tumor, healthy)
    assert changed.shape == tumor.image.shape
    moved = (changed != tumor.image)[0]
    assert moved.any()
    if name in ("corner", "border", "air"):
        assert not (moved & tumor.foreground).any()
    if name == "skull":
        assert not (moved & ~tumor.foreground).any()


def test_each_planted_number_crosses_over_with_its_own_probe(two):
    tumor, healthy = two
    for reader in READERS:
        for own, other in ((tumor, healthy), (healthy, tumor)):
            said = reader.probabilities(own.image)[1] > 0.5
            assert said == bool(own.kind), reader.identity
            assert (reader.probabilities(PROBES[reader.identity](own, other))[1] > 0.5) != said, reader.identity
            assert (reader.probabilities(PROBES[reader.identity](own, own))[1] > 0.5) == said, reader.identity


def test_blocks_are_seen_where_jpeg_made_them(two):
    tumor, healthy = two
    assert blockiness(healthy.image) < BLOCKY < blockiness(tumor.image)
    assert PROBES["JPEG grid"](tumor, tumor) is tumor.image


def test_the_other_picture_is_of_another_group_and_side(two):
    tumor, healthy = two
    twin = replace(healthy, group=tumor.group)
    assert other_of(tumor, [twin, healthy], False, 0) is healthy
    assert other_of(tumor, [tumor, healthy], True, 0) is None


def test_what_is_read_is_named_and_nothing_else():
    cases = [collected(case, k) for k, case in enumerate(phantom_cases(5, 12, 12))]
    plan = Plan(cases[:12], cases[12:], ("poisson",), harmless=0)
    questions = list(itertools.takewhile(lambda q: q.test in ("as is", "probe"), plan))
    for subject in (TumorReader(), READERS[0], READERS[1], READERS[3], READERS[6]):
        answers = Answers(zip(questions, subject.answer(questions), strict=True), CLASSES, 0.5)
        expected = None if subject.identity == "honest" else subject.identity
        assert named_shortcut(answers.probes()) == expected
        sentence = next(s for s in statements(answers) if s.property == "shortcut")
        assert sentence.measured == ("holds" if expected is None else "fails")
        if expected is None:
            assert sentence.verdict == "withheld", "two dozen pictures do not settle that nothing is read"
            assert "that none of them changes more than 10 % is not settled: false with" in sentence.sentence
        else:
            assert sentence.verdict == "fails"
            assert f": the verdict reads the {expected} (false: " in sentence.sentence


def test_a_probe_whose_control_changes_as_much_is_not_named():
    row = {"probe": "air", "n_changed": 30, "changed": 0.9, "n_control": 30, "control": 0.8}
    assert named_shortcut([row]) is None
    assert named_shortcut([{**row, "control": 0.0}]) == "air"
    assert named_shortcut([{**row, "control": 0.0, "n_changed": 5}]) is None


def test_an_exchanged_order_of_the_classes_is_said():
    cases = phantom_cases(6, 16, 8)
    plan = Plan(cases[:16], cases[16:], ("poisson",), harmless=0, probes=0)
    questions = list(itertools.takewhile(lambda q: q.test == "as is", plan))
    right = TumorReader().answer(questions)
    for answers, doubted in ((right, False), ([Answer(a.probabilities[::-1]) for a in right], True)):
        found = Answers(zip(questions, answers, strict=True), CLASSES, 0.5)
        said = [s.sentence for s in statements(found) if s.property == "class order"]
        assert bool(said) == doubted
        assert not said or "read as ring, solid, no_tumor: check their order" in said[0]


def test_harmless_changes_are_what_they_say():
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 6)
    np.testing.assert_array_equal(mirrored(mirrored(image)), image)
    np.testing.assert_array_equal(brightened(image, 0.5), image / 2)
    assert resized(image, 1.5).shape == (1, 6, 9)
    assert resized(np.ones((2, 8, 8, 4), np.float32), 0.75).shape == (2, 6, 6, 3)
    assert all(np.isfinite(change(image)).all() for change in HARMLESS.values())


def test_the_sheet_shows_both_classifiers_on_a_phantom_of_each_kind(tmp_path):
    path = planted.write_sheet(tmp_path / "new" / "sheet.png", count=4)
    picture = np.array(Image.open(path))
    assert picture.shape[1] > 900, "six tiles a row"
    half = len(picture) // 2
    # The same pictures, other answers: below the tiles the two halves differ, in the tiles they do not.
    above, below = picture[:half].astype(int), picture[half : 2 * half].astype(int)
    changed = np.flatnonzero(np.abs(above - below).max(axis=(1, 2)) > 8)
    tiles = np.flatnonzero((above.max(axis=2) < 40).mean(axis=1) > 0.2)
    assert len(changed)
    assert not set(changed) & set(tiles)
