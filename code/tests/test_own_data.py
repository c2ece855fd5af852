"""Which slides, annotations, labels and patches belong together, as people have them."""

import csv
import json
import os
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from epsam.cli import cli
from epsam.config.schema import Config, Slides
from epsam.errors import ConfigError, DataError
from epsam.inference.patch_folder import find_patches
from epsam.patches.class_folders import find_class_patches
from epsam.patches.labels import read_labels
from epsam.patches.manifest import SlideRecord, read_manifest
from epsam.patches.patch import list_patches, patches_for_sam
from epsam.patches.patients import patients_in_several_splits
from epsam.patches.slide_table import read_slide_table
from epsam.patches.splits import assign_random
from epsam.runs.signature import SLIDES, data_of
from epsam.stages.preprocess import preprocess
from epsam.workspace import SPLITS, Workspace
from tests.slide_factory import box_points, draw, make_dataset, write_leica, write_slide, write_xml

PATCHES = {
    "size_px": 64,
    "tissue": {"downsample": 4, "close_px": 3, "median_px": 3},
    "train": {"per_bin": 2, "negatives": 8},
    "val": {"per_bin": 2, "negatives": 4},
    "test": {"per_bin": 2, "negatives": 4},
}


def config(patches=(), **slides) -> Config:
    return Config(name="mine", workers=0, slides=slides, patches=PATCHES | dict(patches))


@pytest.fixture
def ws(tmp_path):
    return Workspace(tmp_path, "mine")


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def manifest(ws, **slides):
    found = read_manifest(ws, Slides(**slides))
    return {record.slide: record for record in found.records}, "\n".join(found.warnings)


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {row.get("name") or row["slide"]: row for row in rows}


@pytest.mark.parametrize(
    ("slide", "annotation"),
    [
        ("a.svs", "annotations/a.xml"),
        ("a.svs", "images/a.xml"),
        ("a.ome.tif", "annotations/a.xml"),
        ("a.ome.tiff", "annotations/A.ome.geojson"),
        ("a.svs", "annotations/a.svs.geojson"),
        ("3f2c-9/a.svs", "annotations/batch 1/a.json"),
        ("a.tif", "annotations/a.tif"),
        ("a.tif", "images/a_mask.tif"),
        ("a.tif", "annotations/a_mask.png"),
        (unicodedata.normalize("NFD", "Präparat 7.tif"), unicodedata.normalize("NFC", "annotations/Präparat 7.xml")),
    ],
)
def test_annotations_are_found_by_the_slides_name(ws, slide, annotation):
    touch(ws.slides / slide)
    path = touch(ws.dataset / annotation)
    records, warnings = manifest(ws)
    (record,) = records.values()
    assert (record.annotation, record.status, warnings) == (path, "ok", "")
    assert record.slide == unicodedata.normalize("NFC", Path(slide).name.partition(".")[0])


def test_what_does_not_fit_together_is_named(ws):
    for name in ("case_01.svs", "case_02.svs", "sub/case_03.tif", "case_03.tif"):
        touch(ws.slides / name)
    touch(ws.annotations / "case_01.xml")
    touch(ws.slides / "case_01.geojson")
    touch(ws.annotations / "case_2.xml")
    touch(ws.slides / "case_04.svs.part")
    records, warnings = manifest(ws)
    assert "2 annotations for one slide" in records["case_01"].reason
    assert "case_01.xml" in records["case_01"].reason
    assert records["case_2.xml"].status == "failed"
    assert "annotation without a slide" in records["case_2.xml"].reason
    assert "is it case_02?" in records["case_2.xml"].reason
    assert "2 slides are named case_03" in records["case_03"].reason
    assert "1 files are neither slides nor annotations" in warnings
    assert "images/case_04.svs.part" in warnings


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfslide,mpp,patient\r\ncase_01.svs,0.25,M\xc3\xbcller\r\n",
        b"slide;mpp;patient\r\ncase_01;0,25;M\xfcller\r\n;;\r\n",
        "slide\tmpp\tpatient\n images/CASE_01.svs \t0.25\tMüller\n".encode("utf-16"),
        "sep=;\r\nSlide;MPP;Patient\r\ncase_01;0,25;Müller\r\n".encode(),
    ],
)
def test_slides_csv_as_spreadsheets_write_it(ws, data):
    touch(ws.slides / "case_01.svs")
    ws.slide_table.write_bytes(data)
    records, _ = manifest(ws)
    assert (records["case_01"].info.mpp, records["case_01"].patient) == (0.25, "Müller")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\3\4....", "workbook"),
        (b"slide,mpp\na,0.25,x\n", "line 2: 'x' has no column"),
        (b"slide,label\na,benign\n", "line 2: label benign is none of"),
        (b"slide,origin_x\na,5\n", "line 2: origin_x and origin_y go together"),
        (b"slide,mpp\na,nan\n", "line 2: mpp nan is not between"),
        (b"slide,mpp,mpp\na,1,1\n", "comes twice"),
        (b'slide,origin_x,origin_y\na,"1,024",5\n', "line 2: origin_x 1,024 may be 1024 or 1.024"),
        (b"slide;origin_x;origin_y\na;1.024;5\n", "line 2: origin_x 1.024 may be 1024 or 1.024"),
        ("slide,mpp\na,1\n".encode("utf-16-le"), "neither UTF-8 nor Windows-1252"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    ],
)
def test_slides_csv_that_cannot_be_right_is_refused_with_its_line(tmp_path, data, reason):
    (tmp_path / "slides.csv").write_bytes(data)
    with pytest.raises((ConfigError, DataError), match=reason):
        read_slide_table(tmp_path / "slides.csv")


def test_labels_that_contradict_each_other_cost_their_slide(tmp_path):
    path = touch(
        tmp_path / "labels.csv",
        "slide,x,y,label,width\na,0,0,1,64\na,0,0,1,64\nb,0,0,1,64\nb,0,0,0,64\nc,0,0,1,64\nc,9,0,1,32\n",
    )
    labels = read_labels(path)
    assert (labels["a"].duplicates, labels["a"].problem) == (1, "")
    assert "has both labels" in labels["b"].problem
    assert "one width" in labels["c"].problem
    with pytest.raises(ConfigError, match="line 2: y is empty"):
        read_labels(touch(path, "slide,x,y,label\na,0,,1\n"))


def test_what_slides_csv_says_decides(ws):
    for name in "abcdef":
        touch(ws.slides / f"{name}.svs")
    for name in "ab":
        touch(ws.annotations / f"{name}.xml")
    touch(ws.slide_table, "slide,label,exclude\nb,normal,\nc,tumor,\nd,normal,FALSCH\ne,,pen marks\nzz,,\n")
    records, warnings = manifest(ws)
    assert {name: record.status for name, record in records.items()} == {
        "a": "ok",
        "b": "failed",
        "c": "excluded",
        "d": "ok",
        "e": "excluded",
        "f": "excluded",
    }
    assert "says that it is normal, but there is" in records["b"].reason
    assert "pen marks" in records["e"].reason
    assert "no such slides: zz" in warnings
    records, _ = manifest(ws, unlabelled_tumour="positive", unannotated="normal")
    assert (records["c"].status, records["c"].all_tumour, records["f"].status) == ("ok", True, "ok")


def test_one_patient_in_several_spellings_comes_into_one_split(ws):
    for number in range(12):
        touch(ws.slides / f"case_{number:02d}.svs")
    spellings = ["M\u00fcller", "Mu\u0308ller", "M\u00dcLLER"]
    lines = [f"case_{number:02d},{spellings[number % 3] if number < 6 else number}" for number in range(12)]
    ws.slide_table.write_text("\n".join(["slide,patient", *lines]) + "\n", encoding="utf-8")
    records, _ = manifest(ws, unannotated="normal")
    for seed in range(5):
        for record in records.values():
            record.split = ""
        assign_random(list(records.values()), lambda record: True, Config(name="mine", patches={"seed": seed}))
        assert len({records[f"case_{number:02d}"].split for number in range(6)}) == 1


def test_patients_by_pattern_and_a_warning_where_names_suggest_them(ws):
    touch(ws.slides / "P07-a.svs")
    assert manifest(ws, patient_pattern=r"^(P\d+)-")[0]["P07-a"].patient == "P07"
    found = []
    for name, split in [("case12_A", "train"), ("case12_B", "test"), ("tumor_001", "train"), ("tumor_002", "test")]:
        found.append(SlideRecord(name, Path(f"{name}.tif"), split=split))
    assert patients_in_several_splits(found) == {"case12": {"train", "test"}}


def test_windows_labelled_by_hand_become_the_patches(ws, caplog):
    lines = ["slide,x,y,label,width,split"]
    for number, split in enumerate(SPLITS, 1):
        write_slide(ws.slides / f"s{number}.tif", draw(size=(384, 320), tissue=(16, 16, 368, 304), seed=number))
        lines += [f"s{number}.tif,{x},{y},{int(x < 128)},128,{split}" for x in (0, 128, 256) for y in (64, 128)]
    lines += ["s1,300,64,1,128,train", "s1,0,64,tumour,128,train"]
    touch(ws.labels_csv, "\n".join(lines))
    preprocess(config(), ws)
    for number, split in enumerate(SPLITS, 1):
        names = [patch.name for patch in list_patches(ws.split(split))]
        # 256 + 128 = 384 is the slide's width, so all but the window at 300 lie on it.
        assert names == sorted(f"s{number}_x{x}_y{y}_{int(x < 128)}" for x in (0, 128, 256) for y in (64, 128))
        assert len(patches_for_sam(ws, split)) == 2
        assert not (ws.split(split) / "mask").exists()
    assert cv2.imread(str(list_patches(ws.split("val"))[0].path)).shape == (64, 64, 3)
    rows = table(ws.patches_csv)
    assert {(row["tumour_fraction"], row["read_px"], row["chosen"]) for row in rows.values()} == {("", "128", "1")}
    assert "s1: 1 windows come twice" in caplog.text
    assert "1 windows of 128 px in labels.csv reach beyond the slide of 384 x 320 px: x 300, y 64" in caplog.text


def test_slides_of_which_only_a_label_is_known(ws):
    lines = ["slide,label"]
    for number in range(1, 7):
        write_slide(ws.slides / f"s{number}.tif", draw(size=(384, 320), tissue=(16, 16, 368, 304), seed=number))
        lines.append(f"s{number},{'tumour' if number < 4 else 'normal'}")
    touch(ws.slide_table, "\n".join(lines))
    with pytest.raises(DataError, match="need one each"):
        preprocess(config(), ws)
    preprocess(config(unlabelled_tumour="positive"), ws)
    found = [patch for split in SPLITS for patch in list_patches(ws.split(split))]
    assert {(int(patch.name[1]) < 4, patch.label) for patch in found} == {(True, 1), (False, 0)}


@pytest.mark.parametrize(
    ("outline", "line", "reason"),
    [
        ((2, 2, 62, 500), "", "0% of the outlined tumour lies on tissue"),
        ((64, 56, 150, 130), "tumor_003,128,112,2", ""),
    ],
)
def test_outlines_that_do_not_lie_on_the_tissue_fail_until_slides_csv_places_them(ws, outline, line, reason):
    make_dataset(ws.dataset)
    write_xml(ws.annotations / "tumor_003.xml", [("Tumor", box_points(outline))])
    touch(ws.slide_table, f"slide,origin_x,origin_y,scale\n{line}\n")
    preprocess(config(), ws)
    row = table(ws.slides_csv)["tumor_003"]
    assert reason in row["reason"]
    assert (row["status"] == "ok") == (not reason)
    for name, patch in table(ws.patches_csv).items():
        if patch["slide"] == "tumor_003":
            x, y = int(patch["x"]), int(patch["y"])  # the outline lies at x 256 to 428, y 224 to 372
            wide, high = min(x + 64, 428) - max(x, 256), min(y + 64, 372) - max(y, 224)
            assert float(patch["tumour_fraction"]) == pytest.approx(max(wide, 0) * max(high, 0) / 4096, abs=0.03), name


def test_outlines_that_would_fit_better_from_the_scanned_region_are_a_warning(ws, caplog):
    make_dataset(ws.dataset)
    image = draw(size=(384, 384), tissue=(0, 0, 384, 384), tumour=[(64, 64, 256, 256)])
    write_leica(ws.slides / "tumor_005.scn", image, (256, 192), (1024, 768), mpp=0.25)
    advice = "give origin_x 256 and origin_y 192 in slides.csv"
    write_xml(ws.annotations / "tumor_005.xml", [("Tumor", box_points((32, 32, 352, 352)))])  # as QuPath counts
    preprocess(config(), ws)
    row = table(ws.slides_csv)["tumor_005"]
    assert (row["status"], advice in row["reason"]) == ("failed", True)
    write_xml(ws.annotations / "tumor_005.xml", [("Tumor", box_points((180, 180, 380, 380)))])
    preprocess(config(), ws)
    assert table(ws.slides_csv)["tumor_005"]["status"] == "ok"
    assert advice in caplog.text
    caplog.clear()
    touch(ws.slide_table, "slide,origin_x,origin_y\ntumor_005,256,192\n")
    preprocess(config(), ws)
    assert advice not in caplog.text
    (ws.annotations / "tumor_005.xml").unlink()
    ws.slide_table.unlink()
    ring = [*box_points((288, 224, 608, 544)), (288, 224)]  # GeoJSON that counts from the corner of the glass
    geometry = {"type": "Polygon", "coordinates": [ring]}
    tumour = {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": "Tumor"}}}
    touch(ws.annotations / "tumor_005.geojson", json.dumps([tumour]))
    preprocess(config(), ws)
    assert "it would be 100%" in table(ws.slides_csv)["tumor_005"]["reason"]
    assert "give origin_x 0 and origin_y 0 in slides.csv" in table(ws.slides_csv)["tumor_005"]["reason"]


def test_windows_labelled_on_glass_fail_until_slides_csv_places_them(ws):
    make_dataset(ws.dataset)
    write_leica(
        ws.slides / "scan.scn", draw(size=(384, 384), tissue=(0, 0, 384, 384)), (256, 192), (1024, 768), mpp=0.25
    )
    corners = [(x, y) for x in (0, 64, 128) for y in (0, 64)]
    touch(ws.labels_csv, "slide,x,y,label\n" + "".join(f"scan,{x},{y},{int(x < 128)}\n" for x, y in corners))
    preprocess(config(), ws)
    reason = table(ws.slides_csv)["scan"]["reason"]
    assert "only 0% of the windows that labels.csv calls tumour is tissue" in reason
    assert "it would be 100%: give origin_x 256 and origin_y 192 in slides.csv" in reason
    touch(ws.slide_table, "slide,origin_x,origin_y\nscan,256,192\n")
    preprocess(config(), ws)
    cut = [name for name, row in table(ws.patches_csv).items() if row["slide"] == "scan"]
    assert sorted(cut) == sorted(f"scan_x{x + 256}_y{y + 192}_{int(x < 128)}" for x, y in corners)


def test_an_inverted_mask_fails(ws):
    make_dataset(ws.dataset)
    (ws.annotations / "tumor_003.xml").unlink()
    tumour = np.zeros((640, 768), np.uint8)
    tumour[112:260, 152:324] = 255
    cv2.imwrite(str(ws.annotations / "tumor_003.png"), 255 - tumour)
    preprocess(config(), ws)
    assert "covers 100% of the glass around the tissue: is it inverted" in table(ws.slides_csv)["tumor_003"]["reason"]
    cv2.imwrite(str(ws.annotations / "tumor_003.png"), cv2.cvtColor(tumour, cv2.COLOR_GRAY2BGR))
    preprocess(config(), ws)
    assert table(ws.slides_csv)["tumor_003"]["status"] == "ok"


def test_an_annotated_slide_without_a_positive_window_fails(ws):
    make_dataset(ws.dataset)
    write_xml(ws.annotations / "tumor_003.xml", [("Tumor", box_points((64, 64, 67, 66)))])
    preprocess(config(patches={"border": 0.2}), ws)
    assert "holds tumour: its outlines are too small" in table(ws.slides_csv)["tumor_003"]["reason"]


def test_patches_in_a_folder_per_class(ws, caplog):
    picture = np.full((32, 32, 3), 120, np.uint8)
    for split in SPLITS:
        for folder, name in [
            ("Tumor", "001.png"),
            ("Tumor", "s2/001.JPG"),
            ("benign", "001.tif"),
            ("benign", "a_0.PNG"),
        ]:
            path = ws.split(split) / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
    touch(ws.split("val") / "Tumor" / "half.png", "half")
    touch(ws.split("val") / "Tumor" / "Thumbs.db")
    (ws.split("test") / "stroma").mkdir()
    settings = config(patches={"class_folders": {"tumour": ["tumor"], "normal": ["benign"]}})
    preprocess(settings, ws)
    for split in SPLITS:
        names = [(patch.name, patch.label) for patch in list_patches(ws.split(split))]
        assert names == [("001_0", 0), ("001_1", 1), ("a_0", 0), ("s2_001_1", 1)]
        assert [patch.name for patch in patches_for_sam(ws, split)] == ["001_1", "s2_001_1"]
    assert "left out:" in caplog.text
    assert "half.png" in caplog.text
    assert "1 files end in none of" in caplog.text
    assert "stroma: names no class" in caplog.text
    before = data_of(ws, SLIDES)
    cv2.imwrite(str(ws.split("val") / "benign" / "b.png"), picture)
    assert data_of(ws, SLIDES) != before
    shutil.rmtree(ws.split("test") / "benign")
    with pytest.raises(DataError, match="test: no patch of the class normal; its folder is called benign"):
        preprocess(settings, ws)


def test_patches_as_they_come_are_counted_and_named_when_passed_over(ws, caplog):
    picture = np.full((8, 8, 3), 120, np.uint8)
    for split in SPLITS:
        (ws.split(split) / "image").mkdir(parents=True)
        for name in ("a_0.PNG", "b_1.jpg", "c_1.tif", "patch_1.png", "patch_2.png", "d_tumor.png"):
            cv2.imwrite(str(ws.split(split) / "image" / name), picture)
        touch(ws.split(split) / "image" / "e_1.bmp")
    touch(ws.split("val") / "image" / "patient 7" / "f_1.png")
    touch(ws.split("val") / "masks" / "b_1.png")
    preprocess(config(), ws)
    assert [(patch.path.name, patch.label) for patch in list_patches(ws.split("val"))] == [
        ("a_0.PNG", 0),
        ("b_1.jpg", 1),
        ("c_1.tif", 1),
    ]
    for text in (
        "d_tumor.png",
        "e_1.bmp",
        "1 files are numbers of a series (..._0, _1, _2), not labels: patch_1.png",
        "3 patches lie in several splits, and then figures flatter: a_0.PNG, b_1.jpg, c_1.tif",
        "1 files are folders, and patches lie in image/ itself: patient 7",
        "val/masks: is not used; patches lie in image/, their masks in mask/",
    ):
        assert text in caplog.text
    cv2.imwrite(str(ws.split("val") / "image" / "b_1.png"), picture)
    with pytest.raises(DataError, match=r"b_1\.png and b_1\.jpg have one name"):
        list_patches(ws.split("val"))
    for split in SPLITS:
        (ws.split(split) / "image").rename(ws.split(split) / "images")
    with pytest.raises(DataError, match="of train/images, val/images, val/masks, test/images none is image/"):
        preprocess(config(), ws)


def test_masks_and_class_folders_are_found_in_any_unicode_form(ws, tmp_path):
    decomposed, composed = (unicodedata.normalize(form, "Präparat_1.png") for form in ("NFD", "NFC"))
    picture = np.full((8, 8, 3), 120, np.uint8)
    for folder, name in (("image", composed), ("mask", decomposed)):
        touch(tmp_path / folder / name)
        cv2.imwrite(str(tmp_path / folder / name), picture)
    assert list_patches(tmp_path)[0].has_mask
    assert find_patches(tmp_path)[0].mask == tmp_path / "mask" / decomposed
    touch(ws.split("val") / unicodedata.normalize("NFD", "Tumör") / "a.png")
    patches, warnings = find_class_patches(ws, {"tumour": [unicodedata.normalize("NFC", "tumör")]})
    assert ([patch.name for patch in patches], warnings) == (["a_1"], [])


def test_an_annotation_of_the_same_length_is_noticed(ws):
    path = touch(ws.annotations / "a.xml", "11")
    touch(ws.slides / "a.svs", "1" * 99)
    before, times = data_of(ws, SLIDES), path.stat()
    path.write_text("22")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as `cp -p` keeps it
    changed = data_of(ws, SLIDES)
    assert changed != before
    touch(ws.labels_csv, "slide,x,y,label\n")
    assert data_of(ws, SLIDES) != changed


@pytest.mark.parametrize(
    ("size", "first", "last"),
    [
        (99, 5, 6),
        (300_000, 10, 20),
        (300_000, 299_990, 300_000),
        (2_000_000, 300_000, 1_700_000),
        (2**17, 2**16, 2**17),
    ],
)
def test_a_slide_exchanged_for_one_of_the_same_size_and_time_is_noticed(ws, size, first, last):
    slide = touch(ws.slides / "a.svs", "1")
    content = bytearray(size)
    slide.write_bytes(content)
    times = slide.stat()
    before = data_of(ws, SLIDES)
    content[first:last] = b"x" * (last - first)
    slide.write_bytes(content)
    os.utime(slide, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert data_of(ws, SLIDES) != before


def test_another_data_folder_of_a_mirax_slide_is_noticed(ws):
    touch(ws.slides / "a.mrxs")
    part = touch(ws.slides / "a" / "Slidedat.ini", "1")
    before = data_of(ws, SLIDES)
    part.write_text("23")
    assert data_of(ws, SLIDES) != before


def test_slides_csv_is_written_as_a_template_and_never_replaced(ws, tmp_path):
    make_dataset(ws.dataset, tumour=1)
    touch(tmp_path / "mine.yaml", "name: mine\n")
    arguments = ["slides-csv", "--config", str(tmp_path / "mine.yaml"), "--root", str(tmp_path)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert set(table(ws.slide_table)) == {"tumor_001", "normal_001"}
    assert table(ws.slide_table)["normal_001"]["label"] == ""
    assert set(read_slide_table(ws.slide_table)) == {"tumor_001", "normal_001"}
    touch(ws.slide_table, "mine")
    assert isinstance(CliRunner().invoke(cli, arguments).exception, DataError)
    assert ws.slide_table.read_text() == "mine"
