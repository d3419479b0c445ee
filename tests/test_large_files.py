from __future__ import annotations

import pytest

from tests.large_files import ALLOWED, ROOT, git, large_files, main


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "-q")
    return tmp_path


def write(repository, name: str, size: int, add: bool = True) -> None:
    path = repository / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    if add:
        git(repository, "add", name)


def test_tracked_files_over_the_limit_are_named(repository, capsys):
    write(repository, "just fits.bin", 1_000_000)
    write(repository, "docs/picture ü.png", 1_000_001)
    write(repository, "untracked.bin", 5_000_000, add=False)
    write(repository, ALLOWED[0], 2_000_000)
    assert large_files(repository) == {"docs/picture ü.png": 1_000_001}
    assert main(repository) == 1
    assert capsys.readouterr().err == "docs/picture ü.png: 1.0 MB, more than 1 MB; keep it out of git\n"


def test_what_counts_is_what_would_be_committed(repository):
    write(repository, "a.bin", 2_000_000)
    (repository / "a.bin").write_bytes(b"small again, but not staged")
    assert large_files(repository) == {"a.bin": 2_000_000}
    git(repository, "add", "a.bin")
    assert large_files(repository) == {}
    assert main(repository) == 0


def test_folder_without_git_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match=r"git ls-files in .*: .*not a git repository"):
        large_files(tmp_path)


def test_this_repository_holds_no_large_file():
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: nothing is tracked")
    assert large_files() == {}
