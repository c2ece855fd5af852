"""A GPU that is only pretended: real values and gradients in the CPU's memory, behind a device of its own.

`register()` gives PyTorch's device type for other vendors ("privateuse1") a device that computes as a CUDA device does
where code can notice it: it refuses tensors of two devices in one operator, does not become NumPy, and its autocast has
CUDA's lists of operators.
What it cannot show: kernels that a GPU lacks, its rounding, its memory, its speed.

Registering cannot be undone, and PyTorch counts devices once; a process that registers does nothing else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

TYPE = "pretended_gpu"
CPU = torch.device("cpu")
aten = torch.ops.aten

LOW_PRECISION = (
    *("_convolution", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input", "convolution"),
    *("prelu", "addmm", "addmv", "addr", "matmul", "einsum", "mm", "mv", "linear", "addbmm", "baddbmm", "bmm"),
    *("linalg_vecdot", "chain_matmul", "linalg_multi_dot", "scaled_dot_product_attention"),
)
"""Operators that CUDA's autocast gives low precision (ATen/autocast_mode.h), as far as PyTorch has them on a CPU."""
FLOAT32 = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh"),
    *("tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm"),
    *("group_norm", "cosine_similarity", "nll_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss"),
    *("binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp", "upsample_nearest2d"),
    *("upsample_bilinear2d", "upsample_bicubic2d"),
)
"""Those that it gives float32."""
FLOAT32_RESULT = (
    *("prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm"),
    *("sum", "sum.dim_IntList"),
)
"""Those that it lets compute in float32 whatever their input."""
WIDEST = ("addcdiv", "addcmul", "atan2", "bilinear", "dot", "grid_sampler", "index_put", "scatter_add")
"""Those that it gives the widest type among their inputs."""

COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
"""These take indices from the CPU beside a tensor of the GPU."""


class GpuTensor(torch.Tensor):
    """A tensor of the pretended GPU; `held` has its values."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "GpuTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(TYPE, 0),
        )

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # In inference mode composed operators, such as `to`, come as they are.
        parts = func.decompose(*args, **(kwargs or {}))
        return _run(func, args, kwargs or {}) if parts is NotImplemented else parts

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.held!r})"

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.held.detach().__reduce_ex__(protocol)


def register() -> None:
    """Make the device known to PyTorch, for the rest of this process."""
    backend_registration._setup_privateuseone_for_python_backend(TYPE, _Module())
    everything = _library("_")
    everything.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    operators = _library("aten")
    operators.impl("_copy_from", _copy_from, "PrivateUse1")
    for names, policy in (
        (LOW_PRECISION, _low_precision),
        (FLOAT32, _float32),
        (FLOAT32_RESULT, _float32_result),
        (WIDEST, _widest),
    ):
        for name in names:
            operators.impl(name, _autocast(_operator(name), policy), "AutocastPrivateUse1")


class _Module(backend_registration._DummyBackendModule):
    """What torch.<device> offers."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)


_libraries: list[torch.library.Library] = []


def _library(namespace: str) -> torch.library.Library:
    """A library that lives as long as the process: its kernels go with it."""
    _libraries.append(torch.library.Library(namespace, "IMPL"))
    return _libraries[-1]


def _operator(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Compute an operator on the CPU; its tensors are the GPU's if one of its inputs is, or if `device` says so."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
    device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    held_args, held_kwargs = pytree.tree_map(_held, (args, kwargs))
    if device is not None:
        held_kwargs["device"] = CPU
    held_kwargs.pop("pin_memory", None)
    if func not in COPIES:
        _check_one_device(func, args, tensors, ours)
    result = func(*held_args, **held_kwargs)
    to_gpu = device.type == TYPE if device is not None else bool(ours)
    given = {id(tensor.held): tensor for tensor in ours} | {id(t): t for t in tensors if not isinstance(t, GpuTensor)}

    def wrap(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return given[id(value)] if id(value) in given else GpuTensor(value) if to_gpu else value

    if not (ours and any(returned.alias_info for returned in func._schema.returns)):
        return pytree.tree_map(wrap, result)
    with torch.inference_mode(ours[0].is_inference()):  # a view is made for inference only if what it views was
        return pytree.tree_map(wrap, result)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    """What torch.tensor and indexing by lists copy with; no other operator reaches the fallback with tensors of ours."""
    _held(target).copy_(_held(source))
    return target


def _held(value: Any) -> Any:
    return value.held if isinstance(value, GpuTensor) else value


def _check_one_device(func: Any, args: tuple, tensors: list[torch.Tensor], ours: list[GpuTensor]) -> None:
    """Raise as CUDA does for tensors of two devices; a single number of the CPU may enter pointwise operators."""
    if func in INDEXING:
        wrong = ours and not isinstance(args[0], GpuTensor)
    else:
        others = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor)]
        wrong = ours and any(tensor.dim() or torch.Tag.pointwise not in func.tags for tensor in others)
    if wrong:
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {found}")


def _autocast(operator: Callable[..., Any], policy: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return policy(operator, args, kwargs)

    return kernel


def _low_precision(operator: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return _with_type(operator, args, kwargs, torch.get_autocast_dtype(TYPE))


def _float32(operator: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    return _with_type(operator, args, kwargs, torch.float32)


def _float32_result(operator: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    if _is_cast(args[0]) and kwargs.get("dtype") is None and torch.finfo(args[0].dtype).bits < 32:
        kwargs = kwargs | {"dtype": torch.float32}
    return operator(*args, **kwargs)


def _widest(operator: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    types = {leaf.dtype for leaf in pytree.tree_leaves((args, kwargs)) if _is_cast(leaf)}
    wide = torch.float32 if torch.float32 in types else torch.get_autocast_dtype(TYPE)
    return _with_type(operator, args, kwargs, wide)


def _with_type(operator: Callable[..., Any], args: tuple, kwargs: dict, dtype: torch.dtype) -> Any:
    args, kwargs = pytree.tree_map(lambda leaf: leaf.to(dtype) if _is_cast(leaf) else leaf, (args, kwargs))
    return operator(*args, **kwargs)


def _is_cast(value: Any) -> bool:
    """Whether autocast changes the type of a value: it leaves whole numbers, float64 and other devices alone."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.device.type == TYPE
        and value.dtype != torch.float64
    )
