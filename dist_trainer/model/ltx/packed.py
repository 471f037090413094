"""The packed forward of diffusers' LTXVideoTransformer3DModel: many samples end to end, no padding, no mask.

Only `forward` of the model, its blocks and its attentions is replaced, on the instance: modules, weights and
state_dict keys stay, every parameter is still touched inside the forward of the module that owns it, and
every module is still called as `module(...)` with tensors in positional arguments, so ZeRO-3's hooks see all
of them.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dist_trainer.model.attention import Lengths, attend


def install(model: Any) -> None:
    """Put the packed forward onto a LTXVideoTransformer3DModel, in place. From then on the model is called as

    `model(tokens, text, timesteps, timestep_index, coords, lengths, text_lengths) -> prediction`

    `tokens` [N,Cin]; `text` [M,Dtext], real tokens only; `timesteps` int64 [U], the distinct ones of the
    pack; `timestep_index` int64 [N] into them; `coords` float32 [3,N] (seconds, pixels, pixels); `lengths`
    and `text_lengths` say where the S samples end. Returns the velocity [N,Cout]. Equals the unmodified
    forward run on each sample alone, text padding masked. Activation checkpointing follows
    `model.enable_gradient_checkpointing()`.
    """
    model.forward = MethodType(_model_forward, model)
    for block in model.transformer_blocks:
        block.forward = MethodType(_block_forward, block)
        for attention in (block.attn1, block.attn2):
            attention.forward = MethodType(_attention_forward, attention)


def _model_forward(
    self: Any,
    tokens: Tensor,
    text: Tensor,
    timesteps: Tensor,
    timestep_index: Tensor,
    coords: Tensor,
    lengths: Lengths,
    text_lengths: Lengths,
) -> Tensor:
    _check_sizes(tokens, text, timestep_index, coords, lengths, text_lengths)
    cos, sin = self.rope(tokens[None], video_coords=coords[None])
    # Both channels of a rotated pair share one angle, so half of diffusers' two [N,D] float32 tables is enough.
    rotation = torch.complex(cos[0, :, ::2], sin[0, :, ::2])

    hidden = self.proj_in(tokens)
    time, embedded = self.time_embed(timesteps, hidden_dtype=hidden.dtype)
    text = self.caption_projection(text)

    for block in self.transformer_blocks:
        inputs = (hidden, text, time, timestep_index, rotation, lengths, text_lengths)
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            hidden = self._gradient_checkpointing_func(block, *inputs)
        else:
            hidden = block(*inputs)

    shift, scale = (self.scale_shift_table + embedded[:, None]).unbind(1)
    hidden = _modulate(self.norm_out(hidden), timestep_index, scale, shift)
    return self.proj_out(hidden)


def _block_forward(
    self: Any,
    hidden: Tensor,
    text: Tensor,
    time: Tensor,
    timestep_index: Tensor,
    rotation: Tensor,
    lengths: Lengths,
    text_lengths: Lengths,
) -> Tensor:
    # [U,6,D]: a handful of rows; each of the six is spread over the N tokens only where it is used.
    table = self.scale_shift_table + time.unflatten(-1, self.scale_shift_table.shape)
    shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = table.unbind(1)

    normed = _modulate(self.norm1(hidden), timestep_index, scale_attn, shift_attn)
    hidden = hidden + self.attn1(normed, normed, rotation, lengths, lengths) * F.embedding(
        timestep_index, gate_attn
    )
    hidden = hidden + self.attn2(hidden, text, None, lengths, text_lengths)
    normed = _modulate(self.norm2(hidden), timestep_index, scale_ff, shift_ff)
    return hidden + self.ff(normed) * F.embedding(timestep_index, gate_ff)


def _attention_forward(
    self: Any,
    hidden: Tensor,
    context: Tensor,
    rotation: Tensor | None,
    lengths: Lengths,
    context_lengths: Lengths,
) -> Tensor:
    query = self.norm_q(self.to_q(hidden))
    key = self.norm_k(self.to_k(context))
    value = self.to_v(context)
    if rotation is not None:
        query, key = _rotate(query, rotation), _rotate(key, rotation)
    query, key, value = (x.unflatten(-1, (self.heads, -1)) for x in (query, key, value))
    attended = attend(query, key, value, lengths, context_lengths)
    return self.to_out[1](self.to_out[0](attended.flatten(-2)))


def _modulate(x: Tensor, timestep_index: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`x * (1 + scale) + shift` with `x` [N,D] and the rows of `scale`, `shift` [U,D] looked up per token."""
    return x * F.embedding(timestep_index, 1 + scale) + F.embedding(timestep_index, shift)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighbouring channels of `x` [N,D] in float32 by the unit numbers of `rotation` complex64 [N,D/2]."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def _check_sizes(
    tokens: Tensor, text: Tensor, index: Tensor, coords: Tensor, lengths: Lengths, text_lengths: Lengths
) -> None:
    """Wrong lengths would read past a sample's end inside the flash kernel, silently: refuse them on the
    host.
    """
    sizes = (tokens.shape[0], index.shape[0], coords.shape[-1])
    if sizes != (lengths.total,) * 3 or text.shape[0] != text_lengths.total:
        raise ValueError(
            f"the pack's parts disagree: tokens, timestep_index, coords have {sizes} rows, lengths say"
            f" {lengths.total}; text has {text.shape[0]} rows, text_lengths say {text_lengths.total}"
        )
    if len(lengths.values) != len(text_lengths.values):
        raise ValueError(f"{len(lengths.values)} samples but {len(text_lengths.values)} texts")
