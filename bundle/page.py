"""Page for people without Python: drop an image, read the verdict, see mask and heatmap over it.

    python -m streamlit run bundle/page.py -- --overlay runs/mine/network.yaml

Streamlit with NiiVue's component: slices scroll, windows and volumes work as in other viewers, nothing is drawn by us.
Everything runs on this machine; nothing is sent elsewhere and nothing is kept.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
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
from bundle.checks import draw_samples  # noqa: E402
from bundle.predictor import Explanation, Prediction, Predictor  # noqa: E402
from bundle.service_model import NOTICE, describe_model, read_metadata  # noqa: E402
from bundle.uploads import UploadLimits, UploadRefused, stored  # noqa: E402
from scripts.study_files import read_image  # noqa: E402

UPLOAD = "your own file"
SLOW = ("scorecam", "integrated_gradients", "smoothgrad", "occlusion")


@st.cache_resource(show_spinner="Loading the network ...")
def load(weights: str | None, overlay: str | None) -> Predictor:
    """The predictor, once a process."""
    return Predictor(weights=weights, overlay=overlay)


@st.cache_resource
def samples() -> dict[str, bytes]:
    """Phantoms drawn by a program, by name."""
    with tempfile.TemporaryDirectory() as folder:
        draw_samples(Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@st.cache_data(max_entries=8, show_spinner="Predicting ...")
def predict(_predictor: Predictor, data: bytes, uncertainty: bool) -> tuple[Prediction, np.ndarray]:
    """Prediction and gray values of an upload."""
    with stored(data, UploadLimits()) as path:
        array, _, picture, _ = read_image(str(path), None, "the file")
        image = array[..., 0].T if picture else array
        return _predictor.predict(path, uncertainty=uncertainty), image


@st.cache_data(max_entries=16, show_spinner="Explaining ...")
def explain(
    _predictor: Predictor, data: bytes, method: str, layer: str | None, target: str, number: int | None
) -> Explanation:
    """Heatmap of an upload."""
    with stored(data, UploadLimits()) as path:
        return _predictor.explain(path, method=method, layer=layer, target=target, slice=number)


def choose_image() -> tuple[str, bytes] | None:
    """Name and content of the image that the user drops or chooses."""
    kinds = ["png", "jpg", "jpeg", "bmp", "tif", "tiff", "nii", "gz"]
    upload = st.sidebar.file_uploader("Image or NIfTI volume", type=kinds)
    chosen = st.sidebar.selectbox("or a sample (drawn by a program)", [UPLOAD, *samples()])
    if chosen is not None and chosen != UPLOAD:
        return chosen, samples()[chosen]
    return (Path(upload.name).name, upload.getvalue()) if upload is not None else None


def show_prediction(prediction: Prediction) -> None:
    """Verdict, class probabilities, warnings."""
    (st.error if prediction.verdict else st.success)(views.verdict(prediction))
    for flag in prediction.flags:
        st.warning(f"{flag['code'].replace('_', ' ')}: {flag['message']}")
    table = pd.DataFrame(
        {"class": list(prediction.probabilities), "probability": list(prediction.probabilities.values())}
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
    """Method, layer and target, from the sidebar."""
    methods = [m for m in model["methods"] if m != "evidence" or predictor.network.has_evidence]
    method = st.sidebar.selectbox("Method of the heatmap", methods)
    layer = None
    if "cam" in method:
        layer = st.sidebar.selectbox(
            "Layer", model["layers"], index=model["layers"].index(model["default_layer"]), key="layer"
        )
    target = st.sidebar.selectbox("What is explained", ["tumor", *predictor.classes[1:]])
    if volume and method in SLOW:
        st.sidebar.caption("This method explains one slice of a volume: the most suspicious one.")
    return {"method": method, "layer": layer, "target": target}


def main() -> None:
    """Draw the page."""
    parser = argparse.ArgumentParser(prog="streamlit run bundle/page.py --")
    parser.add_argument("--weights", help="state dict; default: the overlay's, else models/model.pt")
    parser.add_argument("--overlay", help="for example runs/mine/network.yaml")
    arguments = parser.parse_args()
    st.set_page_config(page_title="TumorLens", layout="wide")
    st.title("TumorLens")
    st.caption(NOTICE)
    try:
        predictor = load(arguments.weights, arguments.overlay)
    except (FileNotFoundError, ValueError) as error:
        st.error(f"The network could not be loaded: {error}")
        return
    model = describe_model(predictor, read_metadata(predictor.bundle_root))
    image = choose_image()
    if image is None:
        st.info("Drop a brain MR image (PNG, JPG, TIFF or NIfTI) on the left, or choose a sample.")
        return
    name, data = image
    uncertainty = st.sidebar.checkbox("Estimate uncertainty (7 passes)")
    try:
        prediction, gray = predict(predictor, data, uncertainty)
    except (UploadRefused, ValueError) as error:
        st.error(f"{name} cannot be used: {error}")
        return
    left, right = st.columns([2, 3])
    with left:
        show_prediction(prediction)
    volume = prediction.mask.ndim == 3
    anyway = not prediction.verdict and st.sidebar.checkbox("Show mask and heatmap below the threshold")
    explanation = None
    if prediction.verdict or anyway:
        choice = choose_explanation(predictor, model, volume)
        heat_opacity = st.sidebar.slider("Opacity of the heatmap", 0.0, 1.0, 0.6, 0.05)
        mask_opacity = st.sidebar.slider("Opacity of the mask", 0.0, 1.0, 0.3, 0.05)
        number = None
        if volume and choice["method"] in SLOW and prediction.slice_probabilities is not None:
            number = int(np.nanargmax(np.array(prediction.slice_probabilities, dtype=float)))
        try:
            explanation = explain(predictor, data, **choice, number=number)
        except ValueError as error:
            left.error(f"No heatmap: {error}")
    with right:
        drawn = [] if explanation is None else views.layers(prediction, explanation.map, mask_opacity, heat_opacity)
        base = gray[..., 0] if gray.ndim == 4 else gray
        niivue_viewer(
            nifti_data=views.as_nifti(base.astype(np.float32), prediction.affine, 0.0, 0.0),
            filename="image.nii",
            overlays=drawn,
            height=560,
            view_mode="multiplanar" if volume else "axial",
            styled=False,
            settings={"crosshair": volume, "radiological": volume, "colorbar": False, "interpolation": True},
            update_interval_ms=None,
            key="viewer",
        )
        if explanation is not None:
            st.caption(views.caption(explanation))
        if not volume:
            st.caption("A picture does not say which side is which: the viewer's letters do not apply to it.")
    downloads(left, prediction, explanation, gray, name, model)


def downloads(
    column: Any,
    prediction: Prediction,
    explanation: Explanation | None,
    gray: np.ndarray,
    name: str,
    model: dict[str, Any],
) -> None:
    """Buttons for JSON, mask, heatmap and picture."""
    stem = name.split(".")[0]
    heat = None if explanation is None else explanation.map
    column.download_button(
        "Result (JSON)", views.result_json(prediction, explanation, name, model), f"{stem}_result.json"
    )
    if prediction.verdict or explanation is not None:
        mask = views.as_nifti(prediction.mask, prediction.affine, 0.0, 1.0)
        column.download_button("Mask (NIfTI)", mask, f"{stem}_mask.nii")
    if heat is not None:
        column.download_button(
            "Heatmap (NIfTI)", views.as_nifti(heat, prediction.affine, 0.0, 1.0), f"{stem}_heatmap.nii"
        )
    column.download_button("Picture (PNG)", views.overlay_png(gray, prediction, heat), f"{stem}_overlay.png")


main()
