"""Lines are counted where files moved to."""

from __future__ import annotations

from pathlib import Path

from benchmarks import lines


def test_a_file_counts_before_where_it_moved_to(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "ROOT", tmp_path)
    lines.git("init", "-q")
    commit = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x")

    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Path(tmp_path, path).write_text(text, encoding="utf-8")

    text = "".join(f"x{k} = {k}\n" for k in range(20))
    write("scripts/scope.py", text)
    write("scripts/page.html", "no Python\n")
    lines.git("add", "-A")
    lines.git(*commit)
    (tmp_path / "scripts" / "inference").mkdir()
    lines.git("mv", "scripts/scope.py", "scripts/inference/scope.py")
    write("scripts/inference/scope.py", text + "y = 0\n")
    write("bundle/page.py", "z = 1\n")
    lines.git("add", "-A")
    lines.git(*commit)
    moved = lines.moves("HEAD^", "HEAD")
    assert moved == {"scripts/scope.py": "scripts/inference/scope.py"}
    assert lines.lines("HEAD^", moved) == {"scripts/inference": 20}
    assert lines.lines("HEAD^", {}) == {"scripts": 20}
    assert lines.lines("HEAD", {}) == {"scripts/inference": 21, "bundle": 1}
