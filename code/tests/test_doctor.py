"""The doctor: what it finds wrong before a run, and what it says to do about it."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from epsam.config.loading import find_config, load_config
from epsam.doctor import Check, as_json, as_lines, estimate, report, resources
from epsam.doctor.data import check_sam, check_slides, check_split, check_weights, how_to_get
from epsam.doctor.estimate import bytes_still_needed, flop, open_shards, stage_bytes
from epsam.doctor.machine import (
    check_disk,
    check_folders,
    check_gpu,
    check_lock,
    check_program,
    check_readers,
    check_torch,
)
from epsam.doctor.run import examine, examine_for_inference
from epsam.errors import EpsamError
from epsam.patches.camelyon import PUBLISHED_SPLITS
from epsam.pipeline import STAGES
from epsam.runs.environment import commit
from epsam.runs.lock import lock
from epsam.runs.record import write_done
from epsam.runtime.files import write_csv, write_text
from epsam.sam import store
from epsam.workspace import Workspace
from tests.patch_factory import make_patches

DEMO, CAMELYON = load_config(find_config("demo")), load_config(find_config("camelyon17"))
Properties = namedtuple("Properties", "name major minor total_memory")


def changed(config, **sections):
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


@pytest.fixture
def workspace(tmp_path):
    """Three slides, two of them annotated."""
    workspace = Workspace(tmp_path, "mine")
    for name in ("tumor_001.tif", "tumor_002.TIF", "normal_001.svs"):
        write_text(workspace.slides / name, "a slide")
    for name in ("tumor_001.xml", "Tumor_002.xml"):
        write_text(workspace.annotations / name, "<xml/>")
    return workspace


def test_lines_say_how_to_fix_it_and_errors_end_the_command():
    checks = [Check("disk", "ok", "70 GiB free", "unused"), Check("GPU", "error", "none", "buy one")]
    assert as_lines(checks) == ["[     ok] disk: 70 GiB free", "[  error] GPU: none", "          -> buy one"]
    assert json.loads(as_json(checks))[1] == {"name": "GPU", "status": "error", "message": "none", "fix": "buy one"}
    with pytest.raises(EpsamError, match="doctor found errors: GPU"):
        report(checks)
    report(checks[:1])


@pytest.mark.parametrize("collection", ["camelyon16", "camelyon17"])
def test_the_download_can_be_pasted_and_is_that_of_the_data_page(collection):
    command = how_to_get(load_config(find_config(collection)), Workspace(Path(), collection))
    assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0
    page = (Path(__file__).parents[2] / "dataset" / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    shown = re.sub(r"(\\?\s)+", " ", block)
    for part in re.split(r" && | do |; done|; ", command.partition("  #")[0]):
        assert part.strip() in shown


def test_all_checks_of_a_run_and_of_a_prediction(workspace):
    assert [check.name for check in examine(DEMO, workspace)] == [
        "Python",
        "program",
        "torch",
        "GPU",
        "readers",
        "folders",
        "lock",
        "disk",
        "memory",
        "shared memory",
        "open files",
        "weights",
        "slides",
        "split",
    ]
    assert [
        check.name for check in examine_for_inference(DEMO, workspace.checkpoints, workspace.run, with_sam=True)
    ] == [
        "Python",
        "program",
        "torch",
        "GPU",
        "readers",
        "folders",
        "memory",
        "shared memory",
        "open files",
        "weights",
    ]
    nowhere = examine_for_inference(DEMO, workspace.checkpoints, Path("/proc/self/out"), with_sam=True)
    assert [check.name for check in nowhere if check.status == "error"] == ["folders"]


def test_a_run_whose_stages_are_all_done_is_not_examined_for_what_it_would_compute_with(workspace):
    for stage in STAGES:
        assert "GPU" in [check.name for check in examine(DEMO, workspace)]
        write_done(workspace.state, stage.name, {})
    checks = {check.name: check for check in examine(DEMO, workspace)}
    assert "GPU" not in checks
    assert checks["torch"].message.endswith("not loaded, all stages are done")


def test_torch_and_torchvision_that_do_not_fit_are_an_error(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    code = "from epsam.doctor.machine import check_torch; print(check_torch())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"},
    )
    assert "do not work together (operator torchvision::nms does not exist)" in run.stdout
    assert "delete .venv" in run.stdout
    assert check_torch().status == "ok"


def test_a_run_that_another_process_works_in_is_named_with_the_wait(workspace):
    assert check_lock(workspace.run).status == "ok"
    with lock(workspace.run):
        assert check_lock(workspace.run).status == "ok"  # it is this process's own
        path = workspace.run / "lock"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"boot": "another", "host": "elsewhere"}))
        check = check_lock(workspace.run)
        assert check.status == "error"
        assert "on elsewhere (another machine or container)" in check.message
        assert "wait 180 s or delete" in check.fix
        os.utime(path, (1, 1))
        assert check_lock(workspace.run).status == "ok"
    assert sorted(path.name for path in workspace.run.iterdir()) == [".lock_guard"]


def test_another_copy_of_the_program_than_the_folders_own_is_said(tmp_path):
    assert check_program(tmp_path).status == "ok"
    assert check_program(Path(__file__).parents[2]).status == "ok"
    (tmp_path / "code" / "epsam").mkdir(parents=True)
    check = check_program(tmp_path)
    assert check.status == "warning"
    assert f"not {tmp_path}/code/epsam" in check.message


def test_a_repository_that_git_refuses_to_read_has_an_unknown_commit(tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.runs.environment.__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == ""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "environment.py").write_text("the program")
    assert commit() == "", "a repository that the program is no part of"
    subprocess.run(["git", "-C", str(tmp_path), "add", "environment.py"], check=True)
    subprocess.run(
        [
            "git",
            "-C",
            str(tmp_path),
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "-q",
            "--allow-empty",
            "-mx",
        ],
        check=True,
    )
    assert len(commit()) == 12
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert commit().startswith("unknown (detected dubious ownership in repository")


@pytest.fixture
def gpu(monkeypatch):
    """Has torch report a GPU of this capability, whose kernels run or not, with so much memory."""

    def report_gpu(major, minor, *, runs=True, free=11.5, total=12.0, cards=1):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "sm_120"])
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _: Properties("a card", major, minor, int(total * 2**30))
        )
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * 2**30), int(total * 2**30)))

        def ones(*_, **__):
            if not runs:
                raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
            return torch.zeros(1)

        monkeypatch.setattr(torch, "ones", ones)

    return report_gpu


def test_a_pascal_card_that_the_wheel_dropped_gets_the_line_to_install(gpu):
    gpu(6, 1, runs=False)
    check = check_gpu(CAMELYON)
    assert check.status == "error"
    assert "a card (sm_61) cannot run this torch, which is built for sm_75, sm_80" in check.message
    assert "'torch<2.15' and torchvision by the line for CUDA 12.6" in check.fix


def test_a_card_newer_than_the_wheel_gets_another_line(gpu):
    gpu(13, 0, runs=False)
    assert "--upgrade torch" in check_gpu(CAMELYON).fix


def test_gpu_memory_is_held_against_the_profile(gpu):
    gpu(8, 6)
    assert check_gpu(CAMELYON).status == "ok"
    assert "profile 12gb" in check_gpu(CAMELYON).message
    gpu(8, 6, free=3)
    check = check_gpu(CAMELYON)
    assert (check.status, "3.0 of 12.0 GiB free, profile 12gb; the profile needs 11 GiB" in check.message) == (
        "warning",
        True,
    )
    assert "nvidia-smi" in check.fix
    assert check_gpu(CAMELYON.model_copy(update={"profile": "24gb"})).status == "warning"


def test_of_several_cards_it_says_which_is_taken(gpu, monkeypatch):
    gpu(8, 6)
    assert "is taken" not in check_gpu(CAMELYON).message
    gpu(8, 6, cards=4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "of 4 GPUs number 0 is taken, CUDA_VISIBLE_DEVICES=NUMBER takes another" in check_gpu(CAMELYON).message
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    gpu(8, 6, cards=2)
    assert "of 2 GPUs number 3 is taken" in check_gpu(CAMELYON).message


@pytest.mark.parametrize(
    ("own", "file"),
    [
        ("0::/job_7/step_0\n", "job_7/memory.max"),
        ("0::/../job_7\n", "memory.max"),
        ("5:memory:/slurm/job_7\n4:cpuset:/\n", "memory/slurm/job_7/memory.limit_in_bytes"),
    ],
)
def test_memory_is_that_of_the_job_not_of_the_machine(tmp_path, monkeypatch, own, file):
    write_text(tmp_path / "own", own)
    write_text(tmp_path / "groups" / file, f"{4 * 2**30}\n")
    write_text(tmp_path / "groups" / "job_7" / "step_0" / "memory.max", "max\n")
    monkeypatch.setattr(resources, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(resources, "CGROUPS", tmp_path / "groups")
    assert resources.memory_limit() == 4 * 2**30
    check = resources.check_memory(16)
    assert (check.status, "4.0 GiB of memory (the limit of this job); 16 workers" in check.message) == ("warning", True)
    assert "workers=2" in check.fix
    assert "sbatch --mem" in check.fix
    assert resources.check_memory(1).status == "ok"
    check = resources.check_memory(1, embeddings=2**40)
    assert (check.status, "do not hold the 1024.0 GiB of embeddings" in check.message) == ("warning", True)
    assert "local SSD" in check.fix


def test_shared_memory_and_open_files(tmp_path, monkeypatch):
    assert resources.check_shared_memory(1).status == "ok"
    monkeypatch.setattr(resources, "SHARED_BYTES_PER_GPU", 2**60)
    assert "--shm-size" in resources.check_shared_memory(2).fix

    def no_lock():
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Lock", no_lock)
    check = resources.check_shared_memory(1)
    assert (check.status, "(Permission denied)" in check.message) == ("error", True)
    assert open_shards(CAMELYON) > 450, "more than macOS allows by default"
    for limits, status, advice in (
        ((1024, 4096), "ok", ""),
        ((256, 4096), "warning", "ulimit -n 768 before"),
        ((256, 512), "warning", "at most 512 are"),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        check = resources.check_open_files(8, 512)
        assert check.status == status
        assert advice in check.fix
    assert estimate.SHARD_BYTES == store.SHARD_BYTES


def test_without_a_gpu_it_says_how_long_the_cpu_takes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = check_gpu(CAMELYON, flop(CAMELYON))
    assert check.status == "warning"
    assert "CPU threads: the run takes about" in check.message
    assert "days" in check.message
    assert check_gpu(DEMO, flop(DEMO)).status == "ok"
    assert flop(changed(CAMELYON, sam={"embeddings": "off"})) > 5 * flop(CAMELYON)


def test_disk_is_held_against_what_the_run_has_still_to_write(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    for most, least, status in ((0.1, 0.1, "ok"), (0.9, 0.1, "warning"), (2, 0.5, "warning"), (3, 2, "error")):
        check = check_disk({tmp_path / "no" / "yet": int(free * most)}, {tmp_path / "no" / "yet": int(free * least)})
        assert check.status == status
    assert "sam.views" in check_disk({tmp_path: 2 * free}, {tmp_path: 0}).fix
    two = {tmp_path / "a": int(0.7 * free), tmp_path / "b": int(0.7 * free)}  # on one disk they add up
    assert check_disk(two, two).status == "error"


def test_a_run_that_is_half_done_needs_only_the_rest(tmp_path):
    workspace = Workspace(tmp_path, "demo")
    before = bytes_still_needed(DEMO, workspace, 4)
    assert before == stage_bytes(DEMO, 4)
    write_done(workspace.state, "preprocess", {})
    write_text(workspace.embeddings("train") / "shard", "y" * 10**6)
    assert bytes_still_needed(DEMO, workspace, 4) == before | {"preprocess": 0, "embed": before["embed"] - 10**6}
    for stage in before:
        write_done(workspace.state, stage, {})
    disk = next(check for check in examine(DEMO, workspace) if check.name == "disk")
    assert (disk.status, "about 0 MiB more" in disk.message) == ("ok", True)


def test_published_sizes_are_of_the_right_order():
    assert 5e9 < stage_bytes(CAMELYON, 4)["preprocess"] < 3e10
    assert stage_bytes(CAMELYON, 4)["embed"] - stage_bytes(CAMELYON, 1)["embed"] == 3 * 7000 * 2**21


def test_normal_patches_that_the_decoder_learns_are_counted():
    learned = changed(DEMO, finetune={"normal_weight": 0.5})
    more = stage_bytes(learned, 4)["embed"] - stage_bytes(learned, 3)["embed"]
    assert more == 2 * (stage_bytes(DEMO, 4)["embed"] - stage_bytes(DEMO, 3)["embed"])
    assert flop(learned) > flop(DEMO)


def test_folders_that_cannot_be_written_are_named(tmp_path):
    assert check_folders(tmp_path / "not" / "yet").status == "ok"
    check = check_folders(Path("/proc/self/checkpoints"))
    assert check.status == "error"
    assert "nothing can be written into /proc/self" in check.message


def test_asap_that_is_asked_for_and_missing_is_an_error():
    assert check_readers(DEMO).status == "ok"
    check = check_readers(changed(DEMO, slides={"reader": "asap"}))
    assert check.status == "error"
    assert "slides.reader=openslide" in check.fix


def test_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.shipped.DEMO_SAM", tmp_path / "sam_demo.pth")
    assert check_sam(DEMO, tmp_path).fix.startswith("git checkout")
    assert (check_sam(CAMELYON, tmp_path).status, "will be fetched" in check_sam(CAMELYON, tmp_path).message) == (
        "warning",
        True,
    )
    write_text(tmp_path / "sam_vit_b_01ec64.pth", "half a download")
    assert "not the published file (other SHA-256)" in check_sam(CAMELYON, tmp_path).message
    own = changed(CAMELYON, sam={"checkpoint": tmp_path / "none.pth"})
    assert "none.pth is missing" in check_sam(own, tmp_path).message
    imagenet = changed(DEMO, classifier={"init": "imagenet"}, sam={"checkpoint": tmp_path / "sam_vit_b_01ec64.pth"})
    assert (check_weights(imagenet, tmp_path).status, "resnet18" in check_weights(imagenet, tmp_path).message) == (
        "warning",
        True,
    )


def test_slides_that_fit_their_annotations_are_well(workspace):
    check = check_slides(CAMELYON, workspace)
    assert (check.status, check.message.split(" in ")[0]) == ("ok", "3 slides (0 MiB), 2 annotations")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: write_text(w.slides / "tumor_001.tif", ""), "empty files: tumor_001.tif"),
        (lambda w: (w.slides / "normal_002.tif").symlink_to("nowhere"), "links that lead nowhere: normal_002.tif"),
        (
            lambda w: write_text(w.slides / "tumor_009.tif.6Fa31bC2", "half"),
            "(broken downloads?) and are not used: images/tumor_009.tif.6Fa31bC2",
        ),
        (lambda w: write_text(w.annotations / "tumor_005.xml", "<xml/>"), "tumor_005.xml: annotation without a slide"),
        (
            lambda w: (w.annotations / "Tumor_002.xml").unlink(),
            "tumor_002: a tumour slide by its name, but its annotation is missing",
        ),
    ],
)
def test_doubts_about_slides_are_warnings(workspace, spoil, said):
    spoil(workspace)
    check = check_slides(CAMELYON, workspace)
    assert check.status == "warning"
    assert said in check.message
    assert "aws s3 cp" in check.fix


def test_no_slides_no_annotations_and_patches_alone(workspace):
    shutil.rmtree(workspace.annotations)
    assert "say nothing of where tumour is" in check_slides(DEMO, workspace).message
    shutil.rmtree(workspace.slides)
    assert check_slides(DEMO, workspace).status == "error"
    (workspace.split("train") / "image").mkdir(parents=True)
    assert "no patch; names end in _0.png" in check_slides(DEMO, workspace).message
    make_patches(workspace)
    assert (check_slides(DEMO, workspace).status, check_slides(DEMO, workspace).message) == (
        "ok",
        "none, but patches: train 8, val 8, test 8",
    )


def test_slides_that_failed_in_preprocess_are_named_until_they_are_cut(workspace):
    rows = [{"slide": "normal_001", "status": "ok"}, {"slide": "tumor_001", "status": "failed", "reason": "cut off"}]
    write_csv(workspace.slides_csv, rows, ["slide", "status", "reason"])
    message = check_slides(DEMO, workspace).message
    assert "1 slides failed in the last run of preprocess and are not used: tumor_001" in message
    assert str(workspace.slides_csv) in message


def test_slides_that_nobody_annotated_are_counted_with_what_to_do(workspace):
    check = check_slides(load_config(find_config("own")), workspace)
    assert check.status == "warning"
    assert "1 of 3 slides are left out: neither annotated nor labelled; if it is normal tissue" in check.message
    assert "slides.unannotated=normal" in check.message
    workspace.slide_table.write_text("slide,label\nnormal_001,normal\nnormal_01,normal\n")
    assert "no such slides: normal_01 (is it normal_001?)" in check_slides(DEMO, workspace).message
    workspace.slide_table.write_text("slide,labels\n")
    assert "unknown column labels" in check_slides(DEMO, workspace).message


def test_patches_that_are_not_used_and_class_folders_are_counted(workspace):
    shutil.rmtree(workspace.slides)
    make_patches(workspace)
    write_text(workspace.split("val") / "image" / "nameless.png", "a picture")
    check = check_slides(DEMO, workspace)
    assert check.status == "warning"
    assert (
        "val: 1 files have names that end neither in _0 (normal) nor in _1 (holds tumour): nameless.png"
        in check.message
    )
    for split in ("train", "val", "test"):
        for name in ("tumor", "normal"):
            write_text(workspace.split(split) / name / "a.jpg", "a picture")
    assert "folder per class: train 1 of tumour and 1 normal" in check_slides(DEMO, workspace).message


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_names_that_are_no_text_are_a_warning(workspace):
    Path(os.fsdecode(bytes(workspace.slides) + b"/tumor_\xff.tif")).write_bytes(b"a slide")
    check = check_slides(DEMO, workspace)
    assert check.status == "warning"
    assert "not UTF-8" in check.message


def test_published_split_against_what_is_there(tmp_path):
    workspace, published = Workspace(tmp_path, "camelyon17"), PUBLISHED_SPLITS["camelyon17"]
    for name in published:
        write_text(workspace.slides / f"{name}.tif", "a slide")
    assert (check_split(CAMELYON, workspace).status, check_split(CAMELYON, workspace).message) == (
        "ok",
        "train 27 of 27 slides, val 3 of 3 slides, test 9 of 9 slides",
    )
    (workspace.slides / "patient_024_node_1.tif").unlink()
    check = check_split(CAMELYON, workspace)
    assert (check.status, "train 26 of 27" in check.message, "patient_024_node_1" in check.message) == (
        "warning",
        True,
        True,
    )
    for name, split in published.items():
        if split == "val":
            (workspace.slides / f"{name}.tif").unlink()
    check = check_split(CAMELYON, workspace)
    assert (check.status, "val would be empty" in check.message) == ("error", True)
