"""What the SAM stages share: the model, and the examples and embeddings of each split."""

from epsam.config.schema import Config
from epsam.models.initial import initial_model
from epsam.patches.patch import patches_for_sam
from epsam.runtime.device import Hardware
from epsam.runtime.model_file import WeightsSource
from epsam.sam.checkpoint import decoder_weights, load_decoder, load_sam
from epsam.sam.embeddings import Embeddings, open_embeddings
from epsam.sam.samples import Example, examples_of
from epsam.workspace import Workspace


class SamSession:
    """SAM, and the positive patches of the splits, opened when first asked for."""

    def __init__(self, config: Config, workspace: Workspace, hardware: Hardware):
        self.config, self.workspace, self.hardware = config, workspace, hardware
        self.sam = load_sam(config.sam.model_type, config.sam.checkpoint, workspace.checkpoints, hardware.device)
        self._original = decoder_weights(self.sam)
        self._examples: dict[str, list[Example]] = {}
        self._embeddings: dict[str, Embeddings] = {}

    def use_initial_decoder(self) -> None:
        """Put into `sam` what a training starts from: the decoder of `init_from`, or the original one."""
        initial = initial_model(self.config, self.workspace)
        self.use_decoder(initial.decoder if initial else None)

    def use_decoder(self, path: WeightsSource | None) -> None:
        """Put the decoder of a file into `sam`; None: the original one."""
        if path is None:
            self.sam.load_state_dict(self._original, strict=False)
        else:
            load_decoder(self.sam, path)

    def examples(self, split: str) -> list[Example]:
        """Patches of a split with their CAMs, without targets."""
        if split not in self._examples:
            self._examples[split] = examples_of(self.workspace, split, patches_for_sam(self.workspace, split))
        return self._examples[split]

    def embeddings(self, split: str) -> Embeddings:
        """Embeddings of a split, in the order of its examples."""
        if split not in self._embeddings:
            self._embeddings[split] = open_embeddings(self.config, self.workspace, self.hardware, self.sam, split)
        return self._embeddings[split]
