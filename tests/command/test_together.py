"""Two bundles in one process, as MONAI Label keeps them: in either order each has modules of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.command.locations import ROOT

PROGRAM = """
import sys
def load(root):
    sys.path.insert(0, root)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    import scripts
    import transforms
    assert scripts.__path__[0] == root + "/scripts", (root, scripts.__path__)
    assert transforms.__path__[0] == root + "/transforms", (root, transforms.__path__)
    sys.path.remove(root)
    return transforms
first = load(sys.argv[1])
assert load(sys.argv[1]) is first  # unloaded and loaded again, nothing is made twice
assert load(sys.argv[2]) is not first
assert load(sys.argv[1]).__path__ == first.__path__
assert sum(getattr(finder, "__name__", "") == "_NextBundle" for finder in sys.meta_path) == 1
"""


@pytest.mark.parametrize("ours_first", [True, False])
def test_bundles_in_either_order_have_their_own_modules(ours_first, tmp_path):
    other = tmp_path / "other"
    for package in ("scripts", "transforms"):
        (other / package).mkdir(parents=True)
        (other / package / "__init__.py").touch()
    roots = [str(ROOT), str(other)][:: 1 if ours_first else -1]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *roots], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_are_written_as_they_are_in_the_c_locale(tmp_path):
    folder = tmp_path / "Größe"
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C"}
    environment.pop("PYTHONUTF8", None)
    done = subprocess.run(
        [sys.executable, "-m", "scripts", "audit", "--dataset_dir", str(folder), "--datalist_file", "a", "--ouÿ", "b"],
        cwd=ROOT, capture_output=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 2
    assert "error: audit has no argument --ouÿ; nearest: --out" in done.stderr.decode("utf-8")
