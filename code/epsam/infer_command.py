"""The command `infer`, which ./infer.sh runs: what is to be predicted, with which model, to where."""

import os
from pathlib import Path

import click

from epsam.options import NumberRange, PathArgument, root_option
from epsam.runtime.log import set_up_logging
from epsam.slides.slide import PLAUSIBLE_MPP

DEFAULT_MODEL = "demo"


@click.command("infer")
@click.argument("words", nargs=-1, metavar="[SLIDE_OR_FOLDER]... [section.key=value]...")
@click.option(
    "--model",
    "model_name",
    metavar="NAME|FILE|URL",
    help="The model that predicts: the name of a run of ./train.sh, or a file of export-model, by its path or https "
    "address.  [default: demo]",
)
@click.option(
    "--output",
    type=PathArgument(),
    metavar="DIR",
    help="Folder of the predictions.  [default: one for each input, in runs/inference/MODEL]",
)
@click.option(
    "--config",
    "config_name",
    metavar="FILE",
    help="Settings of the run that made the checkpoints; needed only where they have no .json beside them.",
)
@click.option(
    "--mpp",
    type=NumberRange(*PLAUSIBLE_MPP),
    help="Resolution in um/px of slides whose files do not say it.",
)
@click.option("--fresh", is_flag=True, help="Replace what an earlier call wrote to the same folder.")
@root_option
def infer_command(
    words: tuple[str, ...],
    model_name: str | None,
    output: Path | None,
    config_name: str | None,
    mpp: float | None,
    fresh: bool,
    root: Path,
) -> None:
    """Segment tumour in slides, folders of slides, or a patch folder (image/ in it), with a trained model."""
    set_up_logging(root / "logging_inference.txt")
    from epsam.doctor import report
    from epsam.doctor.run import examine_for_inference
    from epsam.inference.arguments import split_arguments
    from epsam.inference.checkpoints import check_model_type, choose_parts, warn_of_unused_sam
    from epsam.inference.output_choice import default_label
    from epsam.inference.variables import read_variables
    from epsam.models.find import find_model, model_names, model_of_files

    checkpoints = root / "checkpoints"
    given, overrides = split_arguments(words, model_names(checkpoints))
    said = read_variables(os.environ, inputs=bool(given), model=bool(model_name), output=bool(output))
    inputs = given or [said.test_dataset_dir or root / "dataset" / "demo" / "test"]
    parts = (said.resnet_checkpoint, said.sam_decoder_checkpoint, said.student_checkpoint)
    model = model_of_files(*parts) if any(parts) else find_model(model_name or DEFAULT_MODEL, checkpoints)
    chosen = choose_parts(model, config_name, overrides)
    check_model_type(said.sam_model_type, chosen)
    warn_of_unused_sam(said.sam_checkpoint, chosen)
    config, named_output = chosen.config, output or said.output_dir
    if said.sam_checkpoint:
        config = config.model_copy(update={"sam": config.sam.model_copy(update={"checkpoint": said.sam_checkpoint})})
    folder = named_output or root / "runs" / "inference" / model.name / default_label(inputs)
    report(examine_for_inference(config, checkpoints, folder, with_sam=not chosen.student and not chosen.sam))
    # They load torch, which takes seconds: only now, when the arguments are known to be right.
    from epsam.inference.run import InferenceSettings, infer
    from epsam.runtime.device import choose_hardware
    from epsam.self_test import difference_from_cpu

    settings = InferenceSettings(
        test_dataset_dir=inputs[0],
        resnet_checkpoint=chosen.classifier,
        sam_checkpoint=config.sam.checkpoint or chosen.sam,
        sam_decoder_checkpoint=chosen.decoder,
        output_dir=folder,
        config=config,
        fresh=fresh,
        weights_dir=checkpoints,
        mpp=mpp,
        student_checkpoint=chosen.student,
        others=tuple(inputs[1:]),
        is_default_output=named_output is None,
    )
    infer(settings, choose_hardware(config.profile, self_test=difference_from_cpu))
