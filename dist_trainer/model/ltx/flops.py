"""How many floating-point operations a training step needs, told from a transformer's config. Imports without torch.

A multiply-add counts as two. Counted are matrix products: the linear maps, and attention's scores and sums over values.
Left out is what is small beside them: norms, rotations, modulation, activations, the optimizer, and the embedding of a
pack's few timesteps. For a model of width d, L tokens and T text tokens, a layer's forward pass is

    self-attention     8 d^2 L (query, key, value, output)   +  4 d L^2
    cross-attention    4 d^2 L (query, output)  +  4 d^2 T (key, value)   +  4 d L T
    feed-forward      16 d^2 L

The backward pass takes a product for the gradient of each input and one for that of each weight, so twice the forward
pass where all weights are trained. A frozen map needs the first only; attention has no weights and needs both of its
own. Nothing needs the gradient of the latents and of the text embeddings. What gradient checkpointing computes again is
no work that training needs, and is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dist_trainer.model.flops import Flops

_FEED_FORWARD = 4  # its inner width over the model's
_TEXT_SIDE = (".attn2.to_k.", ".attn2.to_v.", "caption_projection.")
_ONCE = ("time_embed.",)  # seen by a pack's timesteps, not by its tokens


def forward(config: Mapping[str, Any], adapters: Mapping[str, Sequence[int]] | None = None) -> Flops:
    """One forward pass of an LTXVideoTransformer3DModel, with its adapters where it has some, as in `training`."""
    width, layers = _width(config), int(config["num_layers"])
    ends = 2 * width * (int(config["in_channels"]) + int(config["out_channels"] or config["in_channels"]))
    per_layer = 2 * width**2 * (4 + 2 + 2 * _FEED_FORWARD)
    captions = 2 * width * (int(config["caption_channels"]) + width)
    token, text = _adapters(adapters or {}, backward=False)
    return Flops(
        token=ends + layers * per_layer + token,
        text=captions + layers * 4 * int(config["cross_attention_dim"]) * width + text,
        pair=4 * width * layers,
        cross=4 * width * layers,
    )


def training(config: Mapping[str, Any], adapters: Mapping[str, Sequence[int]] | None) -> Flops:
    """Forward and backward pass. `adapters`: shapes of the low-rank matrices on a frozen model; None: all is trained.

    Adapters are taken to lie in the blocks, the first block's query, key and value among them or before them.
    """
    once, width = forward(config), _width(config)
    latents = 2 * width * int(config["in_channels"])
    if adapters is None:
        embeds = 2 * width * int(config["caption_channels"])
        return Flops(3 * once.token - latents, 3 * once.text - embeds, 3 * once.pair, 3 * once.cross)
    token, text = _adapters(adapters, backward=True)
    first_block = 2 * width**2 * 3
    return Flops(
        token=2 * once.token - latents - first_block + token,
        text=once.text + text,
        pair=3 * once.pair,
        cross=3 * once.cross,
    )


def _adapters(shapes: Mapping[str, Sequence[int]], backward: bool) -> tuple[float, float]:
    """FLOPs of adapters for each token and for each text token, forward, and `backward` too."""
    token = text = 0.0
    for name, (rows, columns) in shapes.items():
        if name.startswith(_ONCE):
            continue
        if any(side in name for side in _TEXT_SIDE):
            # The text itself needs no gradient: lora_A gives one to its weights only.
            text += (1 + backward * (1 if ".lora_A." in name else 2)) * 2 * rows * columns
        else:
            token += (1 + backward * 2) * 2 * rows * columns
    return token, text


def _width(config: Mapping[str, Any]) -> int:
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])
