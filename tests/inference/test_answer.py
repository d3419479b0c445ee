"""Verdict, mask and evidence of one answer never contradict each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from scripts.inference.answer import NO_TUMOR, SMALL_SHARE, TUMOR, UNCERTAIN, Raw, join, overlaps

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
