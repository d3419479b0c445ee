"""Figures of a page with the place in the file they come from."""

from __future__ import annotations

import pytest

from scripts.runs.documents import Document, format_number


def test_broken_json_and_missing_key_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json can not be read"):
        Document(tmp_path, "a.json")
    (tmp_path / "b.json").write_text('{"a/b": [1, "x"]}')
    document = Document(tmp_path, "b.json")
    assert document.number("/a~1b/0", "count") == (
        '<span class="num" data-source="b.json#/a~1b/0" data-value="1" data-kind="count">1</span>'
    )
    with pytest.raises(ValueError, match=r"b\.json has no '/a~1b/2'"):
        document.number("/a~1b/2", "count")
    with pytest.raises(ValueError, match="expected a number, got 'x'"):
        document.number("/a~1b/1", "count")


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (None, "ratio", "n/a"),
        (0.84449, "ratio", "0.844"),
        (0.99999, "ratio", "> 0.999"),
        (1.0, "ratio", "1.000"),
        (0, "percent", "0 %"),
        (0.0004, "percent", "< 0.1 %"),
        (0.0005, "percent", "0.1 %"),
        (0.99949, "percent", "99.9 %"),
        (0.9996, "percent", "> 99.9 %"),
        (1, "percent", "100 %"),
        (12345, "count", "12,345"),
        (3.14159, "decimal", "3.1"),
        (0.00012345, "plain", "0.0001234"),
    ],
)
def test_numbers_are_written_without_pretending(value, kind, text):
    assert format_number(value, kind) == text
    with pytest.raises(ValueError, match="kind is one of"):
        format_number(1, "other")
