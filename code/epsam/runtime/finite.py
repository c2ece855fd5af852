"""Values that are not finite (NaN, infinite) are refused where they come up: further on they look like "no tumour"."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from epsam.errors import DataError


def first_non_finite(weights: Mapping) -> str | None:
    """Name of the first tensor, in nested dictionaries too (`a.b`), that holds NaN or infinity; None where all are finite.

    Tensors of integers, such as the counters of batch normalisation, cannot hold either.
    """
    for name, value in weights.items():
        if isinstance(value, Mapping):
            if (inner := first_non_finite(value)) is not None:
                return f"{name}.{inner}"
        elif isinstance(value, torch.Tensor) and not torch.isfinite(value).all():
            return str(name)
    return None


def check_finite(values: np.ndarray | torch.Tensor, names: Sequence[str], what: str) -> None:
    """Raise DataError with the name of the first of `values` (N, ...) that is not finite throughout.

    `what` says in the plural what the values are, e.g. "the classifier's logits".
    """
    finite = torch.isfinite(torch.as_tensor(values)).reshape(len(names), -1).all(1).cpu().numpy()
    if not finite.all():
        raise DataError(
            f"{names[int(np.argmin(finite))]}: {what} are not finite (NaN or infinite), for "
            f"{int((~finite).sum())} of {len(names)} patches of its batch. Try profile=cpu, which computes in "
            "float32; if that changes nothing, the weights are damaged: train again or copy them again"
        )
