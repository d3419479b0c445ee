"""Requests to the service and the page."""

from __future__ import annotations

from bundle.uploads import UploadLimits
from transforms.limits import ReadLimits

LIMITS = UploadLimits(1 << 20, 4 << 20, 16, ReadLimits(pixels=1 << 16, voxels=1 << 18, side=512))
HOST = "http://127.0.0.1"


def post(client, data, route="/predict_multitask", name="image.png", **form):
    return client.post(route, files={"image": (name, data)}, data=form)
