"""The CLAIM 2024 checklist: 44 items, answers that equal the files, and "not known" for all else."""

from __future__ import annotations

import re

import pytest

from scripts.report.claim2024 import ITEMS, NOT_KNOWN, checklist, markdown
from scripts.runs.documents import Document
from scripts.runs.reading import Run
from tests.report.pages import look_up

# What no file of a run holds.
OF_THE_AUTHORS = (2, 3, 4, 5, 8, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 34, 36, 40, 41, 44)


@pytest.fixture(scope="module")
def answers(demo):
    return checklist(Run(demo, "ours", "TumorLens", "test"), Document(demo, "data.json"))


def test_there_are_44_items_in_the_order_of_the_checklist():
    assert len(ITEMS) == 44
    by_number = dict(enumerate((name for _, name in ITEMS), start=1))
    assert by_number[20] == "Level at which partitions are disjoint"
    assert by_number[33] == "Testing on external data"
    assert by_number[44] == "Funding"


def test_what_no_file_holds_is_not_known(answers):
    unknown = {answer.number for answer in answers if answer.text == NOT_KNOWN}
    assert unknown >= set(OF_THE_AUTHORS)
    assert all(answer.files == [] for answer in answers if answer.text == NOT_KNOWN)


def test_answers_equal_the_files_that_they_name(demo, answers):
    text = {answer.number: answer.text for answer in answers}
    dice = look_up(demo, "ours/evaluation/metrics.json#/test/overall/segmentation/dice")
    assert text[37].startswith("Dice {:.3f} [{:.3f}, {:.3f}]; IoU ".format(dice["mean"], *dice["ci95"]))
    auc = look_up(demo, "ours/evaluation/metrics.json#/test/overall/classification/roc_auc")
    assert f"ROC-AUC {auc:.3f} [" in text[38]
    assert text[26] == "epoch 7 of stage3_joint, by dice on validation (0.880)"
    assert text[32] == "36 cases of the test part"
    assert text[35].startswith("included images, training: 40 tumor, 20 no tumor; validation: ")
    assert text[23] == "Python 3.11.2, torch 2.13.0, monai 1.6.1"
    assert text[30] == "noise, JPEG, each at several strengths, on 36 cases"
    assert text[39] == "shown with image, masks and evidence: 1 lowest Dice, 1 wrong diagnoses"
    assert "0123456789abcdef" in text[43]
    for answer in answers:
        assert all((demo / file).is_file() for file in answer.files), answer


def test_another_datalist_is_external_data(demo):
    run = Run(demo, "ours", "TumorLens", "test")
    other = Document.of(demo, demo / "ours/evaluation_b/metrics.json", {"provenance": {"own": False, "datalist": "b"}})
    run.elsewhere = [other]
    answer = checklist(run, Document(demo, "data.json"))[32]
    assert (answer.text, answer.files) == ("b", ["ours/evaluation_b/metrics.json"])


def test_what_the_datalist_left_out_is_said(demo):
    data = Document(demo, "data.json")
    data.content = {**data.content, "left_out": {"slices with less than 0.1 of head": 1234}}
    answers = checklist(Run(demo, "ours", "TumorLens", "test"), data)
    assert answers[7].text == "left out when the datalist was built: 1,234 slices with less than 0.1 of head"
    assert answers[34].text.endswith("; excluded: 1,234 slices with less than 0.1 of head")


def test_markdown_has_a_row_an_item(answers):
    text = markdown(answers, "TumorLens | x")
    numbers = re.findall(r"^\| (\d+) \|", text, re.MULTILINE)
    assert numbers == [str(number) for number in range(1, 45)]
    known = sum(answer.text != NOT_KNOWN for answer in answers)
    assert f"{known} of 44 items are answered" in text
