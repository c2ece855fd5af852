"""Outlines of 1,000, 5,000 and 20,000 foci: seconds of CPU and peak memory of finding them and of each output. Linux.

    python benchmarks/outlines.py [COUNT...]

The map is smoothed noise. At the smallest COUNT the outlines are also simplified all at once, as `find_foci` did before it
went polygon by polygon; the time of that grows with the square of the number.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from epsam.inference import outlines
from epsam.inference.area import tissue_area
from epsam.inference.export import write_asap_xml, write_geojson
from epsam.inference.outlines import find_foci
from epsam.inference.overlay import write_overlay
from epsam.inference.pages.slide_page import write_slide_page
from epsam.inference.predict_slide import caption, describe, diameter
from epsam.inference.probability import ProbabilityMap
from epsam.inference.pyramid import write_mask
from epsam.slides.slide import Slide

COUNTS = (1_000, 5_000, 20_000)
STEP = 4.0
MIN_AREA = 10_000
PX_PER_FOCUS = 19_500
"""Map pixels for each focus, about, with noise of this smoothness."""
TISSUE_DOWNSAMPLE = 16


class Glass(Slide):
    """A slide of one colour, without a file."""

    reader = "none"

    def __init__(self, path: Path, size: tuple[int, int]):
        super().__init__(path)
        self.mpp = (0.25, 0.25)
        self.level_sizes = tuple((size[0] // factor, size[1] // factor) for factor in (1, 4, 16))

    def _open(self) -> None:
        """There is no file."""

    def _read_inside(self, x: int, y: int, width: int, height: int, level: int) -> np.ndarray:
        return np.full((height, width, 3), (235, 210, 225), np.uint8)


def make_map(folder: Path, count: int) -> ProbabilityMap:
    """A square map with about `count` foci, written strip by strip."""
    side = int((count * PX_PER_FOCUS) ** 0.5)
    path = folder / f"{count}.u8"
    with path.open("wb") as stream:
        for number, start in enumerate(range(0, side, 512)):
            noise = np.random.default_rng(number).standard_normal((512, side)).astype(np.float32)
            smooth = cv2.GaussianBlur(noise, (0, 0), 8)
            values = 0.45 + 0.3 * smooth / smooth.std()
            stream.write(np.rint(values[: min(512, side - start)].clip(0, 1) * 255).astype(np.uint8).tobytes())
    return ProbabilityMap(path, (int(side * STEP), int(side * STEP)), STEP)


def all_at_once(source: ProbabilityMap, threshold: float, min_area: float) -> list[Polygon]:
    """The region of the whole slide as one geometry, as before."""
    blocks = source.blocks(outlines.BLOCK)
    region = shapely.unary_union([p for block in blocks for p in outlines._polygons_of(source, block, threshold)])
    region = shapely.simplify(_large(region, min_area), outlines.SIMPLIFY * source.step, preserve_topology=True)
    region = shapely.set_precision(shapely.make_valid(region), outlines.GRID)
    region = region.intersection(box(0, 0, *source.slide_size))
    found = list(_large(region, min_area).geoms)
    for polygon in found:
        outlines._mean_inside(source, polygon)
    return found


def _large(region: shapely.Geometry, min_area: float) -> MultiPolygon:
    parts = outlines._parts(region)
    filled = [Polygon(p.exterior, [h for h in p.interiors if Polygon(h).area >= min_area]) for p in parts]
    return MultiPolygon([p for p in outlines._parts(shapely.unary_union(filled)) if p.area >= min_area])


def memory_mib(what: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it held since `forget_peak`."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) / 1024


def forget_peak() -> None:
    """Let VmHWM count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def cost(task: Callable[[], Any], before: float) -> tuple[Any, float, float]:
    """What `task` returns, its seconds of CPU, and the MiB by which the peak of memory lies above `before`."""
    forget_peak()
    began = time.process_time()
    result = task()
    return result, time.process_time() - began, memory_mib("VmHWM") - before


def measure(source: ProbabilityMap) -> tuple[int, list[tuple[str, float, float]]]:
    """Number of foci, and of finding them and of each output in turn its name, seconds of CPU and MiB.

    All MiB are above what the process held before it looked for foci, so those that are kept count.
    """
    slide = Glass(source.path, source.slide_size)
    tissue = np.ones([side // TISSUE_DOWNSAMPLE for side in source.slide_size[::-1]], bool)
    folder, row = source.path.parent, dict[str, Any]()
    before = memory_mib("VmRSS")
    foci, *found = cost(lambda: find_foci(source, 0.5, MIN_AREA), before)
    sides = [diameter(focus.polygon) for focus in foci]

    def figures() -> None:
        area = tissue_area(tissue, TISSUE_DOWNSAMPLE, foci)
        row.update(describe(slide, "glass", foci, sides, tissue_px2=area))

    def page() -> None:
        write_slide_page(folder, slide, row, foci, sides, source, tissue, caption(row), [])

    tasks = {
        "slides.csv": figures,
        "GeoJSON": lambda: write_geojson(folder / "glass.geojson", foci, None),
        "XML": lambda: write_asap_xml(folder / "glass.xml", foci),
        "mask": lambda: write_mask(folder / "glass.tif", foci, [source.slide_size], None),
        "overlay": lambda: write_overlay(folder / "glass.png", slide, source, foci, "glass", caption(row)),
        "page": page,
    }
    rows = [("find", *found)]
    for name, task in tasks.items():
        rows.append((name, *cost(task, before)[1:]))
    return len(foci), rows


def measure_all_at_once(source: ProbabilityMap) -> tuple[int, float, float]:
    """Number of foci, seconds of CPU and MiB of the old way."""
    before = memory_mib("VmRSS")
    found, seconds, mib = cost(lambda: all_at_once(source, 0.5, MIN_AREA), before)
    return len(found), seconds, mib


def main(counts: list[int]) -> None:
    """Run all and print."""
    # A process for each count: only so is what one holds not what an earlier one left.
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        print(f"{'foci':>6}  {'what':<12}{'s of CPU':>9}{'MiB':>6}")
        for count in counts:
            source = make_map(Path(folder), count)
            found, rows = pool.apply(measure, (source,))
            for name, seconds, mib in rows:
                print(f"{found:>6}  {name:<12}{seconds:>9.1f}{mib:>6.0f}", flush=True)
            if count == min(counts):
                found, seconds, mib = pool.apply(measure_all_at_once, (source,))
                print(f"{found:>6}  {'all at once':<12}{seconds:>9.1f}{mib:>6.0f}", flush=True)


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or list(COUNTS))
