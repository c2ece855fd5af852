"""Which checkpoints ./infer.sh takes: those that are named, or those of the classifier's run."""

import pytest
import torch

from epsam.config.schema import Config
from epsam.errors import CheckpointError, ConfigError
from epsam.inference.checkpoints import check_model_type, choose_parts, warn_of_unused_sam
from epsam.models.find import find_model, model_names, model_of_files
from epsam.runtime.checkpoints import save_weights


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of the runs `a` and `b`, each with the settings of its run."""
    for run in ("a", "b"):
        for name in ("resnet_adl", "student", "decoder_iter2", "sam_decoder", "sam_decoder.1"):
            settings = Config(name=run).model_dump(mode="json")
            save_weights(tmp_path / f"{run}_{name}.pth", {"w": torch.zeros(1)}, settings)
    return tmp_path


def _choose(folder, student=None, decoder=None, *overrides, classifier="a_resnet_adl.pth"):
    named = [folder / name if name else None for name in (decoder, student)]
    chosen = choose_parts(model_of_files(folder / classifier, *named), None, overrides)
    taken = chosen.student or chosen.decoder
    assert taken
    return taken.name, chosen.config.name


def test_the_student_of_the_classifiers_run_is_the_default(folder):
    assert _choose(folder) == ("a_student.pth", "a")
    assert _choose(folder, classifier="b_resnet_adl.pth") == ("b_student.pth", "b")
    (folder / "a_resnet_adl.pth").unlink()
    assert _choose(folder) == ("a_student.pth", "a")


def test_sam_is_taken_by_the_name_of_its_decoder_or_by_the_setting_or_where_there_is_no_student(folder):
    assert _choose(folder, None, "a_decoder_iter2.pth") == ("a_decoder_iter2.pth", "a")
    assert _choose(folder, None, None, "inference.model=sam") == ("a_sam_decoder.pth", "a")
    (folder / "a_student.pth").unlink()
    assert _choose(folder) == ("a_sam_decoder.pth", "a")
    assert _choose(folder, "b_student.pth", None, "inference.model=sam") == ("b_student.pth", "b")


def test_what_cannot_be_meant_is_refused(folder):
    with pytest.raises(ConfigError, match="both STUDENT_CHECKPOINT .* and SAM_DECODER_CHECKPOINT"):
        _choose(folder, "a_student.pth", "a_decoder_iter2.pth")
    with pytest.raises(ConfigError, match=r"RESNET_CHECKPOINT=.*mine\.pth: its name does not end in _resnet_adl\.pth"):
        _choose(folder, classifier="mine.pth")
    with pytest.raises(
        CheckpointError, match=r"no model `c` in .*neither c_student\.pth nor c_resnet_adl\.pth with c_sam"
    ):
        _choose(folder, classifier="c_resnet_adl.pth")
    with pytest.raises(CheckpointError, match=r"none\.pth: no such checkpoint"):
        _choose(folder, "none.pth")
    with pytest.raises(ConfigError, match=r"SAM_MODEL_TYPE=vit_h, but .*a_student\.pth was trained with .* vit_b"):
        check_model_type("vit_h", choose_parts(find_model("a", folder), None, ()))


def test_a_sam_that_the_student_does_not_use_is_named(folder, caplog):
    student, with_sam = (choose_parts(find_model("a", folder), None, words) for words in ((), ("inference.model=sam",)))
    caplog.clear()
    warn_of_unused_sam(folder / "sam.pth", with_sam)
    warn_of_unused_sam(None, student)
    assert not caplog.text
    warn_of_unused_sam(folder / "sam.pth", student)
    assert "sam.pth is not used: the student predicts, without SAM" in caplog.text


def test_a_model_by_the_name_of_its_run(folder):
    chosen = choose_parts(find_model("a", folder), None, ())
    assert chosen.student == folder / "a_student.pth"
    check_model_type("", chosen)
    check_model_type("vit_b", chosen)
    chosen = choose_parts(find_model("b", folder), None, ("inference.model=sam",))
    assert (chosen.classifier, chosen.decoder) == (folder / "b_resnet_adl.pth", folder / "b_sam_decoder.pth")
    assert model_names(folder) == ["a", "b"]
    (folder / "b_student.pth").rename(folder / "mine_student.pth")
    (folder / "b_resnet_adl.pth").unlink()
    assert model_names(folder) == ["a", "mine"]
    with pytest.raises(CheckpointError, match="no model `mien` in .*did you mean `mine`"):
        find_model("mien", folder)
    with pytest.raises(CheckpointError, match="no model `b` in .*there is a, mine there"):
        find_model("b", folder)
