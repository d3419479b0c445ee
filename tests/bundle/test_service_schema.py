"""What the service says of itself is what it does: requests drawn from its OpenAPI description, valid and not."""

from __future__ import annotations

import io

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service's packages are not installed (extra 'service')")
pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra 'dev')")
import hypothesis
import schemathesis
from hypothesis import strategies
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from bundle.predictor import Predictor
from bundle.service import create_app
from tests.scans import head, oblique, write_overlay

EXAMPLES = 250
CHECKS = (not_a_server_error, status_code_conformance, response_schema_conformance)


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    predictor = Predictor(overlay=write_overlay(tmp_path_factory.mktemp("schema")))
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(predictor, hosts=["testserver"]))


def images() -> list[bytes]:
    """A picture and a small volume."""
    volume, buffer = head(), io.BytesIO()
    Image.fromarray(np.clip(volume[:, :, 4].T, 0, 255).astype(np.uint8)).save(buffer, format="PNG")
    return [buffer.getvalue(), nib.Nifti1Image(volume[:, :, 3:6], oblique()).to_bytes()]


@pytest.mark.parametrize("route", ["/health", "/model", "/predict_multitask", "/explain"])
def test_requests_drawn_from_the_description_are_answered_as_it_says(schema, route):
    method = "POST" if route in ("/predict_multitask", "/explain") else "GET"
    operation = schema[route][method]
    answered: dict[int, int] = {}
    # Text drawn for a file is no image: most requests get one, so that the other fields are reached.
    image = strategies.sampled_from([None, *images()])

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(case=operation.as_strategy() | negative(operation), image=image)
    def ask(case, image):
        if image is not None and isinstance(case.body, dict):
            case.body["image"] = image
            case.body.pop("foreground", None)
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        answered[response.status_code] = answered.get(response.status_code, 0) + 1

    ask()
    assert all(status < 500 for status in answered), answered
    assert answered.get(200, 0) > 0
    if method == "POST":
        assert answered.get(422, 0) > 0


def negative(operation):
    """Requests that break the description."""
    if operation.method.upper() == "GET":  # has nothing to break
        return operation.as_strategy()
    return operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
