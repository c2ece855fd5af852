"""The pictures of the README, out of a finished run: overview.png, slide.png, qupath.png and asap.png.

    python code/benchmarks/pictures.py [TOP] [--name demo] [--out asset]

TOP is a top level whose run NAME is done; the default is this project's own. The test slide with most tumour is
predicted by the student into TOP/runs/NAME/slides/ unless it lies there; what the pictures show is read back from
the files.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import openslide
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from slide_dice import predict, slide_path

from epsam.config.loading import load_config
from epsam.report.overview import draw_overview
from epsam.runtime.device import choose_hardware
from epsam.runtime.files import atomic, read_csv
from epsam.runtime.log import set_up_logging
from epsam.slides.annotation_file import load_annotation
from epsam.slides.openslide import bounds_origin
from epsam.slides.overview import overview
from epsam.slides.reader import open_slide
from epsam.visualization.palette import EXCLUDED, PREDICTION, map_colours
from epsam.workspace import Workspace

LARGEST = 480_000
"""Bytes of one picture."""
PANEL_PX = 600
MARGIN = 0.15
"""Room around the shown foci, as a share of their extent."""
ROWS = 10
"""Most lines of the list of annotations."""


def main() -> None:
    project = Path(__file__).parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("top", nargs="?", type=Path, default=project, metavar="TOP")
    parser.add_argument("--name", default="demo")
    parser.add_argument("--out", type=Path, default=project / "asset")
    arguments = parser.parse_args()
    set_up_logging()
    workspace = Workspace(arguments.top, arguments.name)
    config = load_config(workspace.run / "config.yaml")
    row = max(
        (
            row
            for row in read_csv(workspace.slides_csv, ["slide", "path", "split", "patches_positive"])
            if row["split"] == "test"
        ),
        key=lambda row: int(row["patches_positive"] or 0),
    )
    slide, output = slide_path(workspace, row), workspace.run / "slides"
    predict(config, workspace, "student", slide, output, fresh=False)
    draw_overview(config, workspace, choose_hardware(config.profile), workspace.run / "overview.png", rows=3)
    for name, picture in (
        ("overview", _read(workspace.run / "overview.png")),
        ("slide", _read(output / f"{row['slide']}_overlay.png")),
        ("qupath", draw_qupath(slide, output / f"{row['slide']}.geojson")),
        ("asap", draw_asap(slide, output / f"{row['slide']}.xml", output / f"{row['slide']}_probability.tif")),
    ):
        save(arguments.out / f"{name}.png", picture)


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def save(path: Path, picture: Image.Image) -> None:
    """Write a picture with a palette, made smaller until it takes no more than LARGEST bytes."""
    width = min(picture.width, 1200)
    while True:
        height = round(picture.height * width / picture.width)
        with atomic(path) as temporary:
            picture.resize((width, height), Image.Resampling.LANCZOS).quantize(256, kmeans=2).save(
                temporary, optimize=True
            )
        if path.stat().st_size <= LARGEST:
            break
        width = int(width * 0.93)
    print(f"{path}: {width} x {height} px, {path.stat().st_size / 1e3:.0f} kB")


def draw_qupath(slide_path: Path, geojson: Path) -> Image.Image:
    """The annotations of the GeoJSON in their colour, and the list of them with their measurements."""
    features = json.loads(geojson.read_text())["features"]
    origin = np.array(bounds_origin(slide_path))
    rings = [[np.array(ring) + origin for ring in feature["geometry"]["coordinates"]] for feature in features]
    figure = _figure()
    axes = _photo(figure, slide_path, [ring for polygon in rings for ring in polygon], 0)
    for feature, polygon in zip(features, rings, strict=True):
        for ring in polygon:
            axes.plot(*ring.T, color=np.array(feature["properties"]["classification"]["color"]) / 255, linewidth=2)
    table = figure.add_axes((0.53, 0.04, 0.45, 0.86))
    table.axis("off")
    keys = [*features[0]["properties"]["measurements"]]
    cells = [
        [
            f["properties"]["name"],
            f["properties"]["classification"]["name"],
            *(_shown(f["properties"]["measurements"][key]) for key in keys),
        ]
        for f in features[:ROWS]
    ]
    shown = table.table(
        cells,
        colLabels=["Name", "Class", *(key.replace(" ", "\n", 1) for key in keys)],
        loc="upper left",
        cellLoc="left",
        edges="horizontal",
    )
    shown.auto_set_font_size(False)
    shown.set_fontsize(9)
    shown.scale(1, 1.7)
    for (line, _), cell in shown.get_celld().items():
        cell.set_edgecolor("0.8")
        if line == 0:
            cell.set_height(cell.get_height() * 1.4)
    _title(figure, 0.02, geojson.name)
    _title(figure, 0.53, f"its {len(features)} annotations" + (f", the first {ROWS}" if len(features) > ROWS else ""))
    return _finished(figure)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def draw_asap(slide_path: Path, xml: Path, probability: Path) -> Image.Image:
    """The annotations of the XML by group, and the probability as an overlay of the slide."""
    polygons = load_annotation(xml, {"tumour": ["Tumor"], "hole": ["Exclusion"]}).polygons
    figure = _figure()
    outlines = [polygon.points for polygon in polygons]
    axes = _photo(figure, slide_path, outlines, 0)
    for polygon in polygons:
        colour = np.array(PREDICTION if polygon.kind == "tumour" else EXCLUDED) / 255
        axes.plot(*np.vstack([polygon.points, polygon.points[:1]]).T, color=colour, linewidth=2)
    axes = _photo(figure, slide_path, outlines, 1)
    (x0, x1), (y1, y0) = axes.get_xlim(), axes.get_ylim()
    with openslide.OpenSlide(probability) as opened:
        level = opened.get_best_level_for_downsample((x1 - x0) / PANEL_PX)
        scale = opened.level_downsamples[level]
        part = opened.read_region((int(x0), int(y0)), level, (round((x1 - x0) / scale), round((y1 - y0) / scale)))
    values = np.asarray(part)[..., 0] / 255
    axes.imshow(map_colours(values) / 255, alpha=0.55 * np.clip(values * 1.5, 0, 1), extent=(x0, x1, y1, y0))
    _title(figure, 0.02, xml.name)
    _title(figure, 0.51, probability.name)
    return _finished(figure)


def _figure() -> Figure:
    figure = Figure(figsize=(12.4, 6.7), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _photo(figure: Figure, path: Path, rings: list[np.ndarray], column: int) -> Axes:
    """The part of the slide that holds `rings`, as the left (0) or right (1) panel; axes in level-0 px."""
    corners = np.concatenate(rings)
    low, high = corners.min(0), corners.max(0)
    with open_slide(path) as slide:
        side = min(float((high - low).max()) * (1 + 2 * MARGIN), min(slide.size))
        low = np.rint(np.clip((low + high - side) / 2, 0, np.subtract(slide.size, side))).astype(int)
        image = overview(slide, max(1.0, side / PANEL_PX), window=(*low.tolist(), round(side), round(side)))
    axes = figure.add_axes((0.02 + 0.49 * column, 0.02, 0.47, 0.87))
    axes.imshow(image, extent=(low[0], low[0] + side, low[1] + side, low[1]))
    axes.set_axis_off()
    axes.autoscale(False)
    return axes


def _title(figure: Figure, x: float, text: str) -> None:
    figure.text(x, 0.935, text, fontsize=13, weight="bold", va="center", parse_math=False)


def _finished(figure: Figure) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


if __name__ == "__main__":
    main()
