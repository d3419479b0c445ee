"""The samples are drawn, the same every time, and the shipped weights answer them rightly."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from bundle.predictor import Predictor
from bundle.samples import HEALTHY, HEALTHY_VOLUME, PICTURE, SAMPLES, VOLUME, draw_samples

MARGIN = 0.1


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    draw_samples(folder)
    return folder


def values(path):
    return np.asarray(nib.load(path).dataobj if path.suffix == ".gz" else Image.open(path)).astype(int)


@pytest.mark.parametrize("pair", [(PICTURE, HEALTHY), (VOLUME, HEALTHY_VOLUME)])
def test_samples_are_one_head_with_and_without_a_tumor(samples, pair):
    sick, healthy = (values(samples / name) for name in pair)
    assert sick.shape == healthy.shape
    assert 0.002 < (np.abs(sick - healthy) > 0.25 * sick.max()).mean() < 0.1
    assert np.corrcoef(sick.ravel(), healthy.ravel())[0, 1] > 0.9


def test_samples_are_the_same_every_time(samples, tmp_path):
    draw_samples(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SAMPLES)
    for name in SAMPLES:
        assert np.array_equal(values(tmp_path / name), values(samples / name))


def test_the_shipped_weights_answer_every_sample_rightly(samples):
    predictor = Predictor()
    for name, tumor in SAMPLES.items():
        prediction = predictor.predict(samples / name, assess_anyway=True)
        assert prediction.detected is tumor, name
        assert abs(prediction.probability - prediction.threshold) > MARGIN, name
    assert not predictor.explain(samples / PICTURE).empty
