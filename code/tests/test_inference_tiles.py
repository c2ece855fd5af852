"""Tiles cover the tissue, and what is blended from them does not depend on how often the run was stopped."""

import numpy as np
import pytest

from epsam.config.schema import Config
from epsam.inference.probability import ProbabilityMap
from epsam.inference.segmenter import overlap_of
from epsam.inference.slide_tiles import read_chunks, read_tiles
from epsam.inference.tiles import CHUNK, TileStore, blend, lay_grid
from epsam.runtime.seeds import generator
from epsam.segmenter import ImageSegmenter
from epsam.slides.reader import open_slide
from epsam.slides.remote import RemoteSlide
from epsam.slides.slide import read_window
from epsam.student.segmenter import StudentSegmenter
from tests.slide_factory import draw, write_slide

SIDE = 16


def grid_over(shape, overlap=0.5, tissue=None):
    return lay_grid(np.ones((20, 20), bool) if tissue is None else tissue, shape, SIDE, overlap)


def covered(grid):
    """How many tiles lie over each map pixel."""
    count = np.zeros(grid.shape, int)
    for row, column in grid.positions:
        count[row : row + SIDE, column : column + SIDE] += 1
    return count


def filled(store, grid, chunks, value):
    for chunk in chunks:
        store.append(np.ones(len(chunk), np.float32), np.full((len(chunk), SIDE, SIDE), value, np.float32))


@pytest.mark.parametrize("shape", [(100, 130), (16, 16), (9, 40), (17, 16)])
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75])
def test_tiles_cover_the_whole_slide_and_stay_inside(shape, overlap):
    grid = grid_over(shape, overlap)
    assert covered(grid).min() >= 1
    assert (grid.positions >= 0).all()
    assert (grid.positions <= np.maximum(np.array(shape) - SIDE, 0)).all()


def test_tissue_is_covered_and_glass_is_not():
    tissue = np.zeros((50, 60), bool)  # half the map's resolution
    tissue[10:14, 3:40] = True
    grid = grid_over((100, 120), tissue=tissue)
    count = covered(grid)
    assert count[20:28, 6:80].min() >= 1
    assert count[60:].max() == 0
    assert len(grid_over((100, 120), tissue=np.zeros((50, 60), bool)).positions) == 0


def test_equal_tiles_blend_to_the_same_value_without_seams(tmp_path):
    grid = grid_over((70, 55))
    chunks = grid.chunks(generator("test"))
    store = TileStore(tmp_path, SIDE, 0.5)
    filled(store, grid, chunks, 0.6)
    blend(grid, store, chunks, tmp_path / "map.u8")
    assert set(np.fromfile(tmp_path / "map.u8", np.uint8)) == {153}


def test_each_tile_lands_where_it_belongs(tmp_path):
    """Without overlap the map is the tiles side by side, whatever the order they were made in."""
    grid = grid_over((3 * SIDE, 40 * SIDE), overlap=0)
    chunks = grid.chunks(generator("test"))
    assert len(chunks) > 3
    store = TileStore(tmp_path, SIDE, 0.5)
    for chunk in chunks:
        refused = chunk % 5 == 0
        tiles = np.broadcast_to(chunk[~refused, None, None] / 255, ((~refused).sum(), SIDE, SIDE))
        store.append(np.where(refused, 0.2, 1.0), tiles)
    blend(grid, store, chunks, tmp_path / "map.u8")
    values = ProbabilityMap(tmp_path / "map.u8", grid.shape[::-1], 1.0).read(0, 1000, 0, 1000)
    expected = np.arange(120).reshape(3, 40)
    assert (values[::SIDE, ::SIDE] == np.where(expected % 5 == 0, 0, expected)).all()
    assert (values[SIDE - 1 :: SIDE, SIDE - 1 :: SIDE] == values[::SIDE, ::SIDE]).all()


def test_map_is_zero_where_no_tile_lies(tmp_path):
    tissue = np.zeros((30, 30), bool)
    tissue[2, 2] = tissue[28, 28] = True
    grid = grid_over((300, 300), tissue=tissue)
    chunks = grid.chunks(generator("test"))
    store = TileStore(tmp_path, SIDE, 0.5)
    filled(store, grid, chunks, 1.0)
    blend(grid, store, chunks, tmp_path / "map.u8")
    values = np.fromfile(tmp_path / "map.u8", np.uint8).reshape(300, 300)
    assert ((values > 0) == (covered(grid) > 0)).all()


@pytest.mark.parametrize(("extra_tiles", "extra_classified"), [(0, 0), (100, 0), (SIDE**2 * 3, 4 * 3 + 1), (-10, 0)])
def test_a_killed_run_goes_on_after_its_last_whole_chunk(tmp_path, extra_tiles, extra_classified):
    """Bytes too many (killed while writing) or too few (the machine went down) change nothing in the end."""
    grid = grid_over((90, 130))
    chunks = grid.chunks(generator("test"))

    def results(chunk):
        return (chunk % 3 / 3).astype(np.float32), np.random.default_rng(chunk[0]).random((CHUNK, SIDE, SIDE))

    def run(store, chunks):
        for chunk in chunks:
            probabilities, maps = results(chunk)
            store.append(probabilities, maps[: store.is_candidate(probabilities).sum()])

    whole = TileStore(tmp_path / "whole", SIDE, 0.5)
    run(whole, chunks)
    killed = TileStore(tmp_path / "killed", SIDE, 0.5)
    run(killed, chunks[:2])
    for path, extra in ((killed.tiles, extra_tiles), (killed.classified, extra_classified)):
        data = path.read_bytes()
        path.write_bytes(data + b"\7" * extra if extra >= 0 else data[:extra])
    again = TileStore(tmp_path / "killed", SIDE, 0.5)
    done = again.resume(chunks)
    assert done == (2 if extra_tiles >= 0 else 1)
    run(again, chunks[done:])
    for store in (whole, again):
        blend(grid, store, chunks, store.tiles.parent / "map.u8")
    for name in ("tiles.u8", "classified.f32", "map.u8"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_tiles_read_at_once_by_several_processes_are_those_read_one_by_one(tmp_path):
    path = write_slide(tmp_path / "a.tif", draw((700, 300), tissue=(20, 20, 600, 250)), levels=2)
    steps = range(0, 640, 48)
    chunks = [[(x, y) for x in steps if x != 192] for y in (0, 100, 236)] + [[(650, 250), (0, 0), (64, 0)]]
    with RemoteSlide(path) as slide:
        for read_px in (64, 128):  # as they are, and scaled
            expected = [[read_window(slide, x, y, read_px, 64) for x, y in chunk] for chunk in chunks]
            for threads in (1, 3) if read_px == 64 else (1,):
                found = list(read_chunks(slide, chunks, read_px, 64, threads))
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one, np.stack(other))


def test_tiles_that_overlap_are_one_window_of_the_slide(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "a.tif", draw((700, 300), tissue=(20, 20, 600, 250)), levels=1)
    with open_slide(path) as slide:
        asked, read = [], slide.read
        monkeypatch.setattr(slide, "read", lambda *window: asked.append(window) or read(*window))
        read_tiles(slide, [(0, 0), (48, 0), (96, 0), (400, 0), (0, 48), (48, 48)], 64, 64)
    assert asked == [(0, 0, 160, 64), (400, 0, 64, 64), (0, 48, 112, 64)]


@pytest.mark.parametrize(("kind", "usual"), [(ImageSegmenter, 0.5), (StudentSegmenter, 0.25)])
def test_tiles_of_sam_overlap_more_than_those_of_the_student_unless_settings_say_how_much(kind, usual):
    models = object.__new__(kind)  # its networks are of no matter here
    for inference, overlap in (({}, usual), ({"overlap": 0}, 0), ({"overlap": 0.6}, 0.6)):
        models.config = Config(name="mine", inference=inference)
        assert overlap_of(models) == overlap
