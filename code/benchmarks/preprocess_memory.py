"""Peak memory of `preprocess`, which is to grow neither with the number of slides nor much with their size.

    python code/benchmarks/preprocess_memory.py [--slides 100 400] [--skip many huge]

1 many: runs over small slides, as many as asked for: the peak is to be the same.
2 huge: thumbnail and tissue mask of a slide of 97,792 x 221,184 px, all of it tissue, in a process of its own: what a
  worker needs on top of its imports (goal under 0.5 GiB).
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

TUMOUR = (160, 160, 420, 420)
SIDE = 640

PREPROCESS = """
import sys
from pathlib import Path
from epsam.config.schema import Config
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
few = {"per_bin": 10, "negatives": 20}
config = Config(name="many", workers=0, patches={"size_px": 64, "train": few, "val": few, "test": few})
preprocess(config, Workspace(Path(sys.argv[1]), "many"))
print(Path("/proc/self/status").read_text())
"""
TISSUE = """
import sys
from pathlib import Path
from epsam.config.schema import Tissue
from epsam.slides.overview import Thumbnail, overview_size
from epsam.slides.reader import open_slide
from epsam.slides.tissue import find_tissue
slide = open_slide(sys.argv[1])
print(Path("/proc/self/status").read_text())
settings = Tissue()
thumbnail = Thumbnail(*overview_size(slide, settings.downsample), 1200)
assert find_tissue(slide, settings, None, thumbnail).any()
thumbnail.picture()
print(Path("/proc/self/status").read_text())
"""


def peaks(program: str, path: Path) -> list[float]:
    """MiB of resident memory at the most, each time that a program in a process of its own prints its status."""
    out = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True).stdout
    return [int(kb) / 1024 for kb in re.findall(r"VmHWM:\s+(\d+) kB", out)]


def write(path: Path, tiles: object, width: int, height: int, **more: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path,
        tiles,
        shape=(height, width, 3),
        dtype=np.uint8,
        tile=(512, 512),
        photometric="rgb",
        compression="jpeg",
        resolution=(40000, 40000),
        resolutionunit="CENTIMETER",
        metadata=None,
        **more,
    )


def tile(tumour: bool = False) -> np.ndarray:
    """(512, 512, 3) uint8 RGB of stained tissue."""
    colour = (120, 60, 150) if tumour else (205, 120, 180)
    noise = np.random.default_rng(0).integers(-20, 21, (512, 512, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def benchmark_many(folder: Path, count: int) -> None:
    glass = np.full((512, 512, 3), 244, np.uint8)
    points = "".join(
        f'<Coordinate Order="{k}" X="{TUMOUR[i]}" Y="{TUMOUR[j]}"/>'
        for k, (i, j) in enumerate([(0, 1), (2, 1), (2, 3), (0, 3)])
    )
    xml = (
        '<ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>'
        f"{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    data = folder / "dataset" / "many"
    (data / "annotations").mkdir(parents=True)
    for number in range(count):
        # 2 x 2 tiles of which one is tissue; the file is a few kilobytes, its thumbnail takes megabytes.
        write(data / "images" / f"s{number:03}.tif", iter([tile(), glass, glass, glass]), 1024, 1024)
        (data / "annotations" / f"s{number:03}.xml").write_text(xml)
    print(f"many: {count} slides of 1024 x 1024 px: peak {peaks(PREPROCESS, folder)[0]:.0f} MiB")


def benchmark_huge(folder: Path) -> None:
    path, (width, height) = folder / "huge.tif", (97_792, 221_184)
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in (1, 4, 16):
            columns, rows = -(-(width // level) // 512), -(-(height // level) // 512)
            tiff.write(
                # Level 16, which is looked at, is tissue; the finer ones hold a tile alone.
                (tile() if level == 16 or not number else None for number in range(columns * rows)),
                shape=(height // level, width // level, 3),
                dtype=np.uint8,
                tile=(512, 512),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level > 1),
                resolution=(40000 / level,) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    before, after = peaks(TISSUE, path)
    print(
        f"huge: tissue mask of {width} x {height} px: {after - before:.0f} MiB on top of {before:.0f} MiB (goal under 512)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, nargs="*", default=[100, 400])
    parser.add_argument("--skip", nargs="*", default=[], choices=["many", "huge"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if "many" not in args.skip:
            for count in args.slides:
                benchmark_many(Path(folder) / str(count), count)
        if "huge" not in args.skip:
            benchmark_huge(Path(folder))


if __name__ == "__main__":
    main()
