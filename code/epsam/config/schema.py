"""Typed settings of a run, one class per stage; epsam/config/loading.py fills them.

The defaults are the published figures (Camelyon17, where the two datasets differ).
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from epsam.runtime.records import is_plain
from epsam.workspace import RESERVED_FOLDERS


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"names an unknown home folder ({error})") from None


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("is not a full path; begin it with / or ~")
    return path


UserPath = Annotated[Path, AfterValidator(_expanded)]
"""A path of the user's: `~` is the home folder, and a relative one counts from the project's top level (the folder of
dataset/ and checkpoints/), wherever the settings file lies; see `counted_from`."""


def is_name_of_run(word: str) -> bool:
    """Whether `init_from: word` is the name of a run, and not a path."""
    return "/" not in word and not word.startswith("~") and not word.endswith(".epsam")


def _name_of_run(word: str) -> str:
    if not is_name_of_run(word):
        raise ValueError("is a path")
    return word


ModelName = Annotated[str, AfterValidator(_name_of_run)]
"""The name of a run, whose model is in checkpoints/."""
ProgramPath = Annotated[Path, AfterValidator(_expanded), AfterValidator(_absolute)]
"""A path of an installed program, absolute or from `~`."""


Share = Annotated[float, Field(ge=0, le=1)]


Count = Annotated[int, Field(ge=0)]


Positive = Annotated[int, Field(ge=1)]


Rate = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Common behaviour of all sections: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Slides(Section):
    """Where slides come from and how they are read."""

    reader: Literal["auto", "asap", "openslide"] = "auto"
    """The library that reads slides: ASAP where it is installed and OpenSlide elsewhere, or one of the two."""
    asap_path: ProgramPath | None = None
    """Folder of ASAP's multiresolutionimageinterface, when it is neither on the path nor in /opt/ASAP/bin."""
    collection: Literal["camelyon16", "camelyon17", "own"] = "own"
    """Whose naming, published splits and table of known issues apply."""
    groups: dict[Literal["tumour", "hole", "ignore", "roi"], list[str]] = {"tumour": ["Tumor"], "hole": ["Exclusion"]}
    """Annotation groups (ASAP's PartOfGroup), tumour and hole in paint order: later ones are painted over earlier ones.
    Groups under `ignore` are left out; where a slide has outlines of groups under `roi`, regions of interest, negatives
    are taken inside them only. ASAP calls it None when an outline has no group."""
    split: Literal["published", "patient-disjoint", "random"] = "random"
    """How slides are divided into train, val and test: as published for Camelyon, the same without a patient in two
    splits, or at random by patient."""
    split_shares: tuple[Share, Share, Share] = (0.6, 0.15, 0.25)
    """Shares of slides for train, val and test with `split: random`."""
    unannotated: Literal["normal", "exclude"] = "exclude"
    """What a slide without annotation and label is: left out, or normal tissue. A name of Camelyon or the label in
    slides.csv says it for a single slide."""
    unlabelled_tumour: Literal["exclude", "positive"] = "exclude"
    """What becomes of slides with the label tumour in slides.csv of which nothing says where their tumour is: left
    out, or all their windows of tissue are positives, the normal ones among them too."""
    patient_pattern: str | None = None
    """Regular expression that finds the patient in a slide's name: its first group, or all that it matches."""

    @field_validator("patient_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _check(self):
        if not self.groups.get("tumour"):
            raise ValueError("groups.tumour names no annotation group")
        names = [name.strip() for group in self.groups.values() for name in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"groups names {', '.join(twice)} twice; a group is one of tumour, hole, ignore and roi")
        if self.split == "published" and self.collection == "own":
            raise ValueError("split: published needs collection: camelyon16 or camelyon17; use split: random")
        if abs(sum(self.split_shares) - 1) > 1e-6:
            raise ValueError("split_shares must add up to 1")
        return self


class Tissue(Section):
    """Tissue mask: saturation, Otsu, closing, median, at about `downsample` (docs/METHOD.md, section 0)."""

    downsample: Rate = 16
    """Level-0 pixels per pixel of the tissue mask, about: the nearest level of the slide is taken."""
    close_px: Positive = 7
    """Side of the closing's structuring element, in pixels of the tissue mask."""
    close_iterations: Count = 2
    """How often the closing is applied."""
    median_px: Positive = 15
    """Side of the median filter, in pixels of the tissue mask."""


class Selection(Section):
    """How many patches one split takes. Positives of SAM come per bin of tumour share or at random."""

    per_bin: Count | None = None
    """Positives from each bin of tumour share; bins that hold fewer give all."""
    top_up: Count | None = None
    """After `per_bin`, fill up at random to this many, before the cut to `patches.positive_share`."""
    at_random: Count | None = None
    """Positives at random, no bins."""
    negatives: Count = 0
    """Patches of normal tissue."""
    classifier_extra: Count = 0
    """Further positives for the classifier alone, from `classifier.positive_share` outside
    `patches.positive_share`."""

    @model_validator(mode="after")
    def _check(self):
        if (self.per_bin is None) == (self.at_random is None):
            raise ValueError("set either per_bin or at_random")
        if self.top_up is not None and self.per_bin is None:
            raise ValueError("top_up needs per_bin")
        return self


class Patches(Section):
    """Windows cut from the slides."""

    size_px: Positive = 512
    """Side of a patch."""
    target_mpp: Rate | None = None
    """Cut at this resolution (um/px) instead of level 0; needs slides that know theirs, or mpp in slides.csv."""
    centre: Share = 0.25
    """Half-width of the central part that must hold tissue, as a share of the window."""
    border: Share = 0.01
    """Share of the slide's width and height left out on every side."""
    bin_width: Rate = 0.05
    """Width of a bin of tumour share, for `per_bin`."""
    positive_share: tuple[Share, Share] = (0.2, 0.9)
    """Range of tumour share of the positives that SAM works on."""
    train: Selection = Selection(per_bin=500, negatives=6000)
    """What the train split takes."""
    val: Selection = Selection(per_bin=50, top_up=1000, negatives=700)
    """What the val split takes."""
    test: Selection = Selection(at_random=2000, negatives=2000)
    """What the test split takes."""
    seed: int = 42
    """Seed of the random choice of patches, and of the random split."""
    tissue: Tissue = Tissue()
    """How tissue is found."""
    class_folders: dict[Literal["tumour", "normal"], list[str]] = {"tumour": ["tumor", "tumour"], "normal": ["normal"]}
    """Folders in dataset/<name>/{train,val,test} whose pictures are patches of one label, where there are no slides."""

    @field_validator("class_folders")
    @classmethod
    def _check_folders(cls, folders: dict[str, list[str]]) -> dict[str, list[str]]:
        for name in (name for names in folders.values() for name in names):
            if not is_plain(name) or name in RESERVED_FOLDERS or name.startswith((".", "iter_")):
                raise ValueError(f"{name[:40]!r} cannot name a folder of patches; give a plain name")
        return folders


class Augment(Section):
    """Augmentation of the classifier's training patches."""

    flips: bool = True
    """Mirror images."""
    rotation_degrees: Annotated[float, Field(ge=0, le=360)] = 360
    """Range of the random rotation; 0 for none."""
    jitter: Share = 0.2
    """Strength of the jitter of brightness, contrast, saturation and hue."""
    grey: Share = 0.1
    """Share of the patches that are shown without colour."""
    stain: Share = 0.0
    """Strength of the jitter of haematoxylin, eosin and residual (Tellez et al. 2018), each by a factor and an
    amount."""


class Classifier(Section):
    """The patch classifier with enhanced ADL (docs/METHOD.md, section 1)."""

    backbone: Literal["resnet", "efficientnet_lite0"] = "resnet"
    """The network: a ResNet, as published, or the smaller EfficientNet-Lite0, whose ImageNet weights come as a Python
    package; it has neither `depth` nor `layer3_stride`, and its maps come after the last layer (cam.layer: layer4)."""
    depth: Literal[18, 34, 50] = 50
    """Layers of the ResNet."""
    layer3_stride: Literal[1, 2] = 2
    """Stride of the third block: 1 doubles the side of the maps."""
    padding: Literal["zeros", "reflect"] = "zeros"
    """What the convolutions see beyond the patch: zeros, as published, or its mirror image. Zeros look like nothing in
    a slide, and maps come out weak, or odd, along the patch's border."""
    init: Literal["random", "imagenet"] | UserPath = "random"
    """`imagenet` takes torchvision's weights of a ResNet (fetched), or those of EfficientNet-Lite0, which are installed
    with this program; a path names such a file."""
    high_frequency: bool = True
    """The high-frequency component of the patch as a fourth input channel."""
    frequency_block_px: Count = 2
    """Side of the block of low frequencies that is removed."""
    adl: bool = True
    """The Attention Dropout Layer, in training."""
    adl_drop_rate: Share = 0.75
    """Probability that a training step drops the most discriminative region, instead of weighting by attention."""
    adl_threshold: Share = 0.8
    """Share of the attention's maximum from which a position counts as most discriminative."""
    positive_share: tuple[Share, Share] = (0.2, 0.9)
    """Range of tumour share of the positives that the classifier learns from."""
    lr: Rate = 1e-5
    """Learning rate."""
    body_lr: Rate | None = None
    """Learning rate of all layers but the last, for layers that are trained already (`init`); null takes `lr`."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    """Weight decay."""
    batch: Positive = 16
    """Patches per step of the optimiser."""
    epochs: Positive = 50
    """Passes over the training patches, at most."""
    lr_step: Positive = 10
    """Epochs after which the learning rate is multiplied by `lr_gamma`."""
    lr_gamma: Rate = 0.9
    """Factor of the learning rate after every `lr_step` epochs."""
    early_stop: Positive = 25
    """Epochs without improvement after which the training ends."""
    bn_recalibration_batches: Count = 0
    """Batch-norm recalibration: after each epoch, compute the statistics again from this many training batches, without
    ADL, as the network is used afterwards. 0 keeps the running averages of training, which lag behind in short
    trainings and have seen ADL."""
    select_on: Literal["labels", "val_masks"] = "labels"
    """What the best epoch is chosen by: the validation loss of the labels, or how well the maps find the true masks
    of the val split (PxAP), which takes outlines."""
    balance: bool = False
    """Weigh the positives by negatives / positives in the loss."""
    seed: int = 22
    """Seed of initial weights, order and augmentation."""
    augment: Augment = Augment()
    """Augmentation of the training patches."""


class Cam(Section):
    """Class activation maps and the masks cut from them (docs/METHOD.md, section 2)."""

    layer: Literal["layer4.0", "layer4"] = "layer4.0"
    """Where the map is taken: after the first block of the last layer, as published, or after the last layer."""
    rotations: tuple[Literal[0, 90, 180, 270], ...] = (0, 90, 180, 270)
    """Rotations of the patch, in degrees, over whose maps the mean is taken."""
    scales: tuple[Annotated[float, Field(ge=0.5, le=4)], ...] = (1.0,)
    """Sizes, relative to the patch, at which the classifier sees it; the mean is taken over their maps. [1, 2] makes maps of
    small patches finer, at five times the cost."""
    mask_px: Positive = 32
    """Side to which the map is resized before threshold and opening."""
    percentile: Annotated[float, Field(ge=0, lt=100)] | None = 30
    """Threshold of the map: this percentile of its non-zero values; null where `threshold` gives it."""
    threshold: Share | Literal["auto"] | None = None
    """Threshold of the map: this value, or `auto`: for each patch a value at which the mask separates the classifier's
    features of the patch into two different classes. null where `percentile` gives it."""
    max_threshold: Share = 1.0
    """With `threshold: auto` no map is cut above this: the maps of a pretrained classifier of real tissue are cut too high
    otherwise, and those of a classifier from scratch too low with it."""
    opening_px: Count = 5
    """Side of the opening's structuring element at `mask_px`; 0 for none."""

    @model_validator(mode="after")
    def _check(self):
        if (self.percentile is None) == (self.threshold is None):
            raise ValueError("set exactly one of percentile and threshold (the other to null)")
        if not self.rotations:
            raise ValueError("rotations is empty; [0] is the map of the patch as it is")
        if not self.scales or len(set(self.scales)) < len(self.scales):
            raise ValueError("scales is empty, or has one twice; [1] is the patch as it is")
        return self


class Prompts(Section):
    """The prompts that SAM gets (docs/METHOD.md, section 3)."""

    kind: Literal["points", "boxes", "both"] = "points"
    """Points, boxes around the components of the CAM mask, or both."""
    points: Positive = 50
    """Points per patch."""
    min_box_px: Count = 100
    """Components of fewer patch pixels give no box."""


class Sam(Section):
    """The Segment Anything model and the store of its embeddings."""

    model_type: Literal["vit_b", "vit_l", "vit_h", "demo"] = "vit_b"
    """Size of Segment Anything; `demo` is the small one that is part of this program."""
    checkpoint: UserPath | None = None
    """Weights by path; without it those of `model_type` are looked for in checkpoints/ and fetched."""
    embeddings: Literal["on", "off"] = "on"
    """Whether SAM's embeddings are computed once and kept on disk, or again in every epoch."""
    views: Annotated[int, Field(ge=1, le=8)] = 4
    """Dihedral views of each training patch that are kept: the augmentation."""

    @field_validator("embeddings", mode="before")
    @classmethod
    def _as_word(cls, value: object) -> object:
        """YAML reads `on` and `off` as true and false."""
        return ("off", "on")[value] if isinstance(value, bool) else value


class Postprocess(Section):
    """What becomes of the masks that SAM predicts: in pseudo-labels, evaluation and inference, not in round 0."""

    views: Annotated[int, Field(ge=1, le=8)] = 1
    """Dihedral views of a patch, each with prompts of its own, whose probabilities are averaged; as many times the work
    of SAM."""
    cam_weight: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight of the class activation map in the mean with SAM's probability, which has 1; the map is scaled so that its
    threshold becomes 0.5."""
    components: Literal["all", "touching_cam"] = "all"
    """Connected components of a mask that stay: all, or those that the CAM mask touches, from which prompts came."""
    min_region_px: Count = 0
    """Components and holes of fewer patch pixels are removed and filled; 0 leaves masks as decoded. Slides have
    inference.min_focus_um2 for this."""


class Finetune(Section):
    """Fine-tuning of SAM's mask decoder, the same in every round (docs/METHOD.md, section 4)."""

    lr: Rate = 5e-6
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay."""
    batch: Positive = 4
    """Patches per step of the optimiser."""
    epochs: Positive = 20
    """Passes over the training patches, at most."""
    early_stop: Positive = 10
    """Epochs without improvement after which the training ends."""
    smooth: Rate = 1e-3
    """Smoothing term of the Dice loss."""
    prompts_from: Literal["mask", "cam"] = "mask"
    """Where training prompts come from: uniform in the pseudo mask, or by the CAM as in evaluation."""
    points: Literal["all", "some"] = "all"
    """Points of a training prompt: always `prompts.points`, or a random number up to it, 1 at least, so that the
    decoder learns to find tissue like that at a point, not only what is between points."""
    normal_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Weight of normal patches, which the decoder learns to leave empty: that of their cross-entropy beside the losses of
    patches with tumour. As many normal patches take part as there are with tumour, if there are; 0, as published: none."""
    select_on: Literal["pseudo", "val_masks"] = "pseudo"
    """What the best epoch is chosen by: pseudo masks of the val split, or its true masks."""
    seed: int = 21
    """Seed of order, views and prompts."""


class Retrain(Section):
    """Pseudo-labels and the rounds trained on them."""

    rounds: Count = 3
    """Rounds after round 0."""
    use: Literal["last", "agreement"] = "last"
    """Which round's decoder predicts: the last one, as published, or the last whose masks of val patches agree with the CAM
    masks nearly as well as round 0's do (their mean Dice is at most 0.01 lower)."""
    ids: Share = 0.9
    """Least share of SAM's mask inside the CAM mask for a pseudo-label to be kept."""


class Student(Section):
    """The student: a segmentation network on the classifier's trunk, trained on what the last round predicts."""

    enabled: bool = True
    """Whether a student is trained."""
    labels: Literal["rounds", "cam"] = "rounds"
    """What it learns from: what the last round predicts, or the CAM masks: on real tissue a small SAM adds nothing to them."""
    left_out: tuple[Share, Share] | None = None
    """With `labels: cam`: pixels whose map lies between these two values, scaled so that its threshold is at 0.5, are left
    out of the loss: along the border of a CAM mask nobody knows. null takes every pixel as the mask has it."""
    normal_weight: Rate = 1.0
    """Weight of a normal patch in the loss, where one with tumour has 1: more marks less of normal tissue."""
    lr: Rate = 1e-3
    """Highest learning rate of the decoder, which starts at random; the rate rises and falls once in the training."""
    trunk_lr: Rate = 1e-4
    """The same of the trunk, which starts as the trained classifier."""
    batch: Positive = 16
    """Patches per step of the optimiser."""
    epochs: Positive = 10
    """Passes over the training patches."""
    early_stop: Positive = 5
    """Epochs without improvement after which the training ends."""
    seed: int = 23
    """Seed of initial weights, order and augmentation."""

    @model_validator(mode="after")
    def _check(self):
        if self.left_out and not self.left_out[0] <= 0.5 <= self.left_out[1]:
            raise ValueError("left_out is a range around 0.5, where maps are cut, such as [0.35, 0.62]")
        if self.left_out and self.labels != "cam":
            raise ValueError("left_out is about maps: it needs labels: cam")
        return self


class Evaluate(Section):
    """The table on the test split (docs/METHOD.md, section 6)."""

    bootstrap: Count = 1000
    """Resamples behind the 95% intervals."""
    supervised: bool = False
    """Also train a decoder on the true masks of the train split: the upper bound."""
    slides: bool = False
    """Also predict the test slides whole, as ./infer.sh does, and compare them with their annotations."""


class Inference(Section):
    """Prediction for whole slides (./infer.sh)."""

    model: Literal["student", "sam"] = "student"
    """What predicts where ./infer.sh is given neither STUDENT_CHECKPOINT nor SAM_DECODER_CHECKPOINT: the student, where
    the run has one, or the classifier and SAM."""
    student_views: Annotated[int, Field(ge=1, le=8)] = 4
    """Dihedral views of a patch whose probabilities the student averages; tiles of slides overlap instead. SAM's are
    `postprocess.views`."""
    overlap: Annotated[float, Field(ge=0, le=0.75)] | None = None
    """Share of a tile's side that it has in common with the next one; null: 0.25 for the student, 0.5, which takes 2.2
    times as many tiles, for SAM."""
    classifier_probability: Share = 0.5
    """Tiles that the classifier gives less than this are taken to hold no tumour; SAM does not see them."""
    map_downsample: Positive = 4
    """Patch pixels per pixel of the probability map, about: a patch becomes a whole number of map pixels."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Probability from which a place counts as tumour."""
    min_focus_um2: Annotated[float, Field(ge=0)] = 625.0
    """Smaller foci are dropped and smaller holes filled: 625 are 25 um on a side. Where a slide's resolution is unknown,
    0.25 um/px is assumed for this."""
    lymph_nodes: bool | None = None
    """Whether the slides are of lymph nodes, whose foci index.html gives the AJCC's classes of size (isolated tumour
    cells, micro- or macrometastasis); null: if they are Camelyon's."""


class Config(Section):
    """All settings of one run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names dataset/<name>, runs/<name>, checkpoints/<name>_*.pth and logging_<name>.txt."""
    profile: Literal["auto", "cpu", "8gb", "12gb", "24gb"] = "auto"
    """Batch sizes for a machine: `auto` takes the largest that its memory holds."""
    workers: Count | None = None
    """Processes that read slides, threads that read patches; null takes the number of cores."""
    init_from: ModelName | UserPath | None = None
    """An earlier model that training starts from: the name of a run, the path of a model file (.epsam), of a folder of
    checkpoints, or FOLDER/NAME. The classifier starts from its classifier (instead of `classifier.init`), each round from
    its decoder (instead of SAM's own), the student from its student, if it has one. Backbone and SAM must be the same."""
    slides: Slides = Slides()
    patches: Patches = Patches()
    classifier: Classifier = Classifier()
    cam: Cam = Cam()
    prompts: Prompts = Prompts()
    sam: Sam = Sam()
    postprocess: Postprocess = Postprocess()
    finetune: Finetune = Finetune()
    retrain: Retrain = Retrain()
    student: Student = Student()
    evaluate: Evaluate = Evaluate()
    inference: Inference = Inference()

    @property
    def worker_count(self) -> int:
        """Worker processes: `workers`, or the cores this process may use, 16 at most."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers if self.workers is not None else min(cores, 16)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name in {"inference"}:
            raise ValueError("this name is taken by the log of ./infer.sh; choose another")
        return name

    @model_validator(mode="after")
    def _check(self):
        for section in ("patches", "classifier"):
            low, high = getattr(self, section).positive_share
            if low >= high:
                raise ValueError(f"{section}.positive_share must rise, not {low} to {high}")
        if self.postprocess.views > self.sam.views:
            raise ValueError(
                f"postprocess.views is {self.postprocess.views}, but sam.views keeps {self.sam.views} views of each "
                "training patch; lower the one or raise the other"
            )
        if self.classifier.backbone != "resnet" and self.cam.layer != "layer4":
            raise ValueError(
                f"classifier.backbone: {self.classifier.backbone} has maps after its last layer alone; set "
                "cam.layer: layer4"
            )
        return self
