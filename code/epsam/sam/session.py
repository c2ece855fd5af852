"""What the SAM stages share: the model, and the examples and embeddings of each split."""

from epsam.config.schema import Config
from epsam.models.initial import initial_model
from epsam.runtime.device import Hardware
from epsam.runtime.model_file import WeightsSource
from epsam.sam.checkpoint import decoder_weights, load_decoder, load_sam
from epsam.sam.embeddings import Embeddings, encoded_patches, open_embeddings
from epsam.sam.samples import Example, examples_of
from epsam.workspace import Workspace


class SamSession:
    """SAM, and the patches of the splits that it works on, opened when first asked for."""

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
        """Positive patches of a split with their CAMs, without targets."""
        return [example for example in self._all_examples(split) if example.patch.label == 1]

    def normal_examples(self, split: str) -> list[Example]:
        """Normal patches of a split that the decoder learns to leave empty, with their CAMs; none as published."""
        return [example for example in self._all_examples(split) if example.patch.label == 0]

    def _all_examples(self, split: str) -> list[Example]:
        if split not in self._examples:
            patches = encoded_patches(self.config, self.workspace, split)
            self._examples[split] = examples_of(self.workspace, split, patches)
        return self._examples[split]

    def embeddings(self, split: str) -> Embeddings:
        """Embeddings of a split, at the positions that its examples have."""
        if split not in self._embeddings:
            self._embeddings[split] = open_embeddings(self.config, self.workspace, self.hardware, self.sam, split)
        return self._embeddings[split]
