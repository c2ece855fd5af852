"""Files, seeds, the epoch loop and weights: what a stopped run, a full disk or a broken file leads to."""

import http.server
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
import zlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from epsam.errors import CheckpointError, DataError, EpsamError
from epsam.runtime import downloads as weights
from epsam.runtime import training_loop
from epsam.runtime.checkpoints import load_tensors, load_weights, save_tensors, save_weights
from epsam.runtime.device import choose_hardware, precisions_of_gpu
from epsam.runtime.files import (
    atomic,
    read_csv,
    read_image,
    read_json,
    read_mask,
    remove_temporaries,
    remove_temporaries_of,
    write_png,
)
from epsam.runtime.ranks import Ranks
from epsam.runtime.seeds import generator, seed_of
from epsam.runtime.training_loop import run


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from epsam.cam.activation_map import ActivationMap
from epsam.cam.store import save_cams
from epsam.runtime.checkpoints import save_weights
from epsam.runtime.files import atomic, write_csv, write_png
from epsam.runtime.checkpoints import save_tensors
def save_array(path, array):
    with atomic(path) as temporary:
        np.save(temporary, array)
folder, noise = Path(sys.argv[1]), np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
for write in (lambda: write_png(folder / "a.png", noise), lambda: save_array(folder / "b.npy", noise),
              lambda: write_csv(folder / "c.csv", [{"x": "y" * 99}] * 999, ["x"]),
              lambda: save_tensors(folder / "d.pth", {"x": torch.from_numpy(noise)}),
              lambda: save_weights(folder / "e.pth", {"x": torch.from_numpy(noise)}, {}),
              lambda: save_cams(folder / "f.npz", {"x": ActivationMap(noise[..., 0] / 255, 0.5)})):
    try:
        write()
    except OSError as error:
        print(Path(error.filename).name, error.strerror)
"""


def test_a_file_that_does_not_fit_on_the_disk_is_named_and_nothing_is_left_of_it(tmp_path):
    # A limit on the size of files stands for the disk: it stops every writer in the middle, too.
    run = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["a.png", "b.npy", "c.csv", "d.pth", "e.pth", "f.npz"]
    assert all("too large" in line or "could be written" in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    kept = tmp_path / "train" / "image" / "a_x1_y2_1.png"
    write_png(kept, np.zeros((2, 2, 3), np.uint8))
    first = kept.parent / ".a_x1_y2_1.01234567.epsam-tmp.png"
    for name in (
        first.name,
        ".demo_resnet_adl.89abcdef.epsam-tmp.pth",
        ".demo_resnet_adl.pth.89abcdef.epsam-tmp.json",
        ".lock.89abcdef.epsam-tmp",
        ".demo_resnet_adl_2.89abcdef.epsam-tmp.pth",  # of another run
    ):
        (kept.parent / name).write_bytes(b"half")
    remove_temporaries_of(kept.parent / "demo_resnet_adl.pth")
    remove_temporaries_of(kept.parent / "demo_resnet_adl.pth.json")
    others = {kept.name, first.name, ".lock.89abcdef.epsam-tmp", ".demo_resnet_adl_2.89abcdef.epsam-tmp.pth"}
    assert {path.name for path in kept.parent.iterdir()} == others
    remove_temporaries(tmp_path)
    assert list(kept.parent.iterdir()) == [kept]


def test_hidden_files_of_other_programs_are_not_taken_for_temporary_ones(tmp_path):
    for name in (".a.tmp", ".a.01234567.tmp.png", ".syncthing.a.png.tmp", ".a.epsam-tmp.png", "a.01234567.epsam-tmp"):
        (tmp_path / name).write_text("theirs")
    (tmp_path / ".a.01234567.epsam-tmp").mkdir()
    remove_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_temporary_files_are_recognised_by_their_names(tmp_path):
    for name in ("a.png", "a b.c.json", ".lock", "é", "x" * 240 + ".npz"):
        with atomic(tmp_path / name) as temporary:
            temporary.write_text("half")
            shutil.copy(temporary, tmp_path / "copy")
            kept = temporary
        shutil.move(tmp_path / "copy", kept)
        remove_temporaries(tmp_path)
        assert not kept.exists()
        (tmp_path / name).unlink()


def test_png_keeps_channel_order_and_masks(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[..., 0] = 200
    write_png(tmp_path / "é ü.png", rgb)
    assert (read_image(tmp_path / "é ü.png") == rgb).all()
    mask = np.eye(5, dtype=bool)
    write_png(tmp_path / "m.png", mask)
    assert (read_mask(tmp_path / "m.png") == mask).all()


@pytest.mark.parametrize("high", [1, 255, 65535])
def test_masks_of_two_values_are_read_whatever_their_bits_and_channels(tmp_path, high):
    mask = np.eye(5, dtype=bool)
    grey = mask.astype(np.uint16 if high > 255 else np.uint8) * high
    for array in (grey, np.dstack([grey] * 3)):
        cv2.imwrite(str(tmp_path / "m.png"), array)
        assert (read_mask(tmp_path / "m.png") == mask).all()
    for full in (0, high):
        cv2.imwrite(str(tmp_path / "m.png"), np.full_like(grey, full))
        assert (read_mask(tmp_path / "m.png") == (full > 0)).all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.arange(256, dtype=np.uint8).reshape(16, 16), "256 .*a soft border or a picture"),
        (np.uint8([[0, 1], [1, 2]]), r"3 \(0, 1, 2\), classes"),
        (np.uint8([[1, 1], [1, 2]]), r"2 \(1, 2\), classes"),
        (np.uint8([[0, 0], [0, 2]]), r"2 \(0, 2\), classes"),
        (np.dstack([np.eye(4), np.eye(4), np.ones((4, 4))]).astype(np.uint8) * 255, "in colour"),
        (np.dstack([np.zeros((4, 4))] * 3 + [np.eye(4)]).astype(np.uint8) * 255, "transparent"),
    ],
)
def test_masks_of_other_values_are_refused_with_what_they_hold(tmp_path, array, reason):
    cv2.imwrite(str(tmp_path / "m.png"), array)
    with pytest.raises(DataError, match=rf"m\.png: a mask .*{reason}"):
        read_mask(tmp_path / "m.png")


def test_transparent_parts_of_patches_are_white(tmp_path):
    array = np.full((4, 4, 4), 100, np.uint8)
    array[..., 3] = 255
    array[0, :, 3] = 0
    cv2.imwrite(str(tmp_path / "p.png"), array)
    image = read_image(tmp_path / "p.png")
    assert (image[0] == 255).all()
    assert (image[1:] == 100).all()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_undecodable_files_are_our_errors(tmp_path, content):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for read in (read_image, read_mask, read_json):
        with pytest.raises(DataError, match=r"x\.png"):
            read(path)
    with pytest.raises(DataError, match=r"x\.png"):
        read_csv(path, ["slide"])
    with pytest.raises(CheckpointError, match=r"x\.png"):
        load_tensors(path)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="evil"):
        load_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_a_profile_for_a_gpu_that_is_not_there_goes_on_with_the_cpu(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_hardware("12gb").device.type == "cpu"
    assert "profile 12gb: no GPU that torch can use was found; continuing with the CPU" in caplog.text


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(EpsamError, match=r"there are 2 GPUs on this machine and at least 3 processes"):
        choose_hardware("auto", Ranks(2, 4, 2))


@pytest.mark.parametrize(
    ("major", "name", "training", "predictions"),
    [
        (9, "NVIDIA H100", "bfloat16", "bfloat16"),
        (8, "NVIDIA GeForce RTX 3060", "bfloat16", "bfloat16"),
        (7, "Tesla T4", "float32", "float16"),
        (7, "NVIDIA TITAN V", "float32", "float16"),
        (7, "NVIDIA GeForce GTX 1660 Ti", "float32", "float32"),
        (7, "NVIDIA T1000", "float32", "float32"),
        (6, "NVIDIA TITAN Xp", "float32", "float32"),
    ],
)
def test_precisions_are_those_that_a_gpu_computes_fast_and_without_nan(major, name, training, predictions):
    assert precisions_of_gpu(major, name) == (getattr(torch, training), getattr(torch, predictions))


def test_an_older_gpu_trains_in_float32_with_the_published_batch_and_predicts_in_float16(monkeypatch, caplog):
    card = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=15 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    with caplog.at_level("INFO", "epsam"):
        hardware = choose_hardware()
    assert (hardware.classifier_batch, hardware.precision) == (16, torch.float32)
    assert hardware.prediction_precision == torch.float16
    assert "profile 12gb, float32, predictions float16" in caplog.text


def test_seeds_depend_on_names_alone():
    assert generator(1, "a").random() == generator(1, "a").random()
    assert len({seed_of(1, "a"), seed_of(1, "b"), seed_of(2, "a"), seed_of("1a")}) == 4


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


def _fit(folder, losses, *, epochs, early_stop=99, stop_after=None):
    """Train a weight that is multiplied by the epoch; the validation losses are given."""
    model = Counter()

    def run_epoch(epoch):
        if stop_after is not None and epoch > stop_after:
            raise KeyboardInterrupt
        with torch.no_grad():
            model.weight *= epoch
        return {"train_loss": 1.0, "val_loss": losses[epoch - 1]}

    done = run(
        "test",
        run_epoch,
        {"model": model},
        model.state_dict,
        epochs=epochs,
        early_stop=early_stop,
        state=folder / "state.pth",
        best=folder / "best.pth",
        curves=folder / "curves.csv",
    )
    return model, done


def test_training_goes_on_where_it_was_stopped(tmp_path):
    losses = [3.0, 1.0, 2.0, 4.0]
    whole, expected = _fit(tmp_path / "whole", losses, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path / "cut", losses, epochs=4, stop_after=2)
    resumed, done = _fit(tmp_path / "cut", losses, epochs=4)
    assert resumed.weight == whole.weight == 24
    assert done == expected
    assert load_tensors(tmp_path / "cut" / "best.pth")["weight"] == 2
    assert (tmp_path / "cut" / "curves.csv").read_text() == (tmp_path / "whole" / "curves.csv").read_text()


def test_tensorboard_shows_each_epoch_once_after_a_training_was_stopped(tmp_path, monkeypatch):
    losses = [3.0, 1.0, 2.0, 4.0]
    saves = []

    def save_until_killed(path, value):
        saves.append(path.name)
        if saves.count("state.pth") == 3:
            raise KeyboardInterrupt  # the third epoch is in TensorBoard and not in the state
        save_tensors(path, value)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training_loop, "save_tensors", save_until_killed)
        _fit(tmp_path, losses, epochs=4)
    losses[2] = 2.5
    _fit(tmp_path, losses, epochs=4)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "test")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert shown == [(1, 3.0), (2, 1.0), (3, 2.5), (4, 4.0)]


@pytest.mark.parametrize(
    "change",
    [
        {"parts": {"model": {"other": torch.ones(1)}}},
        {"parts": {"model": 3}},
        {"parts": {}},
        {"history": [{"epoch": "one"}]},
        {"history": []},
        {"best_epoch": 0},
        {"best_score": "low"},
        {"more": 1},
    ],
)
def test_a_damaged_state_of_a_training_is_named_and_says_how_to_start_again(tmp_path, change):
    _fit(tmp_path, [2.0, 1.0], epochs=2)
    state = tmp_path / "state.pth"
    torch.save(load_tensors(state) | change, state)
    with pytest.raises(
        CheckpointError, match=r"state.pth: is not a state .*; delete it, and this training starts again"
    ):
        _fit(tmp_path, [], epochs=3)
    state.write_bytes(b"half")
    with pytest.raises(CheckpointError, match="delete it, and this training starts again"):
        _fit(tmp_path, [], epochs=3)


def test_early_stop_and_finished_training_do_nothing_more(tmp_path):
    _, done = _fit(tmp_path, [1.0, 2.0, 3.0, 0.5], epochs=4, early_stop=2)
    assert len(done.history) == 3
    _, again = _fit(tmp_path, [], epochs=4, early_stop=2)
    assert again == done


def test_nan_loss_stops_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(EpsamError, match="epoch 2: val_loss is nan"):
        _fit(tmp_path, [1.0, float("nan")], epochs=3)
    assert len(load_tensors(tmp_path / "state.pth")["history"]) == 1


def test_weights_of_other_settings_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    save_weights(path, {"a": torch.ones(2)}, {"classifier": {"depth": 18}})
    assert load_weights(path, {"classifier.depth": 18})["a"].sum() == 2
    with pytest.raises(CheckpointError, match="classifier.depth is 18 there, 50 here"):
        load_weights(path, {"classifier": {"depth": 50}})
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_weights(tmp_path / "none.pth")


def test_weights_that_are_not_those_of_the_settings_beside_them_are_refused(tmp_path):
    save_weights(tmp_path / "a.pth", {"a": torch.ones(2)}, {})
    save_weights(tmp_path / "b.pth", {"a": torch.zeros(2)}, {})
    (tmp_path / "b.pth").replace(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a.pth is not the file that a.pth.json was written for"):
        load_weights(tmp_path / "a.pth")
    (tmp_path / "a.pth.json").unlink()
    assert load_weights(tmp_path / "a.pth")["a"].sum() == 0
    for content in ("[1]", '{"settings": 3}'):
        (tmp_path / "a.pth.json").write_text(content)
        with pytest.raises(EpsamError, match=r"a.pth.json: "):
            load_weights(tmp_path / "a.pth")


def bomb(side):
    """A PNG of a few kilobytes that claims to be `side` px wide and high, and is."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def test_a_small_png_that_unpacks_to_gigabytes_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(64))
    assert read_image(path).shape == (64, 64, 3)
    path.write_bytes(bomb(20_000))
    assert path.stat().st_size < 100_000
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"bomb.png"):
            read(path)


class OneFile(http.server.BaseHTTPRequestHandler):
    """Serves 100,000 bytes, from where a Range header says."""

    content = bytes(range(250)) * 400

    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def published(monkeypatch):
    """A server on this machine stands for the place of publication."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OneFile)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}/"

    def publish(sha256):
        monkeypatch.setitem(weights.WEIGHTS, "vit_b", weights.Weights(base, "w.pth", sha256))

    yield publish
    server.shutdown()
    server.server_close()


def test_download_goes_on_after_a_break_and_is_checked(tmp_path, published):
    from hashlib import sha256

    published(sha256(OneFile.content).hexdigest())
    (tmp_path / "w.pth.part").write_bytes(OneFile.content[:777])
    path = weights.fetch("vit_b", tmp_path)
    assert path.read_bytes() == OneFile.content
    assert list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"mine")
    assert weights.fetch("vit_b", tmp_path).read_bytes() == b"mine"  # what is there is not fetched again


def test_wrong_hash_deletes_and_explains(tmp_path, published):
    published("0" * 64)
    with pytest.raises(CheckpointError, match=r"SHA-256 is .* deleted"):
        weights.fetch("vit_b", tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_network_says_where_to_put_the_file(tmp_path, monkeypatch):
    monkeypatch.setitem(weights.WEIGHTS, "vit_b", weights.Weights("http://127.0.0.1:9/", "w.pth", "0"))
    with pytest.raises(CheckpointError, match=r"could not be fetched.*put it at .*w\.pth"):
        weights.fetch("vit_b", tmp_path)
    with pytest.raises(CheckpointError, match="no weights called `vit_x`"):
        weights.fetch("vit_x", tmp_path)


def test_messages_are_short_single_lines_without_terminal_codes():
    error = DataError("a\nb \x1b[31m \udcff " + "x" * 10**7 + "; delete it")
    message = str(pickle.loads(pickle.dumps(error)))
    assert message.startswith("a b \\x1b[31m \\udcff xxx")
    assert message.endswith("xxx; delete it")
    assert len(message) < 500
