"""The kinds of files that the program reads back, each with a whole example, how it is damaged, and its reader.

To add a kind, write one function: it gets an empty folder and gives a `Kind`. Readers may raise EpsamError. Slides are
not among them: OpenSlide aborts its process where memory is short, so a process of its own reads them.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from epsam.cam.activation_map import ActivationMap
from epsam.cam.mask import cam_mask
from epsam.cam.store import load_cams, save_cams
from epsam.config.loading import config_from, load_config
from epsam.config.schema import Cam, Config, Patches
from epsam.errors import EpsamError
from epsam.evaluation.methods import Figures, read_figures, write_figures
from epsam.inference.output import OutputFolder
from epsam.inference.patch_folder import check_masks, find_patches
from epsam.inference.patch_rows import PatchRows
from epsam.inference.slide_records import (
    NotPredicted,
    SlideFile,
    SlideRow,
    SlideState,
    read_slide_record,
    recorded_files,
)
from epsam.patches.candidates import CandidatesTask, find_candidates
from epsam.patches.labels import read_labels
from epsam.patches.manifest import SLIDE_COLUMNS, SlideRecord
from epsam.patches.patch import list_patches, patches_for_sam
from epsam.patches.slide_table import read_slide_table
from epsam.patches.tables import PATCH_COLUMNS
from epsam.pipeline import EVALUATE
from epsam.report.data_section import data_section
from epsam.report.slide_section import location_of
from epsam.report.training_section import training_section
from epsam.results import read_results, record_results, restore_table
from epsam.runs.environment import read_environment, write_environment
from epsam.runs.inventory import check_files, record_files
from epsam.runs.lock import lock
from epsam.runs.record import check_signature, read_state, write_done
from epsam.runtime.checkpoints import load_weights, save_weights
from epsam.runtime.files import read_csv, read_image, read_json, read_mask, write_csv, write_png
from epsam.runtime.hashes import hashes_of
from epsam.runtime.records import write_record
from epsam.runtime.sidecar import read_metadata, sidecar_path
from epsam.sam.checkpoint import decoder_weights, load_decoder
from epsam.sam.store import EmbeddingStore, Layout
from epsam.slides.annotation_file import load_annotation
from epsam.workspace import Workspace
from tests import mutations
from tests.fuzzing import Kind
from tests.mutations import Mutation
from tests.sam_factory import CPU, small_sam
from tests.slide_factory import draw, write_slide
from tests.tiny import SETTINGS

KINDS: dict[str, Callable[[Path], Kind]] = {}


def kind(make: Callable[[Path], Kind]) -> Callable[[Path], Kind]:
    """Add a kind under the name of its function."""

    def made(folder: Path) -> Kind:
        folder.mkdir()
        return make(folder)

    KINDS[make.__name__] = made
    return make


def written(path: Path, mutate: Mutation, read: Callable[[], object], **more: bool | int) -> Kind:
    """The kind of a file that was just written."""
    return Kind(path, path.read_bytes(), mutate, read, **more)


GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
XML = b"""<?xml version="1.0"?><ASAP_Annotations><Annotations>
<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>
<Coordinate Order="0" X="1" Y="1"/><Coordinate Order="1" X="9,5" Y="1"/><Coordinate Order="2" X="5" Y="8"/>
</Coordinates></Annotation></Annotations>
<AnnotationGroups><Group Name="Tumor" PartOfGroup="None"/></AnnotationGroups></ASAP_Annotations>"""
GEOJSON = b"""{"type": "FeatureCollection", "features": [
{"type": "Feature", "id": "1", "geometry": {"type": "Polygon", "coordinates":
[[[1, 1], [9.5, 1], [5, 8], [1, 1]], [[4, 2], [6, 2], [5, 4], [4, 2]]]},
"properties": {"objectType": "annotation", "name": "a", "classification": {"name": "Tumor", "color": [200, 0, 0]}}},
{"type": "Feature", "id": "2", "geometry": {"type": "MultiPolygon", "coordinates": [[[[2, 2], [3, 2], [3, 3], [2, 2]]]]},
"properties": {"objectType": "annotation", "classification": {"name": "Exclusion"}}}]}"""
SLIDE_TABLE = b"slide,split,mpp,tissue_threshold,exclude\ntumor_001,train,0.25,12,\nb,,,,blurred\n"
LABELS = b"slide;x;y;label;width\na.svs;0;512;1;256\na;256,0;0;normal;256\n"
CONFIG = Config(name="tiny")


@kind
def settings(folder: Path) -> Kind:
    """A settings file."""
    path = folder / "settings.yaml"
    return Kind(path, SETTINGS.encode(), mutations.yaml_file, lambda: load_config(path))


@kind
def override(folder: Path) -> Kind:
    """Settings on the command line, one a line."""
    path = folder / "override.txt"
    settings = b"retrain.rounds=2\nslides.split_shares=[0.5, 0.25, 0.25]\ncam.layer=layer4\nsam.checkpoint=a/b.pth"

    def read() -> None:
        config_from({"name": "x"}, "settings", tuple(path.read_text("utf-8", "surrogateescape").split("\n")))

    return Kind(path, settings, mutations.damaged, read, named=False)


@kind
def patch_name(folder: Path) -> Kind:
    """The name of a patch in a folder."""
    image, path = folder / "image", folder / "name.txt"
    write_png(image / "valid_0.png", np.zeros((2, 2), np.uint8))

    def read() -> None:
        name = path.read_bytes().replace(b"/", b"").replace(b"\0", b"")[:240] + b".png"
        patch = image / os.fsdecode(name)
        patch.touch()
        try:
            for found in list_patches(folder):
                location_of(found.name)
            find_patches(folder)
        finally:
            patch.unlink()

    return Kind(path, b"tumor_001_x128_y-64_1\na_0\nslide x_x1_y2_0", mutations.line, read, named=False)


@kind
def maps(folder: Path) -> Kind:
    """Activation maps of a split."""
    path, settings = folder / "train.npz", Cam(mask_px=8)
    rng = np.random.default_rng(0)
    save_cams(path, {f"p_{n}_1": ActivationMap(rng.random((4, 4), np.float32), 0.5) for n in range(3)})

    def read() -> None:
        for cam in load_cams(path).values():
            cam_mask(cam, settings, (8, 8))

    return written(path, mutations.npz_file, read)


@kind
def decoder(folder: Path) -> Kind:
    """A decoder's weights, without a sidecar."""
    path, sam = folder / "decoder.pth", small_sam(width=8, heads=1)
    save_weights(path, decoder_weights(sam), {})
    sidecar_path(path).unlink()
    return written(path, mutations.weights_file, lambda: load_decoder(sam, path), one_in=4)


@kind
def sidecar(folder: Path) -> Kind:
    """What lies beside weights."""
    weights = folder / "weights.pth"
    save_weights(weights, {}, CONFIG.model_dump(mode="json"), encoder="0" * 64)
    path = sidecar_path(weights)

    def read() -> None:
        note = read_metadata(weights)
        load_weights(weights, {"classifier.depth": CONFIG.classifier.depth})
        config_from(note.get("settings", {}), str(path))

    return written(path, mutations.json_file, read)


@kind
def annotation(folder: Path) -> Kind:
    """ASAP's XML."""
    path = folder / "annotation.xml"
    return Kind(path, XML, mutations.xml_file, lambda: load_annotation(path, GROUPS).mask(0, 0, 16, 16))


@kind
def geojson(folder: Path) -> Kind:
    """QuPath's GeoJSON."""
    path = folder / "annotation.geojson"
    return Kind(path, GEOJSON, mutations.json_file, lambda: load_annotation(path, GROUPS).mask(0, 0, 16, 16))


@kind
def slide_table(folder: Path) -> Kind:
    """What people say of slides."""
    path = folder / "slides.csv"
    return Kind(path, SLIDE_TABLE, mutations.csv_file, lambda: read_slide_table(path))


@kind
def labels_csv(folder: Path) -> Kind:
    """Windows that people labelled."""
    path = folder / "labels.csv"
    return Kind(path, LABELS, mutations.csv_file, lambda: read_labels(path))


@kind
def scan(folder: Path) -> Kind:
    """What is kept of a slide between two runs of preprocess: a damaged one is made anew."""
    path = write_slide(folder / "a.tif", draw((96, 64), tissue=(8, 8, 88, 56)), tile=32, levels=1)
    config = CONFIG.model_copy(update={"patches": Patches(size_px=16, target_mpp=None, tissue={"downsample": 4})})
    task = CandidatesTask(SlideRecord("a", path), config, Workspace(folder, "tiny"))

    def read() -> None:
        if isinstance(outcome := find_candidates(task), EpsamError):
            raise AssertionError(outcome)

    read()
    return written(task.file, mutations.npz_file, read, one_in=5)


@kind
def stage_record(folder: Path) -> Kind:
    """state/<stage>.json."""
    signed = {"epsam": "1", "cam.percentile": None, "cam.rotations": [0, 90], "patches": "3 files, 00"}
    write_done(folder, "embed", signed, seconds=1.0, peak_memory_mib=100, device="cpu")

    def read() -> None:
        if record := read_state(folder, "embed"):
            check_signature("embed", record["signature"], signed)

    return written(folder / "embed.json", mutations.json_file, read)


@kind
def run_lock(folder: Path) -> Kind:
    """The lock of a run."""
    path = folder / "lock"
    with lock(folder):
        whole = path.read_bytes()

    def read() -> None:
        with lock(folder):
            pass

    return Kind(path, whole, mutations.json_file, read)


@kind
def inference_record(folder: Path) -> Kind:
    """state/inference.json of an output folder."""
    signed = {"SAM_CHECKPOINT": "demo", "patches": {"size_px": 256, "target_mpp": None}, "seed": 0}

    def read() -> None:
        with OutputFolder(folder, signed, fresh=False) as opened:
            opened.claim(["p_1.png"], "mask", "overlay")

    read()
    return written(folder / "state" / "inference.json", mutations.json_file, read)


@kind
def slide_record(folder: Path) -> Kind:
    """state/slides/<name>.json of an output folder."""
    path = folder / "a.json"
    row = SlideRow(
        slide="a",
        path="a.tif",
        reader="openslide",
        vendor="aperio",
        width=9,
        height=8,
        mpp_x=0.25,
        mpp_y=0.25,
        tumour_mm2=1.5,
        tissue_mm2=2.5,
        tumour_fraction=0.6,
        foci=2,
        largest_focus_mm=1.0,
        tumour_px2=24.0,
        largest_focus_px=4.0,
    )
    why = NotPredicted(path="a.tif", status="failed", reason="cut off")
    files = {"": {"a.xml": "f0", "a.geojson": None}, "pages": {"a.html": "f0"}}
    of = SlideFile(path="a.tif", stamp="100 5 f0")
    write_record(path, SlideState(slide="a", of=of, mpp=None, row=row, not_predicted=why, files=files))
    return written(path, mutations.json_file, lambda: list(recorded_files(read_slide_record(path))))


@kind
def patch_notes(folder: Path) -> Kind:
    """state/patches.jsonl of an output folder."""
    path = folder / "patches.jsonl"
    PatchRows(path).add(
        [
            {"patch": f"a_{n}", "image": "f0", "classifier_probability": 0.5, "segmented": 1, "tumour_fraction": 0.25}
            for n in range(3)
        ]
    )
    return written(path, mutations.json_lines, lambda: PatchRows(path))


@kind
def store(folder: Path) -> Kind:
    """store.json of the embeddings."""
    kept = make_store(folder)

    def read() -> None:
        opened = EmbeddingStore.open(folder, kept.layout.signature)
        opened.check()
        opened.read(2, 1)

    return written(folder / "store.json", mutations.json_file, read)


@kind
def shard(folder: Path) -> Kind:
    """A shard of embeddings."""
    kept = make_store(folder)

    def read() -> None:
        opened = EmbeddingStore.open(folder, kept.layout.signature)
        opened.check()
        opened.read(2, 1)

    return written(folder / "shard_00000.npy", mutations.npy_file, read)


def make_store(folder: Path) -> EmbeddingStore:
    """Embeddings of three patches in two views."""
    layout = Layout({"model": "demo", "patches": {f"p_{n}_1": f"{n:064x}" for n in range(3)}}, 2, (2, 3, 3))
    kept = EmbeddingStore.create(folder, layout)
    kept.write(0, np.ones((3, 2, 2, 3, 3), np.float16))
    return kept


def make_results(folder: Path) -> Workspace:
    """Figures of all stages."""
    workspace = Workspace(folder, "tiny")
    record_results(workspace, "train-classifier", [{"split": "val", "auc": 0.9, "accuracy": 0.8, "patches": 12}])
    record_results(workspace, "evaluate", [{"split": "test", "method": "cam", "dice": 0.5, "patches": 3}])
    return workspace


@kind
def metrics_csv(folder: Path) -> Kind:
    """The table of figures: written again where it is damaged."""
    workspace = make_results(folder)
    return written(workspace.metrics_csv, mutations.csv_file, lambda: restore_table(workspace))


@kind
def results(folder: Path) -> Kind:
    """The record of a stage's figures."""
    workspace = make_results(folder)
    return written(workspace.results("evaluate"), mutations.json_file, lambda: read_results(workspace))


@kind
def files_record(folder: Path) -> Kind:
    """The record of what a stage wrote."""
    workspace = make_results(folder)
    record_files(workspace, EVALUATE)
    return written(
        workspace.state / "evaluate.files.json",
        mutations.json_file,
        lambda: check_files(workspace, EVALUATE, "report", true_masks=True),
    )


@kind
def hashes(folder: Path) -> Kind:
    """The cache of hashes: made anew where it is damaged."""
    workspace = make_results(folder)
    hashes_of(workspace, [workspace.metrics_csv])
    return written(
        workspace.state / "hashes.json", mutations.json_file, lambda: hashes_of(workspace, [workspace.metrics_csv])
    )


@kind
def figures_csv(folder: Path) -> Kind:
    """Figures of a method patch by patch."""
    path = folder / "cam.csv"
    write_figures(
        path,
        Figures(
            ["a_1", "b_1", "c_0"],
            np.array([1, 1, 0]),
            np.array([0.5, 1, 0]),
            np.array([9, 9, 9]),
            np.array([[4, 5, 6], [0, 0, 9], [0, 0, 0]]),
        ),
    )
    return written(path, mutations.csv_file, lambda: read_figures(path))


@kind
def slides_csv(folder: Path) -> Kind:
    """The table of slides, as the report shows it."""
    workspace = Workspace(folder, "tiny")
    rows = [
        SlideRecord(
            "tumor_001",
            Path("images/tumor_001.tif"),
            "train",
            reader="openslide",
            width=1000,
            height=900,
            mpp_x=0.25,
            mpp_y=0.25,
            patches_positive=3,
        ).row(),
        SlideRecord("b", Path("images/b.tif"), status="excluded", reason="excluded").row(),
    ]
    write_csv(workspace.slides_csv, rows, SLIDE_COLUMNS)
    return written(workspace.slides_csv, mutations.csv_file, lambda: data_section(CONFIG, workspace))


@kind
def patches_csv(folder: Path) -> Kind:
    """The table of candidate windows."""
    workspace = Workspace(folder, "tiny")
    for name in ("a_x0_y0_1", "a_x8_y0_1"):
        write_png(workspace.split("train") / "image" / f"{name}.png", np.zeros((2, 2), np.uint8))
    rows = [dict.fromkeys(PATCH_COLUMNS, "1") | {"name": "a_x0_y0_1", "purpose": "classifier"}]
    write_csv(workspace.patches_csv, rows, PATCH_COLUMNS)
    return written(workspace.patches_csv, mutations.csv_file, lambda: patches_for_sam(workspace, "train"))


@kind
def curves_csv(folder: Path) -> Kind:
    """Learning curves, as the report draws them."""
    workspace = Workspace(folder, "tiny")
    path = workspace.run / "classifier_curves.csv"
    rows = [{"epoch": n, "train_loss": 1 / n, "val_loss": 1.5 / n, "val_auc": 0.5, "lr": 1e-3} for n in range(1, 4)]
    write_csv(path, rows, list(rows[0]))
    return written(path, mutations.csv_file, lambda: training_section(CONFIG, workspace), one_in=100)


@kind
def environment(folder: Path) -> Kind:
    """What a run ran on."""
    path = folder / "environment.json"
    write_environment(path, CPU)
    return written(path, mutations.json_file, lambda: read_environment(path))


@kind
def table(folder: Path) -> Kind:
    """Any table."""
    path = folder / "table.csv"
    return Kind(path, b"slide,x,y\ntumor_001,1,2\n", mutations.csv_file, lambda: read_csv(path, ["slide", "x"]))


@kind
def json_value(folder: Path) -> Kind:
    """Any JSON."""
    path = folder / "value.json"
    return Kind(path, b'{"stage": "embed", "done": true}', mutations.json_file, lambda: read_json(path))


@kind
def patch_image(folder: Path) -> Kind:
    """A patch."""
    path = folder / "image.png"
    write_png(path, np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    return written(path, mutations.png_file, lambda: read_image(path))


@kind
def mask_image(folder: Path) -> Kind:
    """A mask beside its patch."""
    write_png(folder / "image" / "a_1.png", np.zeros((4, 4, 3), np.uint8))
    path = folder / "mask" / "a_1.png"
    write_png(path, np.eye(4, dtype=bool))

    def read() -> None:
        check_masks(find_patches(folder))
        read_mask(path)

    return written(path, mutations.png_file, read)
