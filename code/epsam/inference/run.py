"""What ./infer.sh does: patches or slides, found and predicted, each once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epsam.config.schema import Config
from epsam.errors import DataError, EpsamError, StateError
from epsam.inference.models import load_models
from epsam.inference.names import output_names
from epsam.inference.output import OUTPUTS, OutputFolder, check_place
from epsam.inference.patch_folder import check_masks, find_patches
from epsam.inference.predict_patches import predict_patches
from epsam.inference.predict_slide import predict_slide
from epsam.results import result_line
from epsam.runs.lock import lock
from epsam.runtime.device import Hardware
from epsam.runtime.failures import check_name, guard, has_usable_name, log_failure, printable
from epsam.runtime.files import read_csv, sha256, write_csv
from epsam.runtime.log import logger
from epsam.runtime.records import PlainName, Record, read_record, write_record
from epsam.runtime.text import listed
from epsam.segmenter import ImageSegmenter
from epsam.slides.formats import SUFFIXES, is_slide_name, slide_name
from epsam.slides.grouping import group_slides

COLUMNS = [
    "slide",
    "status",
    "reason",
    "path",
    "reader",
    "vendor",
    "width",
    "height",
    "mpp_x",
    "mpp_y",
    "tumour_mm2",
    "tissue_mm2",
    "tumour_fraction",
    "foci",
    "largest_focus_mm",
    "tumour_px2",
    "largest_focus_px",
]


class SlideRow(Record):
    """Figures of a slide, see `describe`; None where its resolution is not known."""

    slide: PlainName
    path: str
    reader: str
    vendor: str
    width: int
    height: int
    mpp_x: float | None
    mpp_y: float | None
    tumour_mm2: float | None
    tissue_mm2: float | None
    tumour_fraction: float
    foci: int
    largest_focus_mm: float | None
    tumour_px2: float
    largest_focus_px: float


class SlideFile(Record):
    """The file that a slide was predicted from."""

    path: str
    bytes: int


class SlideState(Record):
    """state/slides/<name>.json; without a row while the slide is under way."""

    of: SlideFile
    row: SlideRow | None


@dataclass(frozen=True)
class InferenceSettings:
    """The settings at the top of infer.sh."""

    test_dataset_dir: Path
    """A patch folder (image/, perhaps mask/), a slide, or a folder of slides."""
    resnet_checkpoint: Path
    sam_model_type: str
    sam_checkpoint: Path | None
    """None: looked for in `weights_dir`, and fetched into it."""
    sam_decoder_checkpoint: Path
    output_dir: Path
    config: Config
    """Of the run that trained the checkpoints."""
    fresh: bool = False
    """Replace what an earlier call wrote to `output_dir`, instead of keeping it and going on."""
    weights_dir: Path = Path("checkpoints")


def infer(settings: InferenceSettings, hardware: Hardware) -> None:
    """Predict what `test_dataset_dir` holds and write it to `output_dir`.

    Raises DataError when there is nothing to predict or, at the end, when slides of a folder failed;
    SlideError for a single slide that cannot be read; CheckpointError for weights that do not fit; StateError
    when `output_dir` holds what was made with other settings or not by this program.
    """
    data, output = settings.test_dataset_dir, settings.output_dir
    patches = find_patches(data) if (data / "image").is_dir() else []
    slides = {} if patches else find_slides(data)
    check_masks(patches)
    check_place(data, output)
    config = settings.config.model_copy(
        update={"sam": settings.config.sam.model_copy(update={"model_type": settings.sam_model_type})}
    )
    models = load_models(
        config,
        hardware,
        resnet=settings.resnet_checkpoint,
        sam=settings.sam_checkpoint,
        decoder=settings.sam_decoder_checkpoint,
        weights_dir=settings.weights_dir,
    )
    with (
        lock(output / "state"),
        OutputFolder(output, inference_signature(settings, config), fresh=settings.fresh) as folder,
    ):
        if patches:
            predict_patches(data, patches, folder, models)
        else:
            folder.check_free(
                name + suffix for name, path in slides.items() if has_usable_name(path) for suffix in OUTPUTS
            )
            _predict_slides(slides, folder, models, alone=data.is_file())


def find_slides(data: Path) -> dict[str, Path]:
    """Slides by the name of their outputs, those of subfolders too; raises DataError when there are none."""
    if data.is_file():
        return output_names([data], data.parent, slide_name)
    if not data.is_dir():
        raise DataError(f"{data}: no such file or folder; give a patch folder, a slide or a folder of slides")
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and not _is_hidden(path.relative_to(data))]
    paths = [slide.path for slide in group_slides(path for path in files if is_slide_name(path))]
    if not paths:
        raise DataError(
            f"{data}: neither a patch folder (no image/ in it) nor a folder of slides (no file in it or below it ends "
            f"in {', '.join(SUFFIXES)})"
        )
    return output_names(paths, data, slide_name)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def inference_signature(settings: InferenceSettings, config: Config) -> dict[str, Any]:
    """What predictions depend on: the weights and the settings that are used here."""
    dump = config.model_dump(mode="json")
    patches = {key: dump["patches"][key] for key in ("size_px", "target_mpp", "tissue")}
    return {
        "RESNET_CHECKPOINT": sha256(settings.resnet_checkpoint),
        "SAM_CHECKPOINT": sha256(settings.sam_checkpoint) if settings.sam_checkpoint else settings.sam_model_type,
        "SAM_DECODER_CHECKPOINT": sha256(settings.sam_decoder_checkpoint),
        "patches": patches,
        "seed": config.finetune.seed,
        "postprocess": dump["postprocess"],
    } | {section: dump[section] for section in ("cam", "prompts", "inference")}


def _predict_slides(slides: dict[str, Path], folder: OutputFolder, models: ImageSegmenter, *, alone: bool) -> None:
    """One slide after the other; those that cannot be read fail, and are named at the end.

    slides.csv keeps the rows of slides that earlier calls wrote to the same folder.
    """
    folder.claim(["slides.csv"], "")
    table = folder.path / "slides.csv"
    before = read_csv(table, COLUMNS) if table.is_file() else []
    rows = {row["slide"]: {column: row[column] for column in COLUMNS} for row in before}
    for number, (name, path) in enumerate(slides.items(), 1):
        logger.info(f"--- {name} ({number} of {len(slides)})")
        try:
            with guard(path):
                row = {"status": "ok", "reason": ""} | _predict_once(name, path, folder, models)
        except EpsamError as error:
            if alone:
                logger.debug(error.details)
                raise
            log_failure(name, error)
            row = {"slide": name, "status": "failed", "reason": str(error), "path": str(path)}
        rows[printable(name)] = row
        write_csv(table, [rows[key] for key in sorted(rows)], COLUMNS)
        if row["status"] == "ok":
            figures = {key: row[key] for key in ("slide", "tumour_mm2", "tumour_fraction", "foci", "largest_focus_mm")}
            logger.info(result_line({key: value for key, value in figures.items() if value is not None}))
    if failed := [name for name in slides if rows[printable(name)]["status"] != "ok"]:
        raise DataError(
            f"{len(failed)} of {len(slides)} slides failed ({listed(failed)}): see the reasons in {table}; "
            "the others are done"
        )


def _predict_once(name: str, path: Path, folder: OutputFolder, models: ImageSegmenter) -> dict[str, Any]:
    """The row of a slide: kept when its outputs are there, else predicted, going on where it stopped."""
    check_name(path)
    output, record = folder.path, folder.path / "state" / "slides" / f"{name}.json"
    identity = SlideFile(path=str(path.resolve()), bytes=path.stat().st_size)
    saved = SlideState(of=identity, row=None)
    if record.is_file():
        saved = read_record(record, SlideState, "delete it, and the slide is predicted again")
    if saved.of != identity:
        raise StateError(
            f"{output}: its {name} was made from {saved.of.path} ({saved.of.bytes} bytes), "
            f"now it is {path} ({identity.bytes} bytes); start over with --fresh, or choose another "
            "OUTPUT_DIR"
        )
    if saved.row is None or any(not (output / (name + suffix)).is_file() for suffix in OUTPUTS):
        folder.claim_slide(name)
        write_record(record, SlideState(of=identity, row=None))
        saved.row = SlideRow.model_validate(predict_slide(path, name, output, output / "state" / "work" / name, models))
        write_record(record, saved)
        folder.record_slide(name)
    else:
        logger.info(f"{name}: done already")
    folder.clear_work(name)
    return saved.row.model_dump()
