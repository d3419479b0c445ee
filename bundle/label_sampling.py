"""Which image to label next: scores the unlabeled images of a running MONAI Label server by how unsure the bundle is.

::

    python -m scripts label-next

The score of an image is the entropy of its calibrated class probabilities, 0 sure to 1 undecided; of a volume the mean
over the slices that were read. It is written to the server's datastore, where the strategy ``most_uncertain`` of the
prepared app (`bundle.label`) takes it from.
"""

from __future__ import annotations

import argparse
import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.command.verbs import Outcome

# Where monailabel's strategy Epistemic looks for the score.
KEY = "epistemic_entropy"
LONGEST = 600.0  # seconds for one image


def entropy(probabilities: Sequence[float]) -> float:
    """Entropy of a distribution over its largest possible value.

    >>> entropy([0.5, 0.5]), entropy([1.0, 0.0])
    (1.0, 0.0)
    """
    return sum(-p * math.log(p) for p in probabilities if p > 0) / math.log(len(probabilities))


def uncertainty(params: Mapping[str, Any]) -> float:
    """Score of an image from the ``params`` of its inference, in [0, 1]."""
    slices = [p for p in params.get("slice_probabilities") or [] if p is not None]
    if not slices:
        return entropy(list(params["class_probabilities"].values()))
    return sum(entropy([p, 1 - p]) for p in slices) / len(slices)


class Server:
    """A running MONAI Label server.

    Args:
        url: of the server.

    Raises:
        ValueError: when it does not answer, or refuses; says with what.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000"):
        self.url = url.rstrip("/")

    def send(self, method: str, path: str, body: bytes | None, content_type: str, **query: str) -> bytes:
        """Body of the answer."""
        address = f"{self.url}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
        call = urllib.request.Request(address, data=body, method=method, headers={"Content-Type": content_type})
        try:
            with urllib.request.urlopen(call, timeout=LONGEST) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise ValueError(f"{method} {address}: {error.code} {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise ValueError(f"no MONAI Label server answers at {self.url}: {error}") from error

    def request(self, method: str, path: str, form: Mapping[str, str] | None = None, **query: str) -> bytes:
        """Body of the answer; ``form`` is sent url-encoded."""
        body = urllib.parse.urlencode(form).encode() if form is not None else None
        return self.send(method, path, body, "application/x-www-form-urlencoded", **query)

    def json(self, method: str, path: str, form: Mapping[str, str] | None = None, **query: str) -> Any:
        """Body of the answer, parsed."""
        return json.loads(self.request(method, path, form, **query))

    def unlabeled(self) -> list[str]:
        """Ids of the images without a final label."""
        objects = self.json("GET", "/datastore/", output="all")["objects"]
        return sorted(name for name, entry in objects.items() if "final" not in entry["labels"])

    def infer(self, model: str, image: str, **params: Any) -> dict[str, Any]:
        """The ``params`` of an inference."""
        form = {"params": json.dumps(params)}
        return self.json("POST", f"/infer/{urllib.parse.quote(model)}", form, image=image, output="json")


def score_images(server: Server, model: str) -> list[tuple[str, float]]:
    """Score all unlabeled images, write the scores to the datastore, and return them, highest first."""
    scores = {}
    for image in server.unlabeled():
        scores[image] = uncertainty(server.infer(model, image))
        server.json("PUT", "/datastore/image/info", {"info": json.dumps({KEY: scores[image]})}, image=image)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def execute(arguments: argparse.Namespace) -> Outcome:
    """The verb ``label-next``."""
    scores = score_images(Server(arguments.server), arguments.name)
    lines = [f"{score:.4f}  {image}" for image, score in scores]
    lines.append(f"next to label: {scores[0][0]}" if scores else "every image is labeled")
    return Outcome("\n".join(lines), [f"scores in the datastore of {arguments.server}"])
