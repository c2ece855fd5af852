"""Stage finetune: round 0, SAM's mask decoder trained on the initial masks."""

from epsam.cam.mask import cam_mask
from epsam.config.schema import Config
from epsam.runtime.device import Hardware
from epsam.runtime.files import write_png
from epsam.sam.labels import labels_folder, validation_examples, with_labels
from epsam.sam.samples import LabelledSamples, patch_size
from epsam.sam.session import SamSession
from epsam.sam.training import train_decoder
from epsam.visualization.contact_sheet import Row, evenly_spaced, sheet_path, write_sheet
from epsam.workspace import Workspace


def finetune(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: round 0, SAM's decoder trained on the initial masks, into workspace.decoder(0).

    Raises DataError when initial masks are missing or all empty.
    """
    session = SamSession(config, workspace, hardware)
    folder, ranks = labels_folder(workspace, "val", 0), hardware.ranks
    for example in ranks.part(session.examples("val")):
        write_png(folder / f"{example.patch.name}.png", cam_mask(example.cam, config.cam, patch_size(example.patch)))
    train = with_labels(session.examples("train"), labels_folder(workspace, "train", 0))
    ranks.wait()
    shown = evenly_spaced(train)
    samples = LabelledSamples(shown, session.embeddings("train"), config, "predict")
    rows = [
        Row(s.example.patch, s.example.cam, s.prompts, s.target, "initial mask")
        for s in (samples[index, 0] for index in range(len(shown)))
    ]
    if ranks.is_first:
        write_sheet(sheet_path(workspace, 0), rows)
    train_decoder(session, "round0", train, validation_examples(session, 0), workspace.decoder(0))
