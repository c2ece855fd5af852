"""SAM's encoder attention without the whole matrix of scores.

segment_anything writes the scores of all pairs of positions (4096 x 4096 a head for its three sizes) several times over.
Here the relative positions (eq. 4 of MViTv2, arXiv:2112.01526) enter one of two ways, and the scores of a few queries at
a time, or none, are kept:

folded   query [q s, q Rh, q Rw] and key [k, row one-hot, column one-hot], whose product is s q k + q Rh + q Rw
added    to the product of each block of queries with all keys
"""

from types import MethodType

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn import functional

from epsam.runtime.device import cpu_flags

MAX_SCORES = 2**21
"""Of one block on the CPU: 4 MiB in bfloat16, which stays in its cache."""

MANY_POSITIONS = 1024


def speed_up(encoder: ImageEncoderViT) -> None:
    """Replace the attention of each block of `encoder`, in place; classes and state dict stay segment_anything's."""
    # The patches' embeddings come with channels first in memory, and every layer norm and sum after it would go across it.
    encoder.patch_embed.register_forward_hook(_contiguous)
    for module in encoder.modules():
        if isinstance(module, Attention) and module.use_rel_pos:
            module.forward = MethodType(attend, module)


def _contiguous(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.contiguous()


def attend(module: Attention, x: torch.Tensor, in_blocks: bool | None = None) -> torch.Tensor:
    """What `module.forward` gives for x (B, H, W, C), but for rounding.

    `in_blocks` False: scaled_dot_product_attention, whose kernels keep no scores; True: blocks of queries; None: whichever
    is faster. That is blocks on most CPUs, where the kernel takes three times as long in bfloat16; with AMX it takes six
    tenths of their time for all 4096 positions, and a little more for windows.
    """
    batch, height, width, _ = x.shape
    query, key, value = _queries_keys_values(module, x).unbind(0)
    if in_blocks is None:
        has_kernel = "amx_bf16" in cpu_flags() and query.dtype == torch.bfloat16 and height * width >= MANY_POSITIONS
        in_blocks = x.device.type == "cpu" and not has_kernel
    rows, columns = _relative_positions(module, query, height, width)
    if in_blocks and height + width > query.shape[-1]:  # folding would more than double the product
        output = _in_blocks(query * module.scale, key, value, (rows, columns))
    else:
        query = torch.cat([query * module.scale, rows, columns], -1)
        key = torch.cat([key, _one_hot(height, width, key).expand(len(key), -1, -1)], -1)
        output = _in_blocks(query, key, value) if in_blocks else _at_once(query, key, value, module.num_heads)
    output = output.unflatten(0, (batch, module.num_heads)).transpose(1, 2)
    return module.proj(output.reshape(batch, height, width, -1))


def _queries_keys_values(module: Attention, x: torch.Tensor) -> torch.Tensor:
    """Queries, keys and values (3, B * heads, H * W, width of a head) of x (B, H, W, C)."""
    batch, height, width, _ = x.shape
    qkv = module.qkv(x).reshape(batch, height * width, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
    return qkv.contiguous().flatten(1, 2)  # every block would copy what it takes of the keys


def _relative_positions(
    module: Attention, query: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each query adds to the scores of each row (N, H * W, H) and of each column (N, H * W, W)."""
    grid = query.unflatten(1, (height, width))
    rows = torch.einsum("nhwc,hkc->nhwk", grid, get_rel_pos(height, height, module.rel_pos_h))
    columns = torch.einsum("nhwc,wkc->nhwk", grid, get_rel_pos(width, width, module.rel_pos_w))
    return rows.flatten(1, 2), columns.flatten(1, 2)


def _one_hot(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Row and column of each position, (H * W, H + W)."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).repeat(height, 1)
    return torch.cat([rows, columns], -1)


def _at_once(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Folded attention; the value is padded, since the kernels that keep no scores want three tensors of one width."""
    padded = functional.pad(value, (0, key.shape[-1] - value.shape[-1]))
    query, key, padded = (tensor.unflatten(0, (-1, heads)) for tensor in (query, key, padded))
    output = functional.scaled_dot_product_attention(query, key, padded, scale=1.0)
    return output[..., : value.shape[-1]].flatten(0, 1)


def _in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    positions: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attention of scaled queries (N, L, C), with `positions` added: so many queries or heads a time as MAX_SCORES allow."""
    count, length, _ = query.shape
    queries = max(1, min(length, MAX_SCORES // length))
    heads = max(1, MAX_SCORES // (length * queries))
    keys = key.transpose(1, 2)
    blocks = []
    for head in range(0, count, heads):
        some = slice(head, head + heads)
        parts = []
        for start in range(0, length, queries):
            block = some, slice(start, start + queries)
            if positions is None:
                scores = query[block] @ keys[some]
            else:
                rows, columns = (part[block] for part in positions)
                added = (rows[..., :, None] + columns[..., None, :]).flatten(2)
                scores = torch.baddbmm(added, query[block], keys[some])
            parts.append(scores.softmax(-1) @ value[some])
        blocks.append(torch.cat(parts, 1))
    return torch.cat(blocks)
