"""Page for people without Python: drop an image, read the verdict, see mask and heatmap over it.

    python -m scripts page --run_dir runs/mine

Streamlit with NiiVue's component: slices scroll, windows and volumes work as in other viewers, nothing is drawn by us.
Everything runs on this machine and nothing is sent elsewhere. The image at hand and what was computed of it stay in
the memory of its own session, until another takes their place or the session ends; nothing is kept on disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from niivue_component import niivue_viewer

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # Streamlit runs the file by its path

from bundle import page_views as views  # noqa: E402
from bundle.arguments import add_page  # noqa: E402
from bundle.predictor import Explanation, Prediction, Predictor  # noqa: E402
from bundle.samples import draw_samples  # noqa: E402
from bundle.service_model import NOTICE, describe_model, read_metadata  # noqa: E402
from bundle.uploads import KINDS, UploadLimits, UploadRefused, in_form_words, stored  # noqa: E402
from scripts.command.verbs import Parser, inference_overlays  # noqa: E402
from scripts.explain.methods import SLOW  # noqa: E402
from scripts.inference.answer import TUMOR, UNCERTAIN  # noqa: E402
from scripts.inference.result_names import stem as file_stem  # noqa: E402
from scripts.inference.study_files import read_image  # noqa: E402
from scripts.measures.prevalence import in_words  # noqa: E402

UPLOAD = "your own file"
LIMITS = UploadLimits()


@st.cache_resource(show_spinner="Loading the network ...")
def load(weights: Path | None, overlays: tuple[Path, ...], device: str | None, prevalence: str | None) -> Predictor:
    """The predictor, once a process."""
    predictor = Predictor(weights=weights, overlay=overlays, device=device, prevalence=prevalence)
    predictor.limit_files(LIMITS.read)
    return predictor


@st.cache_resource(show_spinner="Drawing the samples ...")
def samples() -> dict[str, bytes]:
    """Phantoms drawn by a program, by name."""
    with tempfile.TemporaryDirectory() as folder:
        draw_samples(Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def remembered(what: str, doing: str, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What was made in this session with the same key, or made now; one of each kind is kept, for nobody else."""
    kept = st.session_state.get(what)
    if kept is None or kept[0] != key:
        st.session_state.pop(what, None)
        with st.spinner(doing):
            kept = (key, make())
        st.session_state[what] = kept
    return kept[1]


@contextmanager
def opened(data: bytes) -> Iterator[Path]:
    """An upload as a file for as long as it is read; errors do not name that file."""
    with stored(data, LIMITS) as path:
        try:
            yield path
        except ValueError as error:
            raise ValueError(in_form_words(str(error), path, "it")) from error


def read(data: bytes) -> np.ndarray:
    """Gray values of an upload: (rows, columns) of a picture, (X, Y, Z, C) of a volume."""
    with opened(data) as path:
        array, _, picture, _ = read_image(str(path), None, "the file", LIMITS.read)
    return array[..., 0].T if picture else array.reshape(*array.shape[:-1], *[1] * (4 - array.ndim), array.shape[-1])


def predict(predictor: Predictor, data: bytes, uncertainty: bool, channel: int | None, anyway: bool) -> Prediction:
    """Prediction of an upload."""
    with opened(data) as path:
        return predictor.predict(path, uncertainty=uncertainty, channel=channel, assess_anyway=anyway)


def explain(
    predictor: Predictor,
    data: bytes,
    channel: int | None,
    method: str,
    layer: str | None,
    target: str,
    number: int | None,
) -> Explanation:
    """Heatmap of an upload."""
    with opened(data) as path:
        return predictor.explain(path, method=method, layer=layer, target=target, slice=number, channel=channel)


def choose_image() -> tuple[str, bytes] | None:
    """Name and content of the image that the user drops or chooses."""
    upload = st.sidebar.file_uploader("Image or volume", help=KINDS)
    chosen = st.sidebar.selectbox("or a sample (drawn by a program)", [UPLOAD, *samples()])
    if chosen is not None and chosen != UPLOAD:
        return chosen, samples()[chosen]
    return (Path(upload.name).name, upload.getvalue()) if upload is not None else None


def choose_channel(predictor: Predictor, gray: np.ndarray) -> tuple[int | None, np.ndarray]:
    """Of a 4D file: the channel to predict, None where the network takes all, and the gray values that are shown."""
    if gray.ndim == 2:
        return None, gray
    count = gray.shape[-1]
    if count == 1:
        return None, gray[..., 0]
    alone = predictor.network.in_channels == 1
    label = "Volume of the 4D file" if alone else "Shown volume of the 4D file (all are predicted together)"
    number = st.sidebar.selectbox(label, range(count), key="channel")
    return number if alone else None, gray[..., number]


def show_prediction(prediction: Prediction) -> None:
    """Verdict, class probabilities, warnings."""
    {True: st.error, False: st.success, None: st.warning}[prediction.detected](views.verdict(prediction))
    if prediction.prevalence is not None:
        st.caption(f"{in_words(prediction.prevalence).capitalize()}.")
    for flag in prediction.flags:
        st.warning(f"{flag['code'].replace('_', ' ')}: {flag['message']}")
    table = pd.DataFrame(
        {
            "class": [name.replace("_", " ") for name in prediction.probabilities],
            "probability": list(prediction.probabilities.values()),
        }
    )
    shown = {"probability": st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0)}
    st.dataframe(table, hide_index=True, column_config=shown)
    if prediction.uncertainty is not None:
        st.caption(
            f"Tumor probability over {prediction.uncertainty.views} views of the image: standard deviation "
            f"{prediction.uncertainty.probability_std:.3f}"
        )
    if prediction.slice_probabilities is not None:
        st.line_chart(
            pd.DataFrame({"tumor probability": prediction.slice_probabilities}),
            x_label=f"{prediction.plane} slice",
            y_label="tumor probability",
            height=180,
        )


def choose_explanation(predictor: Predictor, model: dict[str, Any], volume: bool) -> dict[str, Any]:
    """Target, method and layer, from the sidebar."""
    target = st.sidebar.selectbox("What is explained", ["tumor", *predictor.classes[1:], "segmentation"])
    methods, layers, usual = views.choices(model, target, predictor.network.has_evidence)
    method = st.sidebar.selectbox("Method of the heatmap", methods)
    layer = None
    offered, remark = views.layers_for(method, layers, usual)
    if offered:
        layer = st.sidebar.selectbox("Layer", offered, index=offered.index(usual), key=f"layer of {usual}")
    if remark:
        st.sidebar.caption(remark)
    if volume and method in SLOW:
        st.sidebar.caption("This method explains one slice of a volume: the most suspicious one.")
    return {"method": method, "layer": layer, "target": target}


def main() -> None:
    """Draw the page."""
    parser = Parser(prog="streamlit run bundle/page.py --")
    add_page(parser)
    arguments = parser.parse_args()
    st.set_page_config(page_title="TumorLens", layout="wide")
    st.title("TumorLens")
    st.caption(NOTICE)
    try:
        overlays = tuple(inference_overlays(arguments))
        predictor = load(arguments.weights, overlays, arguments.device, arguments.prevalence)
    except (FileNotFoundError, ValueError) as error:
        st.error(f"The network could not be loaded: {error}")
        return
    model = describe_model(predictor, read_metadata(predictor.bundle_root))
    image = choose_image()
    if image is None:
        st.info(
            "Drop a brain MR image (a picture, NIfTI, MHA, NRRD, DICOM or a zipped DICOM series) into the sidebar (» "
            "opens it on a phone), or choose a sample."
        )
        return
    name, data = image
    uncertainty = st.sidebar.checkbox("Estimate uncertainty (7 passes)")
    drawn_sample = name in samples()  # none of them is like the images of a training on real heads
    assess = drawn_sample or st.sidebar.checkbox("Assess images unlike those of the training too")
    try:
        digest = hashlib.sha256(data).hexdigest()
        gray = remembered("gray values", "Reading ...", (digest,), lambda: read(data))
        channel, gray = choose_channel(predictor, gray)
        prediction = remembered(
            "prediction", "Predicting ...", (digest, uncertainty, channel, assess),
            lambda: predict(predictor, data, uncertainty, channel, assess),
        )  # fmt: skip
    except (UploadRefused, ValueError) as error:
        st.error(f"{name} cannot be used: {error}")
        return
    left, right = st.columns([2, 3])
    with left:
        show_prediction(prediction)
    volume = prediction.mask.ndim == 3
    said = prediction.verdict in (TUMOR, UNCERTAIN)
    anyway = not said and st.sidebar.checkbox("Show the network's own mask and heatmap")
    if anyway:
        prediction = dataclasses.replace(prediction, mask=prediction.raw_mask, evidence=prediction.raw_evidence)
    explanation, drawn = None, []
    if said or anyway:
        choice = choose_explanation(predictor, model, volume)
        heat_opacity = st.sidebar.slider("Opacity of the heatmap", 0.0, 1.0, 0.6, 0.05)
        mask_opacity = st.sidebar.slider("Opacity of the mask's outline", 0.0, 1.0, 0.8, 0.05)
        number = None
        if volume and choice["method"] in SLOW and prediction.slice_probabilities is not None:
            number = int(np.nanargmax(np.array(prediction.slice_probabilities, dtype=float)))
        try:
            explanation = remembered(
                "explanation", "Explaining ...", (digest, channel, *choice.values(), number),
                lambda: explain(predictor, data, channel, **choice, number=number),
            )  # fmt: skip
        except ValueError as error:
            left.error(f"No heatmap: {error}")
        heat = None if explanation is None else explanation.map
        drawn = views.layers(prediction, heat, mask_opacity, heat_opacity)
    with right:
        niivue_viewer(
            nifti_data=views.as_nifti(gray.astype(np.float32), prediction.affine, 0.0, 0.0),
            filename="image.nii",
            overlays=drawn,
            height=560,
            view_mode="multiplanar" if volume else "axial",
            styled=False,
            settings={"crosshair": volume, "radiological": volume, "colorbar": False, "interpolation": True},
            update_interval_ms=None,
            key=viewer_key(digest, channel, explanation, drawn),
        )
        if explanation is not None:
            st.caption(views.caption(explanation))
        if not volume:
            st.caption("A picture does not say which side is which: the viewer's letters do not apply to it.")
        downloads(prediction, explanation, gray, name, model)


def viewer_key(
    digest: str, channel: int | None, explanation: Explanation | None, drawn: Sequence[Mapping[str, Any]]
) -> str:
    """Key of the viewer, another for all that may be shown but for opacities.

    NiiVue's component (0.3.0) shows another image beside the first, keeps the data of an overlay of the same name, and
    keeps the overlays when it is given none.
    """
    what = None if explanation is None else (explanation.method, explanation.layer, explanation.target)
    return f"viewer {digest} {channel} {what} {[layer['name'] for layer in drawn]}"


def downloads(
    prediction: Prediction,
    explanation: Explanation | None,
    gray: np.ndarray,
    name: str,
    model: dict[str, Any],
) -> None:
    """Buttons for JSON, mask, heatmap and picture."""
    stem = file_stem(name)
    column = st.container(horizontal=True)
    heat = None if explanation is None else explanation.map
    column.download_button(
        "Result (JSON)", views.result_json(prediction, explanation, name, model), f"{stem}_result.json"
    )
    if prediction.mask.any() or explanation is not None:
        mask = views.as_nifti(prediction.mask, prediction.affine, 0.0, 1.0)
        column.download_button("Mask (NIfTI)", mask, f"{stem}_mask.nii")
    if heat is not None:
        column.download_button(
            "Heatmap (NIfTI)", views.as_nifti(heat, prediction.affine, 0.0, 1.0), f"{stem}_heatmap.nii"
        )
    column.download_button("Picture (PNG)", views.overlay_png(gray, prediction, heat), f"{stem}_overlay.png")


main()
