"""The predictor in other processes, and beside another bundle whose packages have the same names."""

from __future__ import annotations

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import joblib
import numpy as np
import pytest

from bundle.predictor import Predictor
from tests.scans import ROOT, head, save_picture, write_overlay


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return Predictor(overlay=write_overlay(tmp_path_factory.mktemp("elsewhere")))


def same(a, b):
    return a.to_json() == b.to_json() and np.array_equal(a.mask, b.mask) and np.array_equal(a.evidence, b.evidence)


def test_a_predictor_pickles_and_answers_the_same(predictor, tmp_path):
    picture = save_picture(tmp_path / "a.png", head()[:, :, 4])
    copy = pickle.loads(pickle.dumps(predictor))
    assert same(copy.predict(picture), predictor.predict(picture))
    assert np.array_equal(copy.explain(picture, "hirescam").map, predictor.explain(picture, "hirescam").map)
    joblib.dump(predictor, tmp_path / "predictor.joblib")
    assert same(joblib.load(tmp_path / "predictor.joblib").predict(picture), predictor.predict(picture))


def test_another_process_answers_the_same(predictor, tmp_path):
    pictures = [save_picture(tmp_path / f"{k}.png", head()[:, :, k]) for k in (3, 5)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(predictor.predict, pictures))
    assert [p.probability for p in found] == pytest.approx([predictor.predict(p).probability for p in pictures])


OTHER = """
import sys
from pathlib import Path

own, other, overlay, image, first = sys.argv[1:]


def ours():
    sys.path.insert(0, own)
    from bundle.predictor import Predictor
    sys.path.remove(own)
    return Predictor(overlay=overlay)


def theirs():
    sys.path.insert(0, other)
    import scripts.theirs
    sys.path.remove(other)
    return scripts.theirs.answer()


def forget():  # what MONAI Label does between two bundles
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


if first == "ours":
    predictor = ours()
    forget()
    assert theirs() == "theirs"
else:
    assert theirs() == "theirs"
    forget()
    predictor = ours()
found = predictor.predict(image)
print(f"{found.probability:.6f}", found.mask.shape, predictor.explain(image, "hirescam").map.shape)
"""


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_beside_another_bundle_in_one_process_in_either_order(predictor, tmp_path, first):
    other = tmp_path / "other"
    for package, text in (("scripts", "def answer():\n    return 'theirs'\n"), ("transforms", "")):
        (other / package).mkdir(parents=True)
        (other / package / "__init__.py").touch()
        (other / package / "theirs.py").write_text(f"import transforms\n{text}" if text else "")
    picture = save_picture(tmp_path / "a.png", head()[:, :, 4])
    overlay = predictor.weights.parent / "network.yaml"
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(ROOT), str(other), str(overlay), str(picture), first],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    probability, *shapes = done.stdout.split(maxsplit=1)
    assert float(probability) == pytest.approx(predictor.predict(picture).probability, abs=1e-5)
    assert shapes == ["(46, 40) (46, 40)\n"]
