"""A trained model by the name of its run, whose checkpoints belong together, or by its file."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from epsam.errors import CheckpointError, ConfigError
from epsam.runtime.downloads import WEIGHTS, fetch_model
from epsam.runtime.model_file import PARTS, SUFFIX, PackedWeights, WeightsSource, parts_of, read_model_record
from epsam.runtime.user_paths import from_user

CLASSIFIER_END, DECODER_END, STUDENT_END = "_resnet_adl.pth", "_sam_decoder.pth", "_student.pth"
"""How the files of a run's model end; see Workspace."""


@dataclass(frozen=True)
class Model:
    """A classifier and what predicts after it; None for a part that there is not."""

    name: str
    classifier: WeightsSource | None
    decoder: WeightsSource | None
    """SAM's mask decoder of the last round."""
    student: WeightsSource | None
    sam: WeightsSource | None = None
    """SAM itself, where a model file brings it."""


def find_model(name: str, checkpoints: Path) -> Model:
    """The model of the run `name`, of the parts that are there, or of the file or address `name` (.epsam).

    Raises CheckpointError when there is none to predict, the file is none of a model, or the address is not reached.
    """
    if "://" in name:
        return _of_file(fetch_model(name, checkpoints))
    if name.endswith(SUFFIX):
        return _of_file(from_user(name))
    model = _of_run(name, checkpoints)
    if not _can_predict(model):
        names = model_names(checkpoints)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean `{close[0]}`?" if close else f"there is {', '.join(names) or 'none'} there"
        raise CheckpointError(
            f"no model `{name}` in {checkpoints}: neither {name}{STUDENT_END} nor {name}{CLASSIFIER_END} with "
            f"{name}{DECODER_END}; ./train.sh makes it; {hint}"
        )
    return model


def model_names(checkpoints: Path) -> list[str]:
    """Names of the runs whose models can predict."""
    runs = {
        path.name.removesuffix(end)
        for end in (STUDENT_END, DECODER_END)
        for path in checkpoints.glob(f"*{end}")
        if path.name != end
    }
    return sorted(name for name in runs if _can_predict(_of_run(name, checkpoints)))


def model_of_files(classifier: Path | None, decoder: Path | None, student: Path | None) -> Model:
    """The model of checkpoints that are named one by one; the others are those of the run that `classifier` is from.

    Raises ConfigError when `student` and `decoder` are both named, when they are neither and the name of `classifier` says
    no run, and when `decoder` is named without `classifier`.
    """
    if student and decoder:
        raise ConfigError(
            f"both STUDENT_CHECKPOINT ({student}) and SAM_DECODER_CHECKPOINT ({decoder}) are set; set the one to "
            "predict with, and leave the other empty"
        )
    if student:
        return Model(student.name.removesuffix(STUDENT_END), None, None, student)
    if classifier is None:
        raise ConfigError(
            f"SAM_DECODER_CHECKPOINT={decoder}: it works with the classifier it was trained beside; set "
            "RESNET_CHECKPOINT too"
        )
    name = classifier.name.removesuffix(CLASSIFIER_END)
    if decoder:
        return Model(name, classifier, decoder, None)
    if name == classifier.name:
        raise ConfigError(
            f"RESNET_CHECKPOINT={classifier}: its name does not end in {CLASSIFIER_END}, so the checkpoints that belong "
            "to it cannot be found by name; set STUDENT_CHECKPOINT or SAM_DECODER_CHECKPOINT too"
        )
    return find_model(name, classifier.parent)


def _of_run(name: str, checkpoints: Path) -> Model:
    paths = [checkpoints / (name + end) for end in (CLASSIFIER_END, DECODER_END, STUDENT_END)]
    return Model(name, *(path if path.is_file() else None for path in paths))


def _of_file(file: Path) -> Model:
    record, parts = read_model_record(file), parts_of(file)
    classifier, decoder, student, sam = (PackedWeights(file, part) if part in parts else None for part in PARTS)
    if record.sam_sha256 and record.sam_sha256 not in {weights.sha256 for weights in WEIGHTS.values()}:
        raise CheckpointError(f"{file}: was trained on weights of SAM that this program does not know; update it")
    model = Model(file.stem, classifier, decoder, student, sam)
    if not _can_predict(model):
        raise CheckpointError(f"{file}: has neither a student nor a classifier with a decoder; export it again")
    return model


def _can_predict(model: Model) -> bool:
    return model.student is not None or (model.classifier is not None and model.decoder is not None)
