"""The stage as a whole, on data sets as people have them."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from epsam.config.schema import Config
from epsam.errors import ConfigError, DataError
from epsam.patches.patch import list_patches, patches_for_sam
from epsam.runtime import workers
from epsam.runtime.workers import affordable, run_tasks
from epsam.slides.annotation_file import load_annotation
from epsam.slides.reader import open_slide
from epsam.stages.preprocess import preprocess
from epsam.visualization import palette
from epsam.workspace import SPLITS, Workspace
from tests.slide_factory import GROUPS, box_points, draw, make_dataset, philips, spoil_tile, write_slide, write_xml
from tests.test_slides_tiff import write_ome

WSI = Path(__file__).parents[3] / "shared" / "data" / "wsi"
PATCHES = {
    "size_px": 64,
    "tissue": {"downsample": 4, "close_px": 3, "median_px": 3},
    "train": {"at_random": 12, "negatives": 8, "classifier_extra": 5},
    "val": {"per_bin": 2, "negatives": 4},
    "test": {"per_bin": 2, "top_up": 30, "negatives": 4},
}


def config(**more) -> Config:
    patches = PATCHES | more.pop("patches", {})
    slides = {"unannotated": "normal"} | more.pop("slides", {})
    settings = {"name": "mine", "workers": 0, "slides": slides, "patches": patches}
    return Config(**(settings | {"classifier": {"positive_share": (0.1, 1)}} | more))


@pytest.fixture
def ws(tmp_path):
    workspace = Workspace(tmp_path, "mine")
    make_dataset(workspace.dataset)
    return workspace


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def slides(ws) -> dict[str, dict[str, str]]:
    return {row["slide"]: row for row in table(ws.slides_csv)}


def written(ws) -> dict[str, bytes]:
    return {
        f"{split}/{kind}/{p.name}": p.read_bytes()
        for split in SPLITS
        for kind in ("image", "mask")
        for p in sorted((ws.split(split) / kind).glob("*"))
    }


def test_patches_masks_and_tables_say_the_same(ws):
    preprocess(config(), ws)
    rows = {row["name"]: row for row in table(ws.patches_csv)}
    chosen = {name for name, row in rows.items() if row["chosen"] == "1"}
    assert len(chosen) < len(rows)
    found = {patch.name: (split, patch) for split in SPLITS for patch in list_patches(ws.split(split))}
    assert set(found) == chosen
    for name, (split, patch) in found.items():
        row = rows[name]
        assert (row["split"], int(row["label"])) == (split, patch.label)
        assert patch.label == (float(row["tumour_fraction"]) > 0)
        slide = open_slide(ws.slides / f"{row['slide']}.tif")
        at = int(row["x"]), int(row["y"]), 64, 64
        image = cv2.cvtColor(cv2.imread(str(patch.path)), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(image, slide.read(*at))
        assert patch.has_mask == bool(patch.label)
        if patch.label:
            mask = cv2.imread(str(patch.mask), cv2.IMREAD_UNCHANGED)
            true = load_annotation(ws.annotations / f"{row['slide']}.xml", GROUPS).mask(*at)
            np.testing.assert_array_equal(mask, true * np.uint8(255))
            assert (mask > 0).mean() == pytest.approx(float(row["tumour_fraction"]), abs=1e-5)
            # Tumour is drawn darker, so a mask that is off by a pixel or more shows.
            assert ((image[..., 1] < 90) == true).mean() > 0.97
    assert {row["reader"] for row in rows.values()} == {"openslide"}
    assert all(row["vendor"] == "generic-tiff" and row["reader_version"] for row in rows.values())


def test_what_sam_and_the_classifier_get(ws):
    preprocess(config(), ws)
    rows = table(ws.patches_csv)
    share = {row["name"]: float(row["tumour_fraction"]) for row in rows}
    extra = [row for row in rows if row["purpose"] == "classifier"]
    assert len(extra) == 5
    assert all(0.1 < share[r["name"]] <= 0.2 or share[r["name"]] > 0.9 for r in extra)
    assert all(0.2 < share[patch.name] <= 0.9 for split in SPLITS for patch in patches_for_sam(ws, split))
    assert len(patches_for_sam(ws, "train")) == 12
    by_slide = slides(ws)
    counted = {
        split: sum(
            int(row["patches_positive"]) + int(row["patches_negative"])
            for row in by_slide.values()
            if row["split"] == split
        )
        for split in SPLITS
    }
    assert counted == {split: len(list_patches(ws.split(split))) for split in SPLITS}
    assert by_slide["normal_001"]["patches_positive"] == "0"
    assert (by_slide["tumor_001"]["width"], by_slide["tumor_001"]["mpp_x"]) == ("768", "0.25")


def test_two_workers_and_none_write_the_same(ws, tmp_path):
    preprocess(config(), ws)
    alone = written(ws)
    other = Workspace(tmp_path / "other", "mine")
    shutil.copytree(ws.slides, other.slides)
    shutil.copytree(ws.annotations, other.annotations)
    preprocess(config(workers=2), other)
    assert written(other) == alone
    assert table(other.patches_csv) == table(ws.patches_csv)


def test_a_slide_that_was_replaced_is_cut_anew(ws):
    preprocess(config(), ws)
    split = slides(ws)["tumor_002"]["split"]
    before = {p.name: p.read_bytes() for p in ws.split(split).rglob("image/tumor_002*")}
    boxes = [(144, 112, 316, 260), (436, 330, 636, 500)]
    write_slide(ws.slides / "tumor_002.tif", draw(tumour=boxes, seed=77))
    preprocess(config(), ws)
    after = {p.name: p.read_bytes() for p in ws.split(split).rglob("image/tumor_002*")}
    assert set(after) == set(before)
    assert not any(after[name] == before[name] for name in before)


def test_second_call_leaves_what_is_whole_untouched(ws):
    preprocess(config(), ws)

    def times():
        files = [*ws.dataset.rglob("*.png"), *ws.state.rglob("*.npz")]
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    assert len(before) > 40
    preprocess(config(), ws)
    assert times() == before


def test_sheets_drawn_from_kept_scans_are_those_of_the_first_call(ws):
    preprocess(config(), ws)
    first = {path.name: path.read_bytes() for path in ws.qa.glob("*.jpg")}
    assert first
    shutil.rmtree(ws.qa)
    preprocess(config(), ws)
    assert {path.name: path.read_bytes() for path in ws.qa.glob("*.jpg")} == first


def test_masks_that_were_lost_are_written_again_and_the_images_stay(ws):
    preprocess(config(), ws)
    whole = written(ws)
    images = {path: path.stat().st_mtime_ns for path in ws.dataset.rglob("image/*.png")}
    shutil.rmtree(ws.split("test") / "mask")
    preprocess(config(), ws)
    assert written(ws) == whole
    assert {path: path.stat().st_mtime_ns for path in images} == images


def test_corrected_annotation_is_heeded_by_the_next_call(ws):
    preprocess(config(), ws)
    split = slides(ws)["tumor_002"]["split"]
    write_xml(ws.annotations / "tumor_002.xml", [("Tumor", box_points((200, 200, 420, 420)))])
    preprocess(config(), ws)
    true = load_annotation(ws.annotations / "tumor_002.xml", GROUPS)
    masks = list((ws.split(split) / "mask").glob("tumor_002*"))
    assert masks
    for path in masks:
        x, y = (int(part[1:]) for part in path.stem.split("_")[2:4])
        np.testing.assert_array_equal(cv2.imread(str(path), 0) > 0, true.mask(x, y, 64, 64))


def test_patches_of_ones_own_are_left_alone(ws):
    mine = ws.split("train") / "image" / "from_elsewhere_1.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    preprocess(config(), ws)
    assert mine.read_bytes() == b"mine"


def test_another_resolution_is_cut_from_the_same_places(ws):
    preprocess(config(patches={"size_px": 32, "target_mpp": 0.5}), ws)
    rows = table(ws.patches_csv)
    assert {row["read_px"] for row in rows} == {"64"}
    patch = next(p for p in patches_for_sam(ws, "train"))
    row = next(r for r in rows if r["name"] == patch.name)
    mask = cv2.imread(str(patch.mask), 0) > 0
    assert mask.shape == (32, 32)
    assert abs(mask.mean() - float(row["tumour_fraction"])) < 0.05
    full = open_slide(ws.slides / f"{row['slide']}.tif").read(int(row["x"]), int(row["y"]), 64, 64)
    image = cv2.cvtColor(cv2.imread(str(patch.path)), cv2.COLOR_BGR2RGB)
    assert np.abs(image - full.reshape(32, 2, 32, 2, 3).mean((1, 3))).mean() < 4


def test_slides_coarser_than_the_patches_are_enlarged_with_a_warning(ws, caplog):
    ws.slide_table.write_text("slide,mpp\ntumor_001,0.5\n")
    preprocess(config(patches={"size_px": 32, "target_mpp": 0.25}), ws)
    (line,) = (record.message for record in caplog.records if "are enlarged" in record.message)
    assert line.startswith("1 of ")
    assert "tumor_001 0.5" in line


def test_slide_without_resolution_needs_slides_csv_for_target_mpp(ws):
    write_slide(ws.slides / "tumor_005.tif", draw(tumour=[(128, 112, 300, 260)]), mpp=None)
    shutil.copy(ws.annotations / "tumor_001.xml", ws.annotations / "tumor_005.xml")
    settings = {"size_px": 32, "target_mpp": 0.5}
    preprocess(config(patches=settings), ws)
    assert slides(ws)["tumor_005"]["status"] == "failed"
    assert "slides.csv" in slides(ws)["tumor_005"]["reason"]
    ws.slide_table.write_text("slide,mpp,split,exclude\ntumor_005,0.125,train,\ntumor_004,,,blurred\n")
    preprocess(config(patches=settings), ws)
    assert slides(ws)["tumor_005"]["status"] == "ok"
    assert slides(ws)["tumor_005"]["split"] == "train"
    assert {r["read_px"] for r in table(ws.patches_csv) if r["slide"] == "tumor_005"} == {"128"}
    assert slides(ws)["tumor_004"]["status"] == "excluded"
    assert "blurred" in slides(ws)["tumor_004"]["reason"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("slide,tissue\ntumor_001,4\n", "unknown column tissue"),
        ("slide,split\ntumor_001,testing\n", "none of train"),
        ("slide,mpp\ntumor_001,x\n", "line 2: mpp 'x' is not a number"),
        ("slide\na\na\n", "line 3: a comes twice"),
        ("name\na\n", "column slide is missing"),
    ],
)
def test_slides_csv_that_makes_no_sense_is_refused(ws, text, reason):
    ws.slide_table.write_text(text)
    with pytest.raises((ConfigError, DataError), match=reason):
        preprocess(config(), ws)


def fails(ws, slide: str, reason: str, **settings) -> None:
    """Run, and see that this slide alone fails, for this reason."""
    preprocess(config(**settings), ws)
    rows = slides(ws)
    assert reason in rows[slide]["reason"]
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {slide}
    assert not any(name.split("/")[-1].startswith(f"{slide}_x") for name in written(ws))
    assert slide in (ws.qa / "index.html").read_text()


def test_tumour_slide_without_xml(ws):
    (ws.annotations / "tumor_003.xml").unlink()
    fails(ws, "tumor_003", "its annotation is missing")


def test_xml_without_slide(ws):
    write_xml(ws.annotations / "tumor_009.xml", [("Tumor", box_points((1, 1, 9, 9)))])
    fails(ws, "tumor_009.xml", "annotation without a slide")


def test_truncated_xml(ws):
    path = ws.annotations / "tumor_003.xml"
    path.write_bytes(path.read_bytes()[:-200])
    fails(ws, "tumor_003", "not whole or not XML")


def test_entity_bomb(ws):
    lol = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    (ws.annotations / "tumor_003.xml").write_text(
        f'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY l0 "lol">{lol}]><ASAP_Annotations>&l9;</ASAP_Annotations>'
    )
    fails(ws, "tumor_003", "the XML defines entities")


def test_order_out_of_range(ws, caplog):
    path = ws.annotations / "tumor_003.xml"
    path.write_text(path.read_text().replace('Order="3"', 'Order="4000000000"'))
    preprocess(config(), ws)
    assert slides(ws)["tumor_003"]["status"] == "ok"
    assert int(slides(ws)["tumor_003"]["patches_positive"]) > 0
    assert "tumor_003.xml: annotation `Annotation 0`: Order does not count 0 to 3" in caplog.text


def test_undeclared_and_unknown_group(ws):
    write_xml(ws.annotations / "tumor_003.xml", [("metastases", box_points((128, 112, 300, 260)))], declared=())
    fails(ws, "tumor_003", "groups found: metastases (1)")


def test_annotation_of_another_slide(ws):
    write_xml(ws.annotations / "tumor_003.xml", [("Tumor", box_points((90000, 80000, 91000, 81000)))])
    fails(ws, "tumor_003", "outside the slide")


def test_annotation_that_reaches_beyond_the_slide(ws, caplog):
    write_xml(ws.annotations / "tumor_003.xml", [("Tumor", box_points((420, 330, 5000, 500)))])
    preprocess(config(), ws)
    assert slides(ws)["tumor_003"]["status"] == "ok"
    assert (
        "tumour outlines reach beyond the slide (x 420 to 5000, y 330 to 500; the slide is 768 x 640 px)" in caplog.text
    )


@pytest.mark.parametrize("pen", [None, (20, 20, 24), (70, 70, 78)])
def test_slide_without_tissue(ws, pen):
    image = draw(tissue=(0, 0, 0, 0))
    if pen:
        cv2.line(image, (100, 100), (600, 400), pen, 30)
    write_slide(ws.slides / "tumor_003.tif", image)
    fails(ws, "tumor_003", "no tissue found")


def test_a_slide_without_colour(ws):
    write_slide(
        ws.slides / "tumor_003.tif", draw(tumour=[(100, 100, 300, 300)])[..., 1:2].repeat(3, 2), compression="lzw"
    )
    fails(ws, "tumor_003", "has no colour")


def test_slide_that_is_garbage(ws):
    (ws.slides / "tumor_003.tif").write_bytes(b"II*\0" + bytes(999))
    fails(ws, "tumor_003", "tumor_003.tif")


def test_link_that_leads_nowhere(ws):
    (ws.slides / "tumor_003.tif").unlink()
    (ws.slides / "tumor_003.tif").symlink_to(ws.root / "unmounted" / "tumor_003.tif")
    fails(ws, "tumor_003", "not mounted")


@pytest.mark.parametrize("collection", ["own", "camelyon16"])
def test_a_slide_without_annotation_is_normal_only_where_something_says_so(ws, caplog, collection):
    write_slide(ws.slides / "test_001.tif", draw(seed=5))
    settings = {"unannotated": "exclude", "collection": collection}
    preprocess(config(slides=settings), ws)
    row = slides(ws)["test_001"]
    assert (row["status"], row["patches_negative"]) == ("excluded", "0")
    assert "neither annotated nor labelled" in row["reason"]
    assert (slides(ws)["normal_001"]["status"] == "ok") == (collection == "camelyon16")
    left_out = "1" if collection == "camelyon16" else "2"
    assert f"{left_out} of 6 slides are left out: neither annotated nor labelled; if it is normal" in caplog.text
    ws.slide_table.write_text("slide,label\ntest_001.tif,normal\n")
    preprocess(config(slides=settings), ws)
    assert slides(ws)["test_001"]["status"] == "ok"
    assert slides(ws)["test_001"]["patches_positive"] == "0"
    ws.slide_table.unlink()
    preprocess(config(slides=settings | {"unannotated": "normal"}), ws)
    assert slides(ws)["test_001"]["status"] == "ok"


def test_known_trouble_is_left_out_with_its_reason(ws):
    write_slide(ws.slides / "normal_086.tif", draw(seed=5))
    write_slide(ws.slides / "Tumor_018.tif", draw(tumour=[(144, 112, 316, 260)]))
    write_xml(ws.annotations / "Tumor_018.xml", [("Tumor", box_points((144, 112, 316, 260)))])
    preprocess(
        config(
            slides={"collection": "camelyon16"},
            patches={
                "train": {"per_bin": 2, "negatives": 10**6},
                "val": {"per_bin": 2, "negatives": 10**6},
                "test": {"per_bin": 2, "negatives": 10**6},
            },
        ),
        ws,
    )
    assert slides(ws)["normal_086"]["status"] == "excluded"
    assert "tumor_111" in slides(ws)["normal_086"]["reason"]
    assert slides(ws)["Tumor_018"]["patches_negative"] == "0"
    assert int(slides(ws)["tumor_001"]["patches_negative"]) > 0


def test_copies_of_a_slide_under_other_names_are_a_warning(ws, caplog):
    preprocess(config(), ws)
    assert "copies of one slide" not in caplog.text
    first = next(ws.slides.glob("*.tif"))
    shutil.copy(first, ws.slides / "a_copy.tif")
    preprocess(config(), ws)
    (line,) = (record.message for record in caplog.records if "copies of one slide" in record.message)
    assert "a_copy" in line
    assert first.stem in line


def test_two_slides_of_one_name(ws):
    shutil.copy(ws.slides / "tumor_003.tif", ws.slides / "tumor_003.svs")
    preprocess(config(), ws)
    rows = [row for row in table(ws.slides_csv) if row["slide"] == "tumor_003"]
    assert [row["status"] for row in rows] == ["failed"] * 2
    assert all("2 slides are named" in row["reason"] for row in rows)


def test_names_with_spaces_capitals_and_other_letters(ws):
    for name in ("Slide 3", "Schnitt_ü_片"):
        write_slide(ws.slides / f"{name}.TIF", draw(tumour=[(128, 112, 300, 260)]))
        write_xml(ws.annotations / f"{name}.xml", [("Tumor", box_points((128, 112, 300, 260)))])
    preprocess(
        config(
            patches={
                "train": {"per_bin": 40, "negatives": 40},
                "val": {"per_bin": 40, "negatives": 40},
                "test": {"per_bin": 40, "negatives": 40},
            }
        ),
        ws,
    )
    for name in ("Slide 3", "Schnitt_ü_片"):
        row = slides(ws)[name]
        assert row["status"] == "ok"
        assert list((ws.split(row["split"]) / "mask").glob(f"{name}_x*_1.png"))
        assert (ws.qa / f"{name}.jpg").is_file()


def test_an_ome_tiff_is_cut_by_the_reader_that_found_its_windows(ws):
    (ws.slides / "tumor_001.tif").unlink()
    write_ome(ws.slides / "tumor_001.ome.tif", draw(tumour=[(136, 128, 300, 260)]), "YXS", photometric="rgb")
    preprocess(config(), ws)
    row = slides(ws)["tumor_001"]
    assert (row["status"], row["reason"], row["reader"]) == ("ok", "", "tifffile")
    assert list((ws.split(row["split"]) / "image").glob("tumor_001_x*.png"))


def test_data_set_that_is_a_link(ws, tmp_path):
    elsewhere = tmp_path / "big disk"
    ws.dataset.rename(elsewhere)
    ws.dataset.symlink_to(elsewhere)
    preprocess(config(), ws)
    assert len(list_patches(elsewhere / "train")) > 0


def test_tile_that_cannot_be_decoded_costs_its_windows_alone(ws):
    everything = {
        "train": {"per_bin": 99, "negatives": 999},
        "val": {"per_bin": 99, "negatives": 999},
        "test": {"per_bin": 99, "negatives": 999},
    }
    preprocess(config(patches=everything), ws)
    whole = {name.split("/")[-1] for name in written(ws)}
    spoil_tile(ws.slides / "tumor_002.tif", 8)  # x 256 to 384, y 128 to 256
    preprocess(config(patches=everything), ws)
    lost = whole - {name.split("/")[-1] for name in written(ws)}
    assert lost
    rows = {row["name"]: row for row in table(ws.patches_csv)}
    for name in lost:
        row = rows[name.removesuffix(".png")]
        assert (row["slide"], row["chosen"]) == ("tumor_002", "0")
        assert 256 - 64 < int(row["x"]) < 384
        assert 128 - 64 < int(row["y"]) < 256
    assert f"{len(lost)} windows cannot be read and are left out" in slides(ws)["tumor_002"]["reason"]
    assert slides(ws)["tumor_002"]["status"] == "ok"


def test_philips_slide_with_missing_tiles(ws):
    boxes = [(144, 112, 316, 260), (436, 330, 636, 500)]
    write_slide(ws.slides / "tumor_002.tif", draw(tumour=boxes), mpp=None, missing=[1, 14], **philips())
    preprocess(config(), ws)
    row = slides(ws)["tumor_002"]
    assert (row["status"], row["vendor"]) == ("ok", "philips")
    assert int(row["patches_positive"]) > 0


def test_split_without_positives_ends_the_stage_before_anything_is_cut(ws):
    for number in (2, 3, 4):
        (ws.annotations / f"tumor_{number:03d}.xml").unlink()
    with pytest.raises(DataError, match=r"need one each.*slides\.csv"):
        preprocess(config(), ws)
    assert slides(ws)["tumor_002"]["status"] == "failed"
    assert not written(ws)
    ws.slide_table.write_text("slide,split\ntumor_001,train\nnormal_001,val\n")
    with pytest.raises(DataError, match="val, test"):
        preprocess(config(), ws)


def test_folder_without_slides_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no slides"):
        preprocess(config(), Workspace(tmp_path, "mine"))


LIMITED = """
import resource, sys
from pathlib import Path
from tests.test_slides_preprocess import config
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
from epsam.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    preprocess(config(), Workspace(Path(sys.argv[1]), "mine"))
except DataError as error:
    print(error)
"""


def test_disk_that_fills_up_is_said_and_the_next_call_goes_on(ws):
    preprocess(config(), ws)
    whole = written(ws)
    for split in SPLITS:
        shutil.rmtree(ws.split(split))
    code = Path(__file__).parents[1]
    # No file may grow beyond 10 kB: masks and the look at the slides fit, images do not.
    limited = subprocess.run(
        [sys.executable, "-c", LIMITED, str(ws.root)],
        cwd=code,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(code)},
    )
    assert "run the stage again" in limited.stdout
    assert not [name for name in written(ws) if "/image/" in name or ".epsam-tmp" in name]
    preprocess(config(), ws)
    assert written(ws) == whole


CRASHING = """
import faulthandler, os
from pathlib import Path
import epsam.patches.candidates as candidates
from epsam.runtime.workers import run_tasks
def work(number):
    if number == 3:
        os.kill(os.getpid(), 9)
    return number * 10
if __name__ == "__main__":
    print(sorted((task, str(result)[:24]) for task, result in run_tasks(work, range(6), 2)))
"""


def test_a_worker_that_dies_costs_its_own_task_alone(tmp_path):
    (tmp_path / "crashing.py").write_text(CRASHING)
    run = subprocess.run([sys.executable, "crashing.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(
        [(0, "0"), (1, "10"), (2, "20"), (3, "the process that read it"), (4, "40"), (5, "50")]
    )


UNGUARDED = """
from epsam.errors import DataError
from epsam.runtime.workers import run_tasks
try:
    list(run_tasks(abs, [1, 2], 1))
except DataError as error:
    print(error)
"""


def test_workers_that_cannot_start_are_not_blamed_on_the_slides(tmp_path):
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    run = subprocess.run([sys.executable, "unguarded.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "worker processes cannot be started" in run.stdout


def test_workers_are_as_many_as_memory_holds_and_say_when_none_can_start(monkeypatch, caplog):
    caplog.set_level("INFO")
    free = psutil.virtual_memory()._replace(available=5 * 2**28)
    monkeypatch.setattr(workers.psutil, "virtual_memory", lambda: free)
    assert [affordable(count, 2**29) for count in (0, 1, 2, 8)] == [0, 1, 2, 2]
    assert "2 in place of 8 worker processes, as 1.2 GiB of memory is free" in caplog.text
    assert affordable(4, 2**40) == 1

    def no_shm(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", no_shm)
    with pytest.raises(DataError, match=r"worker processes cannot be started \(Read-only file system.*workers=0"):
        list(run_tasks(abs, [1], 1))


def sheet(ws, slide: str) -> np.ndarray:
    return cv2.imread(str(ws.qa / f"{slide}.jpg"))[..., ::-1].astype(int)


def share_of(colour, pixels: np.ndarray) -> float:
    return float((np.abs(pixels - colour).max(axis=-1) < 40).mean())


def test_qa_sheet_shows_tissue_annotation_and_windows_in_their_places(ws):
    write_xml(
        ws.annotations / "tumor_001.xml",
        [("Tumor", box_points((136, 112, 400, 400))), ("Exclusion", box_points((200, 180, 300, 260)))],
    )
    preprocess(config(), ws)
    picture = sheet(ws, "tumor_001")  # 768 px wide, as the slide
    assert picture.shape[:2] > (640, 768)
    assert share_of(palette.TISSUE, picture[62:67, 420:600]) > 0.3
    assert share_of(palette.TRUTH, picture[150:350, 135:138]) > 0.5
    assert share_of(palette.EXCLUDED, picture[190:250, 199:202]) > 0.5
    rows = [row for row in table(ws.patches_csv) if row["slide"] == "tumor_001"]
    corner = {name: [] for name in ("1", "0")}
    for row in rows:
        x, y = int(row["x"]), int(row["y"])
        frame = picture[y + 20 : y + 44, x]  # its left side; other lines may cover a part
        colours = palette.TUMOUR_PATCH if row["label"] == "1" else palette.NORMAL_PATCH
        corner[row["chosen"]].append(max(share_of(colours, frame), share_of(palette.CLASSIFIER_PATCH, frame)) > 0.5)
    assert np.mean(corner["1"]) > 0.8
    assert np.mean(corner["0"]) < 0.3


def test_the_page_of_all_sheets_begins_with_failed_slides(ws):
    (ws.slides / "broken.tif").write_bytes(b"no slide")
    preprocess(config(), ws)
    page = (ws.qa / "index.html").read_text()
    assert page.index("broken") < page.index("tumor_001")
    assert f'src="{next(ws.qa.glob("*.jpg")).name}"' in page
    assert "var(--tumour-patch)" in page


def test_qa_sheet_of_a_small_slide_is_large_enough_to_read(ws):
    write_slide(ws.slides / "normal_001.tif", draw(size=(188, 150), tissue=(20, 20, 170, 130)), levels=1)
    preprocess(config(), ws)
    assert slides(ws)["normal_001"]["status"] == "ok"
    picture = sheet(ws, "normal_001")
    assert picture.shape[1] == 640
    assert 510 < picture.shape[0] < 600
    assert share_of(palette.TISSUE, picture[66:74, 150:500]) > 0.15  # tissue begins at 20 of 188 px


@pytest.mark.skipif(not WSI.is_dir(), reason="no real slides here")
def test_real_slides_and_broken_ones(ws):
    files = list(WSI.iterdir())
    for path in files:
        (ws.slides / path.name).symlink_to(path)
    ws.slide_table.write_text("slide,mpp\ncmu-1-small-region,0.25\n")  # as the others have
    preprocess(config(patches={"size_px": 128}), ws)
    expected = {
        "cmu-1-small-region": ("ok", ""),
        "tcga-cr-7395-01a-01-ts1": ("ok", ""),
        "boxes": ("ok", ""),
        "broken": ("failed", "OpenSlide cannot open it"),
        "unreadable": ("failed", "cannot be decoded"),
        "unopenable": ("failed", "52479 is one that nothing here decodes"),
        "striped_no_pyramid": ("failed", "must be tiled"),
    }
    rows = slides(ws)
    assert {path.stem for path in files} == set(expected)
    for name, (status, reason) in expected.items():
        assert rows[name]["status"] == status
        assert reason in rows[name]["reason"]
        assert (ws.qa / f"{name}.jpg").is_file() == (status == "ok")


SPARSE = """
import re, resource, sys
from pathlib import Path
from epsam.stages.preprocess import preprocess
from epsam.workspace import Workspace
from tests.test_slides_preprocess import config
preprocess(config(patches={"size_px": 512, "tissue": {}}), Workspace(Path(sys.argv[1]), "mine"))
own = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


def test_a_huge_slide_stays_under_one_gigabyte(tmp_path):
    ws = Workspace(tmp_path, "mine")
    for number, place in enumerate([(30000, 20000), (60000, 50000), (5000, 70000)], 1):
        write_huge(ws.slides / f"tumor_{number:03d}.tif", place)
        x, y = place
        write_xml(ws.annotations / f"tumor_{number:03d}.xml", [("Tumor", box_points((x, y, x + 1400, y + 1700)))])
    code = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", SPARSE, str(ws.root)],
        cwd=code,
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(code)},
    )
    assert int(run.stdout.splitlines()[-1]) < 1024**2
    assert all(row["status"] == "ok" and row["width"] == "100000" for row in slides(ws).values())


def write_huge(path: Path, place: tuple[int, int]) -> None:
    """100,000 x 80,000 px, of which 8 x 8 tiles at `place` hold tissue and the file leaves out the rest."""
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as tiff:
        for level in (1, 4, 16):
            width, height = 100000 // level, 80000 // level
            columns, rows = -(-width // 512), -(-height // 512)
            left, top = place[0] // level // 512, place[1] // level // 512
            side = max(1, 8 // level)
            image = draw((512, 512), tissue=(0, 0, 512, 512))

            def tiles(columns=columns, rows=rows, left=left, top=top, side=side, image=image):
                yield np.full((512, 512, 3), 243, np.uint8)  # the writer wants to see the first tile
                for number in range(1, rows * columns):
                    y, x = divmod(number, columns)
                    yield image if 0 <= x - left < side and 0 <= y - top < side else None

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
