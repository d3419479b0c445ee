"""Which cases are shown, and what a row of measures holds."""

from __future__ import annotations

import torch

from scripts.explanations import choose_cases


def case(name, patient, area, diagnosis=1):
    label = torch.zeros(1, 8, 8)
    label.flatten()[:area] = 1
    return {"name": name, "patient": patient, "group": "", "label": label, "diagnosis": diagnosis}


def test_cases_are_chosen_from_small_to_large_tumors_of_different_patients_then_tumor_free():
    cases = [case(f"a{i}", "a", 10 + i) for i in range(6)] + [case("b0", "b", 2), case("c0", "c", 40)]
    cases += [case("h1", "h1", 0, 0), case("h0", "h0", 0, 0), case("h2", "h2", 0, 0)]
    chosen = choose_cases(cases, tumors=3, free=2)
    assert chosen[0] == "b0"
    assert chosen[1].startswith("a")
    assert chosen[2] == "c0"
    assert chosen[3:] == ["h0", "h2"]


def test_a_patient_is_shown_twice_only_when_there_is_no_other():
    chosen = choose_cases([case(f"a{i}", "a", 10 + i) for i in range(5)], tumors=3)
    assert len(chosen) == len(set(chosen)) == 3


def test_fewer_cases_than_asked_are_all_shown():
    assert choose_cases([case("a0", "a", 5)], tumors=6) == ["a0"]
