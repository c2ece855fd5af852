"""How fast patches come off slides, as ratios measured in one run.

    python code/benchmarks/slides.py [--xml ANNOTATION.xml] [--workers 2] [--skip huge ...]

1 extraction: the cutting of `preprocess`, PNG on disk included, against a bare loop of openslide.read_region of the
  same windows in the same order in the same process.
2 fractions: tumour share of 50,000 windows from the outlines against the mean of each window's mask.
3 huge: preprocess on sparse slides of 100,000 x 80,000 px with 1x and 4x tissue: peak memory and time.
"""

import argparse
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import tifffile

from epsam.patches.extraction import CHUNK, ExtractionTask, Window, extract_windows, reading_order
from epsam.runtime.workers import prepare
from epsam.slides.annotation_file import load_annotation

GROUPS = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
SIZE = (8192, 6144)
WINDOW = 512


def stained(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB with the grain of H&E: nuclei on pink, noise at several scales."""
    import cv2

    rng = np.random.default_rng(seed)
    grain = sum(
        cv2.resize(
            rng.normal(0, 1, (height // s + 1, width // s + 1)).astype(np.float32),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        )
        * a
        for s, a in ((2, 5), (8, 10), (64, 12))
    )
    image = np.array([215, 150, 200], np.float32) + grain[..., None]
    for x, y, r in rng.integers((0, 0, 5), (width, height, 11), (height * width // 900, 3)).tolist():
        cv2.circle(image, (x, y), r, (95 + r, 60 + r, 140 + r), -1, cv2.LINE_AA)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def write_pyramid(path: Path, image: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for level in range(3):
            scaled = np.ascontiguousarray(image[:: 4**level, :: 4**level])
            tiff.write(
                scaled,
                tile=(512, 512),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 85},
                resolution=(40000 / 4**level,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
                metadata=None,
            )


def both_ways(task: ExtractionTask) -> np.ndarray:
    """Seconds (2, 2) that a bare loop of read_region and our cutting take for a task, by the clock and of processor."""
    slide = _opened.get(task.path) or _opened.setdefault(task.path, openslide.OpenSlide(task.path))
    times = [(time.perf_counter(), time.process_time())]
    for window in task.windows:
        slide.read_region((window.x, window.y), 0, (task.size_px, task.size_px))
    times.append((time.perf_counter(), time.process_time()))
    extract_windows(task)
    times.append((time.perf_counter(), time.process_time()))
    return np.diff(times, axis=0)


_opened: dict[Path, openslide.OpenSlide] = {}


def warm_up(task: ExtractionTask) -> None:
    """In each process: open the slides and load the codecs, so that the turn measures neither."""
    both_ways(replace(task, windows=task.windows[:1]))
    time.sleep(0.3)  # so that the other processes take the other tasks


def benchmark_extraction(folder: Path, workers: int, repeats: int) -> None:
    """Each process does each task both ways, one after the other, so that what else the machine does counts for both."""
    tasks = []
    for number in range(workers):
        path = folder / f"slide_{number}.tif"
        write_pyramid(path, stained(SIZE[1], SIZE[0], number))
        places = np.array(
            [
                (x, y)
                for shift in (0, WINDOW // 2)
                for y in range(61 + shift, SIZE[1] - WINDOW, WINDOW)
                for x in range(81 + shift, SIZE[0] - WINDOW, WINDOW)
            ]
        )
        # As a selection does, take some of the candidates: here one in two.
        x, y = np.random.default_rng(number).permutation(places)[: len(places) // 2].T
        windows = [
            Window(f"slide_{number}_x{x[i]}_y{y[i]}_0", int(x[i]), int(y[i]), False)
            for i in reading_order(x, y, WINDOW)
        ]
        tasks += [
            ExtractionTask(
                path.stem,
                path,
                "openslide",
                None,
                None,
                WINDOW,
                WINDOW,
                folder / "train",
                tuple(windows[k : k + CHUNK]),
            )
            for k in range(0, len(windows), CHUNK)
        ]
    count = sum(len(task.windows) for task in tasks)
    seconds = []
    for _ in range(repeats):
        with multiprocessing.get_context("spawn").Pool(workers, prepare) as pool:
            pool.map(warm_up, tasks[:workers] * 2, chunksize=1)
            for png in (folder / "train").rglob("*.png"):
                png.unlink()
            seconds.append(np.sum(pool.map(both_ways, tasks, chunksize=1), axis=0))
    size = statistics.mean(p.stat().st_size for p in (folder / "train" / "image").glob("*.png")) / 1e6
    for clock, (bare, ours) in zip(("by the clock", "of processor time"), np.transpose(seconds), strict=True):
        ratios = ours / bare
        print(
            f"extraction, {clock}: {count} windows of {WINDOW} px, {workers} processes, {repeats} turns: bare "
            f"read_region {np.median(bare) / count * 1e3:.2f} ms a window, read and written as PNG ({size:.2f} MB) "
            f"{np.median(ours) / count * 1e3:.2f} ms: {np.median(ratios):.2f} of its time "
            f"({ratios.min():.2f} to {ratios.max():.2f}; goal at most 0.5)"
        )


def made_up_xml(path: Path) -> Path:
    """An annotation of about the size of Camelyon16's largest: 40 ragged outlines of 1,200 points."""
    rng = np.random.default_rng(0)
    parts = []
    for _ in range(40):
        angle = np.linspace(0, 2 * np.pi, 1200, endpoint=False)
        radius = rng.uniform(300, 3000) * (1 + 0.1 * np.sin(9 * angle) + rng.normal(0, 0.01, 1200))
        x, y = rng.uniform(10000, 40000, 2)
        points = zip(x + radius * np.cos(angle), y + radius * np.sin(angle), strict=True)
        parts.append(
            '<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>'
            + "".join(f'<Coordinate Order="{k}" X="{a:.1f}" Y="{b:.1f}"/>' for k, (a, b) in enumerate(points))
            + "</Coordinates></Annotation>"
        )
    path.write_text(
        f"<ASAP_Annotations><Annotations>{''.join(parts)}</Annotations><AnnotationGroups>"
        '<Group Name="Tumor"/></AnnotationGroups></ASAP_Annotations>'
    )
    return path


def benchmark_fractions(xml: Path, sample: int = 1500) -> None:
    start = time.perf_counter()
    annotation = load_annotation(xml, GROUPS)
    _ = annotation.spans
    loading = time.perf_counter() - start
    x0, y0, x1, y1 = annotation.bounds()
    rng = np.random.default_rng(0)
    step = int(((x1 - x0) * (y1 - y0) / 50_000) ** 0.5)
    grid_x, grid_y = np.meshgrid(np.arange(int(x0), int(x1), step), np.arange(int(y0), int(y1), step))
    x, y = (np.resize(g.ravel(), 50_000) for g in (grid_x, grid_y))
    start = time.perf_counter()
    share = annotation.fraction(x, y, WINDOW, WINDOW)
    ours = time.perf_counter() - start
    some = rng.choice(50_000, sample, replace=False)
    start = time.perf_counter()
    masks = np.array([annotation.mask(x[i], y[i], WINDOW, WINDOW).mean() for i in some])
    each = (time.perf_counter() - start) * 50_000 / sample
    print(
        f"fractions: {xml.name}, {len(annotation.polygons)} outlines, read and painted in {loading:.2f} s; 50,000 "
        f"windows {ours:.3f} s, by mask {each:.1f} s (from {sample}): {each / ours:.0f} times faster (goal 100); "
        f"largest difference {np.abs(masks - share[some]).max():.1e} (goal 1e-3); "
        f"{(share > 0).mean():.0%} of the windows hold tumour"
    )


HUGE = """
import sys, time
from pathlib import Path
from epsam.config.schema import Config
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
many = {"per_bin": 1000, "negatives": 10000}
config = Config(name="huge", workers=0, patches={"train": many, "val": many, "test": many})
start = time.perf_counter()
preprocess(config, Workspace(Path(sys.argv[1]), "huge"))
print(f"seconds {time.perf_counter() - start:.1f}")
print(*[line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line])
"""


def benchmark_huge(folder: Path) -> None:
    figures = []
    for side in (16, 32):
        top = folder / f"side_{side}"
        for number in range(3):
            write_huge(top / "dataset" / "huge" / "images" / f"tumor_{number}.tif", 32 + 16 * number, side)
            xml = top / "dataset" / "huge" / "annotations" / f"tumor_{number}.xml"
            xml.parent.mkdir(exist_ok=True)
            x, y = (32 + 16 * number) * 512, 32 * 512
            corners = [(x + 100, y + 100), (x + 1900, y + 300), (x + 1500, y + 2100)]
            points = "".join(f'<Coordinate Order="{k}" X="{a}" Y="{b}"/>' for k, (a, b) in enumerate(corners))
            xml.write_text(
                '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor">'
                f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
            )
        out = subprocess.run([sys.executable, "-c", HUGE, str(top)], capture_output=True, text=True, check=True).stdout
        figures.append(
            (
                side,
                *(float(re.search(p, out)[1]) for p in (r"seconds ([\d.]+)", r"VmHWM:\s+(\d+)")),
                len(list(top.rglob("image/*.png"))),
            )
        )
    for side, seconds, peak, patches in figures:
        print(
            f"huge: 3 slides of 100,000 x 80,000 px, tissue of {side} x {side} tiles each: {patches} patches in "
            f"{seconds:.1f} s, peak {peak / 1e6:.2f} GB (goal under 1)"
        )


def write_huge(path: Path, column: int, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image, glass = stained(512, 512, 0), np.full((512, 512, 3), 243, np.uint8)
    with tifffile.TiffWriter(path) as tiff:
        for level in (1, 4, 16):
            width, height = 100_000 // level, 80_000 // level
            columns, rows = -(-width // 512), -(-height // 512)
            left, top, n = column // level, 32 // level, side // level

            def tiles(columns=columns, rows=rows, left=left, top=top, n=n):
                yield glass  # the writer wants to see the first tile; the file leaves out all others without tissue
                for number in range(1, columns * rows):
                    y, x = divmod(number, columns)
                    yield image if left <= x < left + n and top <= y < top + n else None

            tiff.write(
                tiles(),
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(512, 512),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level > 1),
                metadata=None,
                resolution=(40000 / level,) * 2,
                resolutionunit="CENTIMETER",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xml", type=Path, help="an ASAP annotation with the groups Tumor and Exclusion")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip", nargs="*", default=[], choices=["extraction", "fractions", "huge"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "fractions" not in args.skip:
            benchmark_fractions(args.xml or made_up_xml(Path(folder) / "made_up.xml"))
        if "extraction" not in args.skip:
            benchmark_extraction(Path(folder), args.workers, args.repeats)
        if "huge" not in args.skip:
            benchmark_huge(Path(folder))


if __name__ == "__main__":
    main()
