"""SAM and decoder files: what loads, and what is refused with a reason."""

import pickle
import warnings
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch

from epsam.errors import CheckpointError
from epsam.runtime.checkpoints import save_tensors, save_weights
from epsam.sam.checkpoint import build_sam, decoder_weights, load_decoder, load_sam
from epsam.sam.decoder import decode_batch
from epsam.sam.demo_model import build_sam_demo
from epsam.sam.encoder import encoder_hash
from tests.sam_factory import small_sam


@pytest.fixture(scope="module")
def weights():
    return build_sam_demo().state_dict()


def test_a_checkpoint_by_path_is_loaded_frozen(tmp_path, weights):
    save_tensors(tmp_path / "sam.pth", weights)
    sam = load_sam("demo", tmp_path / "sam.pth")
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    for name, tensor in sam.state_dict().items():
        torch.testing.assert_close(tensor, weights[name])


def test_the_decoder_upscales_contiguous_input_to_the_same_masks():
    torch.manual_seed(0)
    ours, theirs = build_sam("demo"), build_sam_demo().eval()
    theirs.load_state_dict(ours.state_dict())
    strided, logits = [], []
    embeddings, points, labels = (
        torch.randn(2, 128, 32, 32),
        torch.rand(2, 3, 2) * 256,
        torch.ones(2, 3, dtype=torch.int64),
    )
    for sam in (ours, theirs):
        sam.mask_decoder.output_upscaling[0].register_forward_hook(
            lambda module, inputs, output: strided.append(not inputs[0].is_contiguous())
        )
        with torch.inference_mode():
            logits.append(decode_batch(sam, embeddings, points, labels))
    assert strided == [False, True], "segment_anything gives a transposed view, as yet"
    torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"model_state": w, "epoch": 3},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
        lambda w: {f"sam.{k}": v for k, v in w.items()},
        lambda w: {"net": {f"module._orig_mod.{k}": v for k, v in w.items()}, "optimizer": {"state": {}}, "epoch": 3},
        lambda w: {"model_state": w, "best_metric": np.float64(0.5), "step": np.int64(7)},
        lambda w: {**w, "decoder_state": {"head": torch.zeros(1)}},
    ],
    ids=["model_state", "parallel", "prefix", "compiled", "numpy-scalars", "second-entry"],
)
def test_wrapped_weights_are_unwrapped(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / "sam.pth")
    sam = load_sam("demo", tmp_path / "sam.pth")
    torch.testing.assert_close(sam.state_dict(), weights, check_device=False)


def test_incomplete_or_foreign_weights_are_named(tmp_path, weights):
    partial = {name: tensor for name, tensor in weights.items() if name != "mask_decoder.iou_token.weight"}
    save_tensors(tmp_path / "partial.pth", partial | {"head.bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"partial.pth .*missing: mask_decoder.iou_token.weight; 1 unknown: head"):
        load_sam("demo", tmp_path / "partial.pth")


def test_weights_of_another_model_type_are_refused(tmp_path, weights):
    save_tensors(tmp_path / "demo.pth", weights)
    with pytest.raises(CheckpointError, match=r"does not fit SAM vit_b: \d+ other shapes: .*Set sam.model_type"):
        load_sam("vit_b", tmp_path / "demo.pth")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 375042383\n", "a pointer of Git LFS"),
        (b"\r\n<!DOCTYPE html><html>sign in \x1b[31m</html>", "a web page"),
        (b'{"message": "rate limit"}', "JSON"),
        ((2).to_bytes(8, "little") + b"{}", "safetensors"),
        (b"", "is empty"),
        (b"not a checkpoint", "no file of torch.save"),
    ],
)
def test_files_that_are_no_weights_are_called_what_they_are(tmp_path, content, what):
    (tmp_path / "sam.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"sam.pth is .*{what}|sam.pth {what}") as caught:
        load_sam("demo", tmp_path / "sam.pth")
    assert str(caught.value).isprintable()


def test_weights_that_are_cut_off_or_hold_objects_say_so(tmp_path, weights):
    torch.save({"model_state": weights, "args": Namespace(lr=1)}, tmp_path / "objects.pth")
    with pytest.raises(CheckpointError, match=r"holds Python objects \(argparse.Namespace\).*save the weights alone"):
        load_sam("demo", tmp_path / "objects.pth")
    save_tensors(tmp_path / "sam.pth", weights)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "sam.pth").read_bytes()[:50_000])
    with pytest.raises(CheckpointError, match=r"cut.pth is cut off"):
        load_sam("demo", tmp_path / "cut.pth")
    with zipfile.ZipFile(tmp_path / "zipped.pth", "w") as archive:
        archive.write(tmp_path / "sam.pth", "sam.pth")
    with pytest.raises(CheckpointError, match=r"zipped.pth is a zip archive, not weights; unpack it"):
        load_sam("demo", tmp_path / "zipped.pth")
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        for name in ("script/data.pkl", "script/constants.pkl", "script/code/__torch__.py"):
            archive.writestr(name, b"")
    with pytest.raises(CheckpointError, match=r"script.pt is a TorchScript program, .*save the weights alone"):
        load_sam("demo", tmp_path / "script.pt")
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(weights, protocol=4))
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=r"pickle.pth is a pickle of another program"):
        warnings.simplefilter("error")
        load_sam("demo", tmp_path / "pickle.pth")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_damaged_or_missing_files_are_named(tmp_path, content):
    path = tmp_path / "sam.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"sam\.pth"):
        load_sam("demo", path)


def test_published_weights_with_a_wrong_hash_are_refused_and_kept(tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"somebody's own weights under the published name")
    with pytest.raises(CheckpointError, match=r"sam_vit_b_01ec64.pth: the SHA-256 is not that of the published vit_b"):
        load_sam("vit_b", None, tmp_path)
    assert path.is_file()


def test_the_missing_demo_sam_says_how_to_bring_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr("epsam.shipped.DEMO_SAM", tmp_path / "sam_demo.pth")
    with pytest.raises(CheckpointError, match="git checkout checkpoints/sam_demo.pth"):
        load_sam("demo", None, tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_decoder_goes_where_it_belongs(tmp_path, prefix):
    trained, sam = build_sam("demo"), build_sam("demo")
    encoder = {name: tensor.clone() for name, tensor in sam.image_encoder.state_dict().items()}
    save_tensors(tmp_path / "decoder.pth", {prefix + name: value for name, value in decoder_weights(trained).items()})
    assert load_decoder(sam, tmp_path / "decoder.pth") is sam
    torch.testing.assert_close(sam.mask_decoder.state_dict(), trained.mask_decoder.state_dict())
    torch.testing.assert_close(sam.image_encoder.state_dict(), encoder)


def test_a_decoder_of_another_sam_is_refused_and_changes_nothing(tmp_path):
    sam, other = build_sam("demo"), small_sam()
    before = decoder_weights(sam)
    save_tensors(tmp_path / "decoder.pth", decoder_weights(other))
    with pytest.raises(CheckpointError, match=r"decoder.pth does not fit this SAM's mask decoder: \d+ other shapes"):
        load_decoder(sam, tmp_path / "decoder.pth")
    save_tensors(tmp_path / "whole.pth", sam.state_dict())
    with pytest.raises(CheckpointError, match="unknown: image_encoder"):
        load_decoder(sam, tmp_path / "whole.pth")
    torch.testing.assert_close(decoder_weights(sam), before)


def test_a_decoder_trained_on_another_encoder_is_refused(tmp_path):
    sam, other = build_sam("demo"), build_sam("demo")
    save_weights(tmp_path / "decoder.pth", decoder_weights(other), {}, encoder_hash(other))
    load_decoder(other, tmp_path / "decoder.pth")
    with pytest.raises(
        CheckpointError, match=r"decoder.pth was trained on another SAM \(encoder \w+ there, \w+ here\)"
    ):
        load_decoder(sam, tmp_path / "decoder.pth")
