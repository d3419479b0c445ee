"""What runs the network's passes in less time on a CPU: torch, ONNX Runtime, and what was tried beside them.

    python -m benchmarks.backends [--threads 1] [--rounds 9] [--clock cpu] [--tried] [--out FILE]

The shipped network over prepared phantoms, one image and eight at once: time an image, how many times as fast as torch
in the same round (median), and the largest difference of the class logits. Then a picture from file to results, by the
verb's own code. With ``--tried`` also ONNX Runtime on a whole batch, channels_last, `torch.compile` (a minute
more; needs a C++ compiler) and, where it is installed, OpenVINO.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import CLOCKS, add_options, machine, set_threads, timed
from scripts import phantoms
from scripts.command import errors
from scripts.command.files import write_json
from scripts.command.machine import tune_process
from scripts.inference.backends import BACKENDS, OnnxNetwork, trace_onnx
from scripts.inference.batches import BatchPrediction
from scripts.inference.pipeline import Inference, slices_first

BATCHES = (1, 8)
Pass = Callable[[torch.Tensor], Any]


def passes(network: Any, stack: torch.Tensor, tried: bool) -> dict[str, Pass]:
    """Ways to the class logits of a batch."""
    ours = OnnxNetwork(network, stack.shape[2:])
    backends: dict[str, Pass] = {
        "torch": lambda x: network.multitask(x)["cls"],
        "onnxruntime": lambda x: ours.multitask(x)["cls"],
    }
    if not tried:
        return backends

    class Outputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = copy.deepcopy(network)

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = self.network.multitask(image)
            return output["seg"], output["cls"], output["evidence"]

    content = BytesIO()
    module = Outputs().eval()
    trace_onnx(module, stack[:2], ["seg", "cls", "evidence"], content)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content.getvalue(), options, providers=["CPUExecutionProvider"])
    backends["onnxruntime, whole batch"] = lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[1])
    last = Outputs().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    backends["channels_last"] = lambda x: last(x.contiguous(memory_format=torch.channels_last))[1]
    compiled = torch.compile(Outputs().eval())
    backends["torch.compile"] = lambda x: compiled(x)[1]
    if importlib.util.find_spec("openvino"):
        import openvino

        core = openvino.Core()
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        loaded = core.compile_model(core.read_model(content), "CPU", threads)
        backends["openvino"] = lambda x: torch.from_numpy(list(loaded(x.numpy()).values())[1])
    return backends


def predictions(folder: Path, count: int) -> dict[str, Callable[[], Any]]:
    """Pictures from file to results, by backend."""
    files = []
    for k in range(count):
        plane = phantoms.phantom_slice([0, k], True, (256, 256))[0]
        files.append(folder / f"{k}.png")
        Image.fromarray(np.rint(np.clip(plane.T, 0, 1) * 255).astype(np.uint8)).save(files[-1])
    numbers = iter(range(1 << 30))
    jobs: dict[str, Callable[[], Any]] = {}
    for name in BACKENDS:
        job = BatchPrediction(Inference(device="cpu", backend=name), folder / name, {})
        jobs[name] = partial(_predict, job, files, numbers)
    return jobs


def _predict(job: BatchPrediction, files: list[Path], numbers: Iterator[int]) -> None:
    for row in job.run(files, [f"{next(numbers)}" for _ in files]):
        if row["error"]:
            raise ValueError(row["error"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.backends", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tried", action="store_true", help="what was tried too")
    add_options(parser, threads=1, clock="cpu")
    options = parser.parse_args(arguments)
    tune_process()
    set_threads(options.threads)
    torch.set_grad_enabled(False)
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inference = Inference(device="cpu")
        volume = folder / "volume.nii.gz"
        phantoms.phantom_volume([0, 1], True, (256, 256), max(BATCHES) + 2).save(volume)
        stack = slices_first(inference.prepare({"image": str(volume)})["image"])[: max(BATCHES)].contiguous()
        ways = passes(inference.network, stack, options.tried)
        for batch in BATCHES:
            x = stack[:batch]
            jobs = {name: partial(way, x) for name, way in ways.items()}
            seconds = timed(jobs, options.rounds, CLOCKS[options.clock])
            for way, spent in seconds.items():
                apart = float((ways[way](x) - ways["torch"](x)).abs().max())
                lines.append((f"network, {batch} at once: {way}", spent, seconds["torch"], batch, f"{apart:.1e}"))
        count = 4
        seconds = timed(predictions(folder, count), options.rounds, CLOCKS[options.clock])
        lines += [(f"picture to results: {way}", spent, seconds["torch"], count, "") for way, spent in seconds.items()]
    rows = []
    print("| | ms an image | times as fast | class logits differ by |\n|---|---|---|---|")
    for text, spent, base, count, differs in lines:
        faster = statistics.median(a / b for a, b in zip(base, spent, strict=True))
        rows.append({"what": text, "ms": 1e3 * statistics.median(spent) / count, "times_as_fast": faster})
        print(f"| {text} | {rows[-1]['ms']:.1f} | {faster:.2f} | {differs} |")
    print(f"{options.rounds} rounds, {options.clock} time; {machine()}")
    if options.out:
        write_json({"machine": machine(), "rows": rows}, options.out)


if __name__ == "__main__":
    errors.start_logging()
    with errors.one_sentence_errors():
        main()
