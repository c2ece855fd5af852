"""Outlines of 1,000, 5,000 and 20,000 foci: seconds of CPU, ratio to simplifying them all at once, and peak memory.

    python benchmarks/outlines.py [COUNT...]

The map is smoothed noise. "All at once" is what `find_foci` did before it simplified polygon by polygon; its time grows
with the square of the number, so it is measured at the smallest COUNT alone.
"""

import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from epsam.inference import outlines
from epsam.inference.export import write_asap_xml, write_geojson
from epsam.inference.outlines import Focus, find_foci
from epsam.inference.probability import ProbabilityMap
from epsam.inference.pyramid import write_mask

COUNTS = (1_000, 5_000, 20_000)
STEP = 4.0
MIN_AREA = 10_000
PX_PER_FOCUS = 19_500
"""Map pixels for each focus, about, with noise of this smoothness."""


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


def all_at_once(source: ProbabilityMap, threshold: float, min_area: float) -> list[Focus]:
    """The region of the whole slide as one geometry, as before."""
    blocks = source.blocks(outlines.BLOCK)
    region = shapely.unary_union([p for block in blocks for p in outlines._polygons_of(source, block, threshold)])
    region = shapely.simplify(_large(region, min_area), outlines.SIMPLIFY * source.step, preserve_topology=True)
    region = shapely.set_precision(shapely.make_valid(region), outlines.GRID)
    region = region.intersection(box(0, 0, *source.slide_size))
    return [Focus(p, outlines._mean_inside(source, p)) for p in _large(region, min_area).geoms]


def _large(region: shapely.Geometry, min_area: float) -> MultiPolygon:
    parts = outlines._parts(region)
    filled = [Polygon(p.exterior, [h for h in p.interiors if Polygon(h).area >= min_area]) for p in parts]
    return MultiPolygon([p for p in outlines._parts(shapely.unary_union(filled)) if p.area >= min_area])


def measure(find: Callable[..., list[Focus]], source: ProbabilityMap) -> tuple[int, float, float, float]:
    """In a process of its own: foci, area in px2, seconds of CPU, MiB by which the peak of memory rose."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    foci = find(source, 0.5, MIN_AREA)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return len(foci), sum(f.polygon.area for f in foci), seconds, (peak - before) / 1024


def measure_writing(source: ProbabilityMap) -> tuple[float, float, float]:
    """Seconds of CPU of GeoJSON, XML and mask."""
    foci, seconds = find_foci(source, 0.5, MIN_AREA), []
    path = source.path
    for write in (
        lambda: write_geojson(path.with_suffix(".geojson"), foci, None),
        lambda: write_asap_xml(path.with_suffix(".xml"), foci),
        lambda: write_mask(path.with_suffix(".tif"), foci, [source.slide_size], None),
    ):
        began = time.process_time()
        write()
        seconds.append(time.process_time() - began)
    return seconds[0], seconds[1], seconds[2]


def main(counts: list[int]) -> None:
    """Run all and print."""
    # A process for each task: only so is the peak of memory that of the task.
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        for count in counts:
            source = make_map(Path(folder), count)
            found, area, new, memory = pool.apply(measure, (find_foci, source))
            print(f"{found} foci: {new:.1f} s of CPU, {memory:.0f} MiB more memory", flush=True)
            print(
                "writing: GeoJSON {:.1f} s, XML {:.1f} s, mask {:.1f} s".format(*pool.apply(measure_writing, (source,)))
            )
            if count > min(counts):
                continue
            before, old_area, old, memory = pool.apply(measure, (all_at_once, source))
            print(
                f"all at once: {before} foci, {old:.1f} s, {memory:.0f} MiB; ratio {old / new:.1f}, "
                f"areas differ by {abs(area / old_area - 1):.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or list(COUNTS))
