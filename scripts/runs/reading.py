"""What the report reads of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.data.datalists import schema as datalists
from scripts.data.datalists.clusters import clusters as clusters_of
from scripts.runs.artifacts import EVALUATION, EXPLANATION, marks, weights_sha256
from scripts.runs.checkpoint_files import WEIGHTS
from scripts.runs.documents import MISSING, Document, optional
from scripts.runs.folder import trained_tasks
from scripts.runs.tasks import default_key_metric

__all__ = ["METHODS", "Run", "Stage", "data_summary", "read_scalars"]

# Of metrics.json: what a head that was not trained makes of random weights.
OF_RANDOM_HEAD = ("classification", "detected")
METHODS = {
    "evidence": "evidence map",
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "hirescam": "HiResCAM",
    "layercam": "Layer-CAM",
    "hirescam_frozen": "HiResCAM (frozen statistics)",
    "layercam_frozen": "Layer-CAM (frozen statistics)",
    "scorecam": "Score-CAM",
    "lrp": "relevance",
    "lrp_places": "relevance, in places of 2 pixels",
    "integrated_gradients": "integrated gradients",
    "saliency": "saliency",
    "smoothgrad": "SmoothGrad",
    "occlusion": "occlusion",
    "uniform": "uniform map",
    "random": "random map",
    "oracle": "true mask on the layer's grid",
    "test_time_augmentation": "test-time augmentation",
    "mc_dropout": "MC dropout",
}


class Run:
    """The documents of one run and what is chosen from them.

    `uncertainty`, `robustness`, `scope`, `faithfulness`, `certificate`, `shown_cases` and `audit` are None where the
    run has no such file; `elsewhere` are the evaluations on other datalists or parts. `tasks` is what the run was
    trained for: without "classification" the figures of the diagnosis are left out of the documents, `gallery` and
    `row` (of its own map in localization.json) are None. `weights` are, by file, the hashes of the weights that it is
    of, None where it does not say; `current` that of the run's weights as they are now, None where there are none.

    Args:
        root: folder of all runs.
        key: the run's folder in it.
        title: name on the page.
        part: part of the datalist that was evaluated.
    """

    def __init__(self, root: Path, key: str, title: str, part: str):
        self.key, self.title, self.part, self.folder = key, title, part, root / key
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder} is missing: there is no run of that name")
        self.evaluation = "evaluation" if part == "test" else f"evaluation_{part}"
        self.metrics = Document(root, f"{key}/{self.evaluation}/metrics.json")
        self.cases = Document(root, f"{key}/{self.evaluation}/cases.csv")
        self.localization = Document(root, f"{key}/explanations/localization.json")
        self.stages = [Stage(root, p) for p in sorted(self.folder.glob("*/manifest.json"))]
        if not self.stages:
            raise FileNotFoundError(f"{self.folder}/<stage>/manifest.json is missing: no stage of this run was trained")
        self.tasks = trained_tasks(self.stages[-1].folder)
        self.metrics.value(f"/{part}/overall")
        extras = {
            name: optional(root, f"{key}/{self.evaluation}/{name}.json")
            for name in ("uncertainty", "robustness", "scope")
        }
        self.uncertainty, self.robustness, self.scope = extras.values()
        self.shown_cases = optional(root, f"{key}/{self.evaluation}/cases.json")
        self.faithfulness = optional(root, f"{key}/explanations/faithfulness.json")
        self.certificate = optional(root, f"{key}/certificate/causal.json")
        self.audit = optional(root, *(f"{place}audit.json" for place in (f"{key}/", f"{key}/audit/", "", "audit/")))
        self.elsewhere = [
            Document(root, path.relative_to(root).as_posix())
            for path in sorted(self.folder.glob("evaluation*/metrics.json"))
            if path.parent.name != self.evaluation
        ]
        self.gallery: Document | None = None
        self.row: int | None = None
        if self.diagnoses:
            self.gallery = Document(root, f"{key}/explanations/gallery.json")
            if not self.gallery.content:
                raise ValueError(f"{self.gallery.name} lists no case: draw some first")
            first = self.gallery.content[0]
            self.method, self.layer, self.target = first["method"], first["layer"], first["target"]
            self.row = self.localization_row("all")
        else:
            for document in (self.metrics, *self.elsewhere):
                document.content = without(document.content, OF_RANDOM_HEAD)
        self.weights = self._weights(root)
        trained = any((stage.folder / WEIGHTS).is_file() for stage in self.stages)
        self.current = weights_sha256(self.folder) if trained else None

    @property
    def diagnoses(self) -> bool:
        """Whether its head was trained."""
        return "classification" in self.tasks

    def _weights(self, root: Path) -> dict[str, list[str | None]]:
        folders = {self.evaluation: EVALUATION, "explanations": EXPLANATION}
        folders |= {Path(document.name).parent.name: EVALUATION for document in self.elsewhere}
        files = {f"{self.key}/{name}": results for name, results in folders.items()}
        hashes = {}
        for folder, results in files.items():
            for name in (results.main, *results.marked):
                document = optional(root, f"{folder}/{name}")
                if document is not None and name != "unavailable.json" and document.content:
                    hashes[f"{Path(folder).name}/{name}"] = list(marks(document.content))
        return hashes

    @property
    def documents(self) -> list[Document]:
        """All files that its numbers come from."""
        named = (self.metrics, self.cases, self.localization, self.uncertainty, self.robustness, self.scope)
        more = (self.shown_cases, self.faithfulness, self.certificate, self.audit, self.gallery)
        stages = [document for stage in self.stages for document in (stage.manifest, stage.config)]
        return [document for document in (*named, *more, *self.elsewhere, *stages) if document is not None]

    @property
    def map_title(self) -> str:
        """Method and layer of the map that the run is explained by."""
        if self.row is None:
            return "no map: its head was not trained"
        name = METHODS.get(self.method, self.method)
        return name if self.layer == self.method else f"{name} at {self.layer}"

    def localization_row(self, source: str) -> int | None:
        """Index of the run's own map in localization.json; None of a run without one."""
        if not self.diagnoses:
            return None
        wanted = (self.method, self.layer, self.target, source)
        for i, row in self.measured():
            if (row["method"], row["layer"], row["target"], row["source"]) == wanted:
                return i
        raise ValueError(f"{self.localization.name} has no row of method, layer, target, source = {', '.join(wanted)}")

    def measured(self) -> list[tuple[int, dict[str, Any]]]:
        """Index and content of the rows of localization.json over all classes, against the true masks.

        Without those of a head or decoder that was not trained.
        """
        rows = enumerate(self.localization.content)
        return [
            (i, row)
            for i, row in rows
            if row.get("mask", "true") == "true"
            and row.get("class", "all") == "all"
            and (
                row["layer"] == "none"
                or ("segmentation" if row["target"].startswith("segmentation") else "classification") in self.tasks
            )
        ]

    @property
    def classes_tested(self) -> int:
        """Number of classes with a case in the test; 0 without any diagnosis."""
        pointer = f"/{self.part}/overall/classification/confusion_matrix"
        return sum(sum(row) > 0 for row in self.metrics.value(pointer)) if self.metrics.has(pointer) else 0

    def picture(self, entry: Mapping[str, Any], what: str, folder: str = "explanations") -> Path:
        """File of a picture that a list of cases names, relative to a folder of the run."""
        path = self.folder / folder / entry[what]
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though the files of {folder} list it for {entry['name']}")
        return path

    def shown(self) -> list[tuple[int, dict[str, Any]]]:
        """Index and entry of the gallery's cases; of a run without a trained head there are none."""
        return [] if self.gallery is None else list(enumerate(self.gallery.content))


def without(content: Any, names: Sequence[str]) -> Any:
    """Nested content without the entries of some names."""
    if isinstance(content, list):
        return [without(entry, names) for entry in content]
    if isinstance(content, dict):
        return {key: without(value, names) for key, value in content.items() if key not in names}
    return content


class Stage:
    """Manifest, config and scalars of a trained stage; `no_curves` says why there are no scalars, "" if there are."""

    def __init__(self, root: Path, manifest: Path):
        folder, self.folder = manifest.parent.relative_to(root), manifest.parent
        self.name = manifest.parent.name
        self.title = self.name.partition("_")[2].replace("_", " ") or self.name
        self.manifest = Document(root, f"{folder}/manifest.json")
        self.config = Document(root, f"{folder}/config.yaml")
        self.scalars, self.no_curves = read_scalars(manifest.parent), ""
        if not self.scalars:
            self.no_curves = (
                "adopted, not trained here" if self.manifest.has("/adopted") else "no event file lies in it"
            )

    @property
    def finished(self) -> bool:
        """Whether the stage ran to its end."""
        return self.manifest.has("/finished")

    def configured(self, key: str) -> str:
        """A value of the resolved config as text."""
        value = self.config.content.get(key, MISSING)
        if value == "$@stage_epochs[@stage]":  # as written in train.yaml
            value = self.config.content["stage_epochs"].get(self.name, value)
        if str(value).startswith("$tasks.default_key_metric("):  # as configs of earlier runs write it too
            value = default_key_metric(self.config.content["datalist_file"], self.config.content["num_classes"])
        return "none" if value in (None, []) else str(value)


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of a TensorBoard log folder, {tag: [(step, value)]}; none where it holds no event file."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def data_summary(datalist: Mapping[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Content of data.json: counts of a datalist per part, source and class.

    Args:
        datalist: validated, see `scripts.data.datalists`.
        notes: sentences on where the data come from, shown as they are.

    Returns:
        {name, classes, counts: {part: {source: {class: {n, with_mask}}}}, patients, groups, images: {part: n},
        left_out: {reason: n}, notes}; "groups" counts near-duplicate groups of items without a patient, "images" items
        that have neither.
    """
    counts: dict[str, Any] = {part: {} for part in datalists.SPLITS}
    for row in datalists.summary(dict(datalist)):
        by_class = counts[row["split"]].setdefault(row["source"] or "unnamed", {})
        by_class[row["class"]] = {"n": row["items"], "with_mask": row["with_mask"]}
    by_kind: dict[str, dict[str, int]] = {"patients": {}, "groups": {}, "images": {}}
    for part in datalists.SPLITS:
        cluster_names = set(clusters_of(datalist[part]))
        for kind, start in (("patients", "patient "), ("groups", "group "), ("images", "image ")):
            by_kind[kind][part] = sum(name.startswith(start) for name in cluster_names)
    text = [datalist["description"]] if datalist.get("description") else []
    return {
        "name": datalist.get("name", "unnamed"),
        "classes": datalist["classes"],
        "counts": counts,
        **by_kind,
        "left_out": dict(datalist.get("left_out", {})),
        "notes": text + list(notes),
    }
