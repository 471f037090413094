"""A training step (forward and backward) of our packs beside the unmodified diffusers transformer.

    python -m tests.bench.bench_step --layers 4 --width 256 --samples 8

One step's samples of mixed sizes, the same weights, noise and noise levels for every method; before anything is
timed, loss and gradient of all methods but the padded batch are checked against each other. A GPU runs in
bfloat16; sizes of the 2B model there: --layers 28 --width 2048 --text-width 4096 --stretch 8 --checkpointing.
The second table is that of bench_host.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from diffusers import LTXVideoTransformer3DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dist_trainer.feed import flow
from dist_trainer.feed.collate import Pack, collate, draws
from dist_trainer.feed.conditioning import Recipe, build
from dist_trainer.model import ltx
from dist_trainer.model.loss import loss_weights, sample_sums
from shards.formats.sample import Sample
from shards.geometry import Patch, Scale
from shards.pack import costs, pack
from tests.bench.bench_host import host_table, make_samples

# Latent frames, height, width: 60 to 1496 tokens, an image among them.
GRIDS = (
    (4, 10, 14), (1, 10, 6), (11, 8, 17), (3, 6, 10), (7, 10, 14), (1, 20, 20), (6, 8, 8), (9, 9, 12),
)  # fmt: skip
STORED_TEXT = 256  # what the predecessor pads every caption to
HEAD = 64
CHANNELS = 128
BATCH = 4
# Relative, of loss and gradient.
TOLERANCE = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (1e-2, 5e-2)}
Losses = Callable[[], Tensor]


class Example(NamedTuple):
    """One sample as the unmodified model takes it, with its share of the step's loss."""

    tokens: Tensor  # [L,Cin]
    text: Tensor  # [T,Dtext]
    places: Tensor  # float32 [L,3], coordinates
    timesteps: Tensor  # int64 [L], or [1] where all tokens have the same
    target: Tensor  # float32 [L,Cin]
    weights: Tensor  # float32 [L,1], of each squared error; 0 on clean tokens


class Batch(NamedTuple):
    """B examples, everything padded to the longest."""

    inputs: dict[str, Tensor]  # of the unmodified model
    target: Tensor  # float32 [B,L,Cin]
    weights: Tensor  # float32 [B,L,1]


@dataclass(frozen=True)
class Method:
    """`passes`: the step's forwards, each returning its part of the step's loss, run one after the other."""

    name: str
    model: torch.nn.Module
    passes: Sequence[Losses]
    tokens: int  # video tokens computed, padding included
    exact: bool = True


@dataclass(frozen=True)
class Step:
    """A step's samples with their draws and loss weights."""

    samples: list[Sample]
    draws: list[flow.Draw]
    recipe: Recipe
    weights: list[float]
    device: torch.device
    dtype: torch.dtype

    @property
    def tokens(self) -> list[int]:
        return [int(np.prod(sample.latents.shape[1:])) for sample in self.samples]


def make_step(given: argparse.Namespace, device: torch.device) -> Step:
    cycled = [GRIDS[n % len(GRIDS)] for n in range(given.samples)]
    grids = [(f if f == 1 else f * given.stretch, h, w) for f, h, w in cycled]
    samples = make_samples(grids, CHANNELS, given.text_width)
    recipe = Recipe(Scale(8, 32), Patch(), first_frame_p=0.1)
    drawn = draws(samples, [0] * len(samples), recipe)
    elements = [
        build(sample, draw, recipe).target.numel() for sample, draw in zip(samples, drawn, strict=True)
    ]
    weights = [float(weight) for weight in loss_weights(elements, "sample")]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Step(samples, drawn, recipe, weights, device, dtype)


def make_model(given: argparse.Namespace, step: Step) -> LTXVideoTransformer3DModel:
    torch.manual_seed(0)
    with step.device:
        model = LTXVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=given.width // HEAD,
            attention_head_dim=HEAD,
            cross_attention_dim=given.width,
            num_layers=given.layers,
            caption_channels=given.text_width,
        )
    torch.nn.Module.to(model, step.dtype)  # diffusers' own warns about modules this model does not have
    if given.checkpointing:
        model.enable_gradient_checkpointing()
    return model


def packed(model: torch.nn.Module, step: Step, cap: int) -> Method:
    tokens = np.array(step.tokens)
    layout = pack(tokens, costs(tokens, 0.0), 1, cap)
    packs = []
    for (positions,) in layout.packs:
        chosen = [int(position) for position in positions]
        samples, drawn = [step.samples[n] for n in chosen], [step.draws[n] for n in chosen]
        made = collate(samples, drawn, step.recipe, chosen, [step.weights[n] for n in chosen])
        packs.append(made.to(step.device, step.dtype))

    def loss(one: Pack) -> Tensor:
        sums = sample_sums(model(*one.inputs()), one)
        return (sums * one.weights).sum()

    name = f"ours, {len(packs)} packs, cap {cap}"
    return Method(name, model, [partial(loss, one) for one in packs], int(tokens.sum()))


def diffusers(
    name: str, model: Any, step: Step, batch: int = 1, text: int = 0, per_token: bool = True
) -> Method:
    """The unmodified model, `batch` samples at a time in the order of the step, padded to the longest.

    `text`: tokens every caption is padded to (0: to the longest). `per_token`: a timestep for every token, as the
    predecessor gives it, even where all of a sample's have the same; otherwise one ("one t") for such a sample.
    """
    examples = [_example(step, n, per_token) for n in range(len(step.samples))]
    groups = [examples[first : first + batch] for first in range(0, len(examples), batch)]
    batches = [_batch(group, text, step) for group in groups]

    def loss(one: Batch) -> Tensor:
        predicted = model(**one.inputs, return_dict=False)[0]
        return ((predicted.float() - one.target).square() * one.weights).sum()

    computed = sum(one.weights.numel() for one in batches)
    return Method(name, model, [partial(loss, one) for one in batches], computed, exact=batch == 1)


def _example(step: Step, n: int, per_token: bool) -> Example:
    sample, made = step.samples[n], build(step.samples[n], step.draws[n], step.recipe)
    timesteps = torch.full((len(made.tokens),), made.timestep)
    timesteps[: made.clean] = 0
    weights = torch.full((len(made.tokens), 1), step.weights[n])
    weights[: made.clean] = 0
    target = torch.cat([torch.zeros(made.clean, made.target.shape[1]), made.target])
    shared = not per_token and made.clean == 0
    return Example(
        made.tokens,
        sample.prompt_embeds,
        made.coords.T,
        timesteps[:1] if shared else timesteps,
        target,
        weights,
    )


def _batch(examples: list[Example], text: int, step: Step) -> Batch:
    longest = max([text] + [len(example.text) for example in examples])
    padded = torch.zeros(len(examples), longest, examples[0].text.shape[1])
    for row, example in zip(padded, examples, strict=True):
        row[: len(example.text)] = example.text
    mask = torch.arange(longest) < torch.tensor([[len(example.text)] for example in examples])

    def rows(field: str) -> Tensor:
        values = [getattr(example, field) for example in examples]
        return pad_sequence(values, batch_first=True).to(step.device)

    inputs = {
        "hidden_states": rows("tokens").to(step.dtype),
        "encoder_hidden_states": padded.to(step.device, step.dtype),
        "encoder_attention_mask": mask.to(step.device),
        "timestep": rows("timesteps"),
        "video_coords": rows("places").transpose(1, 2).contiguous(),
    }
    return Batch(inputs, rows("target"), rows("weights"))


def run_step(method: Method) -> float:
    """Forward and backward of a step; gradients add up in the parameters. Returns the loss, so the device is done."""
    losses = []
    for part in method.passes:
        loss = part()
        loss.backward()
        losses.append(loss.detach())
    return float(torch.stack(losses).sum())


def check(methods: Sequence[Method], dtype: torch.dtype) -> None:
    """Raise AssertionError unless the exact methods agree with the first in loss and in gradient. Warms all up."""
    expected_loss, expected = 0.0, torch.empty(0)
    for method in methods:
        method.model.zero_grad(set_to_none=True)
        loss = run_step(method)
        if not method.exact:
            continue
        gradient = torch.cat(
            [p.grad.flatten() for p in method.model.parameters() if p.grad is not None]
        ).float()
        if method is methods[0]:
            expected_loss, expected = loss, gradient
        apart = (
            abs(loss - expected_loss) / expected_loss,
            float((gradient - expected).norm() / expected.norm()),
        )
        assert all(x < bound for x, bound in zip(apart, TOLERANCE[dtype], strict=True)), (
            f"{method.name} and {methods[0].name} differ in loss and gradient by {apart}"
        )


def measure(methods: Sequence[Method], repeats: int) -> dict[str, npt.NDArray[np.float64]]:
    """Wall-clock and CPU seconds of every step: [repeats,2]. The methods take turns, so that whatever else the
    machine does hits all of them.
    """
    seconds: dict[str, list[tuple[float, float]]] = {method.name: [] for method in methods}
    for _ in range(repeats):
        for method in methods:
            method.model.zero_grad(set_to_none=True)
            wall, cpu = time.perf_counter(), time.process_time()
            run_step(method)
            seconds[method.name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: np.array(times) for name, times in seconds.items()}


def kept_bytes(method: Method) -> int:
    """Most bytes that a forward of the step keeps for its backward, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in method.model.parameters()}
    most = 0
    for part in method.passes:
        kept: dict[int, Tensor] = {}  # holds the tensors, so that no address is used twice

        def keep(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            part()
        most = max(most, sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in parameters))
    return most


def step_table(methods: Sequence[Method], step: Step, repeats: int) -> Table:
    useful, samples = sum(step.tokens), len(step.samples)
    seconds = measure(methods, repeats)
    base = seconds[methods[1].name]
    table = Table(
        title=f"One step: {samples} samples, {useful:,} tokens ({min(step.tokens)} to {max(step.tokens)}),"
        f" {step.dtype} on {step.device.type}, {torch.get_num_threads()} threads",
        caption=f"Median of {repeats} turns; speed-ups (by CPU: of CPU time) within a turn. tokens/s: useful ones."
        " kept: most bytes that one forward keeps for its backward. The padded batch also computes, and attends to,"
        " its padding (diffusers has no self-attention mask for LTX): its loss is not that of the others.",
    )
    table.add_column("method")
    for heading in ("s/step", "samples/s", "tokens/s", "pad %", "kept MiB", "speed-up", "CPU s", "by CPU"):
        table.add_column(heading, justify="right")
    for method in methods:
        took, cpu = (float(x) for x in np.median(seconds[method.name], axis=0))
        faster, cheaper = (float(x) for x in np.median(base / seconds[method.name], axis=0))
        cells = (
            f"{took:.2f}",
            f"{samples / took:.2f}",
            f"{useful / took:,.0f}",
            f"{100 * (1 - useful / method.tokens):.0f}",
            f"{kept_bytes(method) / 2**20:,.0f}",
            f"{faster:.2f}",
            f"{cpu:.2f}",
            f"{cheaper:.2f}",
        )
        table.add_row(method.name, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help=f"of the model; a multiple of {HEAD}")
    parser.add_argument("--text-width", type=int, default=512)
    parser.add_argument("--samples", type=int, default=8, help="in the step")
    parser.add_argument("--stretch", type=int, default=1, help="times the latent frames of every clip")
    parser.add_argument(
        "--cap", type=int, default=0, help="most tokens in a pack (0: twice the longest sample)"
    )
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    step = make_step(given, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model = make_model(given, step)
    ours = deepcopy(model)
    ltx.install(ours)
    methods = [
        packed(ours, step, given.cap or 2 * max(step.tokens)),
        diffusers(f"diffusers 1, text {STORED_TEXT}", model, step, text=STORED_TEXT),
        diffusers("diffusers 1, text cut", model, step),
        diffusers("diffusers 1, text cut, one t", model, step, per_token=False),
        diffusers(f"diffusers {BATCH}, padded", model, step, batch=BATCH, text=STORED_TEXT),
    ]
    check(methods, step.dtype)
    console = Console(width=max(116, Console().width))
    console.print(step_table(methods, step, given.repeats))
    console.print(host_table())


if __name__ == "__main__":
    main()
