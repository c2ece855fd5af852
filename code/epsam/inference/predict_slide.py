"""A whole slide in, its outlines, masks, picture and figures out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from shapely.geometry import Polygon

from epsam.errors import SlideError
from epsam.inference.area import tissue_area
from epsam.inference.export import write_asap_xml, write_geojson
from epsam.inference.foci import Foci
from epsam.inference.outlines import find_foci
from epsam.inference.overlay import write_overlay
from epsam.inference.pages.records import area_text, side_text
from epsam.inference.pages.slide_page import write_slide_page
from epsam.inference.probability import ProbabilityMap
from epsam.inference.pyramid import write_mask, write_probability
from epsam.inference.resolution import px2_of, resolution_warning, set_resolution, tile_px
from epsam.inference.segmenter import Segmenter, overlap_of
from epsam.inference.slide_tiles import read_chunks
from epsam.inference.tile_prediction import predict_tiles
from epsam.inference.tiles import TileGrid, TileStore, blend, lay_grid
from epsam.runtime.log import logger, progress
from epsam.runtime.seeds import generator
from epsam.slides.remote import RemoteSlide
from epsam.slides.slide import Slide
from epsam.slides.tissue import GREY_SLIDE, find_tissue, is_grey

MAX_READERS = 8
"""Processes that read one slide: a slide of Camelyon17 takes one of them 4 to 8 minutes, an A100 20 to 40 s."""


@dataclass(frozen=True)
class SlideToPredict:
    """A slide and what is said of it beside its file."""

    name: str
    """Of its outputs."""
    path: Path
    mpp: float | None = None
    """um/px in place of what its file says."""
    mpp_if_unknown: float | None = None
    """um/px if its file says none."""
    exclude: str = ""
    """Why it is not to be predicted."""


@dataclass(frozen=True)
class Frame:
    """How a slide, its tiles and its map lie over each other."""

    read_px: int
    """Side of a tile in level-0 px."""
    side: int
    """Side of a tile in map px."""

    @property
    def step(self) -> float:
        """Level-0 px per map px."""
        return self.read_px / self.side


def predict_slide(
    task: SlideToPredict, output: Path, work: Path, models: Segmenter, trained_at: float | None
) -> dict[str, Any]:
    """Predict one slide, write `output`/name + OUTPUTS (see output.py) and its page, and return its row for slides.csv.

    Tiles are read at `trained_at` um/px, the resolution of the training; None: as level 0. Goes on from what an
    earlier call left in `work`. Raises SlideError when the slide cannot be read, or does not say its resolution.
    """
    name, path = task.name, task.path
    settings, patches, slides = models.config.inference, models.config.patches, models.config.slides
    with RemoteSlide(path, slides.reader, slides.asap_path) as slide:
        warnings = [set_resolution(slide, task.mpp, task.mpp_if_unknown)]
        read_px = tile_px(slide, patches, trained_at)
        warnings.append(resolution_warning(slide, patches, read_px, trained_at))
        if read_px != patches.size_px and slide.mpp is not None:
            logger.info(f"{name}: {slide.mpp[0]:.4g} um/px, read at the {trained_at:g} um/px of the training")
        frame = Frame(read_px, max(1, round(patches.size_px / settings.map_downsample)))
        source = ProbabilityMap(work / "map.u8", slide.size, frame.step)
        tissue = find_tissue(slide, patches.tissue)
        grid = lay_grid(tissue, source.shape, frame.side, overlap_of(models))
        if not len(grid.positions) and is_grey(slide):
            raise SlideError(f"{path}: {GREY_SLIDE}")
        if not len(grid.positions):
            warnings.append("no tissue was found, so there is nothing to predict; see patches.tissue")
        warnings = [warning for warning in warnings if warning]
        for warning in warnings:
            logger.warning(f"{name}: {warning}")
        store = TileStore(work, frame.side, settings.classifier_probability)
        chunks = grid.chunks(generator(models.config.finetune.seed, name, "tiles"))
        _predict_tiles(slide, name, frame, grid, chunks, store, models)
        blend(grid, store, chunks, source.path)
        foci = find_foci(source, settings.threshold, px2_of(settings.min_focus_um2, slide))
        sides = [diameter(focus.polygon) for focus in foci]
        row = describe(slide, name, foci, sides, tissue_px2=tissue_area(tissue, patches.tissue.downsample, foci))
        logger.info(f"{name}: writing {len(foci)} foci")
        write_geojson(output / f"{name}.geojson", foci, slide.mpp, slide.origin)
        write_asap_xml(output / f"{name}.xml", foci)
        write_mask(output / f"{name}_mask.tif", foci, list(slide.level_sizes), slide.mpp)
        write_probability(output / f"{name}_probability.tif", source, list(slide.level_sizes), slide.mpp)
        write_overlay(output / f"{name}_overlay.png", slide, source, foci, name, caption(row))
        write_slide_page(output / "pages", slide, row, foci, sides, source, tissue, caption(row), warnings)
    return row


def describe(slide: Slide, name: str, foci: Foci, sides: Sequence[float], tissue_px2: float) -> dict[str, Any]:
    """Figures of a slide: a row of slides.csv; None where the resolution is not known.

    sides: longest side of each focus in level-0 px.
    tissue_px2: level-0 px2 of tissue and tumour together, see `tissue_area`; `tumour_fraction` is the foci's share of it,
    in [0, 1].
    """
    area = sum(focus.polygon.area for focus in foci)
    longest = max(sides, default=0.0)
    mm2, mm = (None, None) if slide.mpp is None else (slide.mpp[0] * slide.mpp[1] * 1e-6, sum(slide.mpp) / 2e3)
    return {
        "slide": name,
        "path": str(slide.path),
        "reader": slide.reader,
        "vendor": slide.vendor,
        "width": slide.size[0],
        "height": slide.size[1],
        "mpp_x": slide.mpp and slide.mpp[0],
        "mpp_y": slide.mpp and slide.mpp[1],
        "tumour_mm2": mm2 and area * mm2,
        "tissue_mm2": mm2 and tissue_px2 * mm2,
        "tumour_fraction": area / tissue_px2 if tissue_px2 else 0.0,
        "foci": len(foci),
        "largest_focus_mm": mm and longest * mm,
        "tumour_px2": area,
        "largest_focus_px": longest,
    }


def diameter(polygon: Polygon) -> float:
    """Longest distance between two points of a polygon, in its unit."""
    corners = np.asarray(polygon.convex_hull.exterior.coords)
    return float(max(np.hypot(*(corners - corner).T).max() for corner in corners))


def caption(row: dict[str, Any]) -> str:
    """The figures of a slide in words."""
    foci = f"{row['foci']} {'focus' if row['foci'] == 1 else 'foci'}"
    share = f"{row['tumour_fraction']:.1%} of the tissue"
    if row["mpp_x"] is None:
        return (
            f"tumour: {share}, {foci}, the largest {side_text(row['largest_focus_px'], None)} long (resolution unknown)"
        )
    mpp = row["mpp_x"], row["mpp_y"]
    area, side = area_text(row["tumour_px2"], mpp), side_text(row["largest_focus_px"], mpp)
    return f"tumour: {area}, {share}, {foci}, the largest {side} long"


def _predict_tiles(
    slide: RemoteSlide,
    name: str,
    frame: Frame,
    grid: TileGrid,
    chunks: list[np.ndarray],
    store: TileStore,
    models: Segmenter,
) -> None:
    """Fill `store`, the next tiles being read while the models are busy with these."""
    done = store.resume(chunks)
    before = sum(len(chunk) for chunk in chunks[:done])
    if before:
        logger.info(f"{name}: continuing after {before} of {len(grid.positions)} tiles")
    size_px = models.config.patches.size_px
    with progress(total=len(grid.positions), initial=before, desc=name, unit="tile") as bar:
        todo = [_corners(frame, grid, chunk) for chunk in chunks[done:]]
        tiles = read_chunks(slide, todo, frame.read_px, size_px, _reading_threads(models))
        for corners, images in zip(todo, tiles, strict=True):
            predict_tiles(images, [f"{name}_x{x}_y{y}" for x, y in corners], store, models)
            bar.update(len(corners))


def _reading_threads(models: Segmenter) -> int:
    """One where the CPU computes; a GPU predicts faster than one reads."""
    return 1 if models.hardware.device.type == "cpu" else max(1, min(models.config.worker_count, MAX_READERS))


def _corners(frame: Frame, grid: TileGrid, chunk: np.ndarray) -> list[tuple[int, int]]:
    """Level-0 x, y of tiles."""
    return [(round(column * frame.step), round(row * frame.step)) for row, column in grid.positions[chunk].tolist()]
