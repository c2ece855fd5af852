"""Stage distill: the student, a segmentation network trained on what the last round predicts."""

from epsam.config.schema import Config
from epsam.runtime.device import Hardware
from epsam.runtime.log import logger
from epsam.student.labels import SPLITS_WITH_LABELS, labels_folder, write_labels
from epsam.student.training import train_student
from epsam.workspace import Workspace


def distill(config: Config, workspace: Workspace, hardware: Hardware) -> None:
    """Stage: label the positives of train and val with the last round, and train the student, into workspace.student.

    With `student.enabled: false` there is none. The best epoch is chosen by the labels and the normal patches of the
    val split. Continues after the last complete epoch.
    """
    if not config.student.enabled:
        logger.info("distill: student.enabled is false, there is nothing to do")
        return
    write_labels(config, workspace, hardware)
    labels = {split: labels_folder(workspace, split) for split in SPLITS_WITH_LABELS}
    train_student(config, workspace, hardware, "student", labels, workspace.student)
