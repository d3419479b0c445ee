"""Verdict, mask and evidence of one answer never contradict each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.inference.answer import NO_TUMOR, NOT_ASSESSED, SMALL_SHARE, TUMOR, UNCERTAIN, Raw, join, overlaps
from scripts.inference.postprocessing import RestoreScand
from scripts.inference.scans import SCAN, Placement, Scan

HEAD = 10_000


def raw(probability=0.9, mask=200, evidence=1.0, overlap=True):
    return Raw(probability, 0.5, mask, HEAD, evidence, overlap)


def test_no_answer_contradicts_itself_whatever_the_network_says():
    seen = set()
    for p, mask, evidence, overlap in itertools.product(
        (0.0, 0.49, 0.5, 1.0), (0, 1, 20, 21, 5000, None), (0.0, 0.1, 9.0, None), (True, False, None)
    ):
        answer = join(raw(p, mask, evidence, overlap))
        seen.add(answer.verdict)
        if answer.verdict == TUMOR:
            assert p >= 0.5
            assert mask != 0
            assert evidence != 0
            assert not (mask and evidence and overlap is False)
            assert not answer.empty
        elif answer.verdict == NO_TUMOR:
            assert p < 0.5
            assert answer.empty
        else:
            assert answer.reasons
        assert bool(answer.reasons) == (answer.verdict == UNCERTAIN)
    assert seen == {TUMOR, NO_TUMOR, UNCERTAIN}


@pytest.mark.parametrize(
    ("given", "verdict", "reason"),
    [
        (raw(), TUMOR, ""),
        (raw(mask=0), UNCERTAIN, "the mask is empty"),
        (raw(evidence=0.0), UNCERTAIN, "no evidence"),
        (raw(overlap=False), UNCERTAIN, "different places"),
        (raw(0.1, mask=0), NO_TUMOR, ""),
        (raw(0.1, mask=int(SMALL_SHARE * HEAD)), NO_TUMOR, ""),
        (raw(0.1, mask=int(SMALL_SHARE * HEAD) + 1), UNCERTAIN, "the mask holds 0.21% of the head"),
        (raw(0.5), TUMOR, ""),
        (Raw(0.9, 0.5, None, HEAD, 2.0, None), TUMOR, ""),
        (Raw(0.9, 0.5, 40, HEAD, None, None), TUMOR, ""),
    ],
)
def test_the_rule_case_by_case(given, verdict, reason):
    answer = join(given)
    assert answer.verdict == verdict
    assert reason in answer.in_words


def test_raw_contradictions_count_any_mask_beside_a_verdict_of_no_tumor():
    assert raw(0.1, mask=1).contradictions == ["the verdict is no tumor, but the mask holds 0.01% of the head"]
    assert raw().contradictions == raw(0.1, mask=0).contradictions == []


def test_overlap_needs_evidence_above_zero_in_the_mask():
    mask = np.array([[1, 0], [0, 0]])
    assert overlaps(mask, np.array([[0.1, 0.0], [0.0, 0.0]]))
    assert not overlaps(mask, np.array([[0.0, 0.5], [0.5, 0.5]]))


def test_an_objection_makes_every_answer_not_assessed():
    for given in (raw(), raw(0.1, mask=0), raw(mask=0)):
        answer = join(given, ["the image is a photograph"])
        assert (answer.verdict, answer.detected, answer.empty) == (NOT_ASSESSED, None, True)
        assert answer.in_words == "not assessed: the image is a photograph"
    assert [join(x).detected for x in (raw(), raw(0.1, mask=0), raw(mask=0))] == [True, False, None]


def restored(tumor, mask_cells, evidence, steps=None, **item):
    """Outputs of a network on a picture of 8 x 8 pixels, all of them head, brought to its own grid."""
    scan = Scan("a.png", True, [8, 8], np.eye(4).tolist(), "", 1, [8, 8])
    scan.placements.append(Placement(0, [[0, 8]] * 2, [8, 8], [0, 0], 1.0, [[0, 8]] * 2))
    image = MetaTensor(torch.ones(1, 8, 8), meta={SCAN: scan.to_json()})
    seg = torch.zeros(1, 2, 8, 8)
    seg[:, 1].view(-1)[:mask_cells] = 1
    seg[:, 0] = 1 - seg[:, 1]
    output = {
        "seg": seg, "probability": torch.tensor([[1 - tumor, tumor]]), "evidence": torch.full((1, 1, 8, 8), evidence),
        "threshold": torch.tensor([0.5]), "temperature": torch.tensor([1.0]),
    }  # fmt: skip
    return RestoreScand(**(steps or {}))({"image": image, "pred": output, **item})


def test_postprocessing_writes_the_joined_answer_and_keeps_the_raw_one():
    done = restored(0.9, 20, 1.0)
    assert (done["result"]["verdict"], done["result"]["tumor_voxels"]) == ("tumor", 20)
    assert (done["result"]["tumor_detected"], done["result"]["predicted_class"]) == (True, "class 1")
    done = restored(0.2, 0, 1.0)
    assert (done["result"]["verdict"], done["result"]["predicted_class"]) == ("no tumor", "class 0")
    assert done["result"]["evidence_maximum"] == 0
    assert done["result"]["raw"]["evidence_maximum"] == pytest.approx(1.0, abs=1e-6)
    assert not done["evidence"].any()
    assert done["raw_evidence"].all()
    done = restored(0.2, 20, 1.0)
    assert done["result"]["reasons"] == ["the verdict is no tumor, but the mask holds 31.25% of the head"]
    assert (done["result"]["tumor_detected"], done["result"]["predicted_class"]) == (None, None)
    assert done["result"]["raw"]["predicted_class"] == "class 0"
    assert int(done["pred"].sum()) == 20
    assert restored(0.9, 0, 1.0)["result"]["verdict"] == restored(0.9, 20, -1.0)["result"]["verdict"] == "uncertain"


def test_images_outside_the_scope_are_not_assessed_unless_asked_for():
    def outside(*_):
        return {"scope": 2.0}, [{"code": "outside_scope", "message": "unlike the training"}]

    steps = {"scores": [outside]}
    done = restored(0.9, 20, 1.0, steps)
    assert (done["result"]["verdict"], done["result"]["reasons"]) == ("not assessed", ["unlike the training"])
    assert not done["pred"].any()
    assert int(done["raw_pred"].sum()) == done["result"]["raw"]["tumor_voxels"] == 20
    for asked in (
        restored(0.9, 20, 1.0, {**steps, "assess_anyway": True}),
        restored(0.9, 20, 1.0, steps, assess_anyway=True),
    ):
        assert asked["result"]["verdict"] == "tumor"
        assert [flag["code"] for flag in asked["result"]["flags"]] == ["outside_scope"]


def test_a_head_that_was_not_trained_leaves_the_mask_as_it_is():
    done = restored(0.1, 20, 1.0, {"trained": ["segmentation"]})
    assert done["result"]["verdict"] == "not assessed"
    assert "was not trained" in done["result"]["reasons"][0]
    assert int(done["pred"].sum()) == 20
    untrained = restored(0.9, 0, 1.0, {"trained": ["classification"]})  # the mask is that of random weights
    assert untrained["result"]["verdict"] == "tumor"
