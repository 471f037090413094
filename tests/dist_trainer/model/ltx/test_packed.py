"""The packed forward against the unmodified diffusers forward, sample by sample."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dist_trainer.feed.conditioning import ReferenceScale, coordinates
from dist_trainer.model import ltx
from dist_trainer.model.attention import Lengths
from shards.geometry import Grid, Patch, Scale
from tests.support.models import small_transformer

CHANNELS, TEXT = 6, 20  # of the small transformer
SCALE, PATCH = Scale(4, 16), Patch()


@dataclass
class Alone:
    """One sample as the unmodified model takes it: a clean part with timestep 0 first, if any."""

    grid: Grid
    text_tokens: int
    timestep: int
    fps: float = 24.0
    clean: int = 0  # leading clean tokens of the target
    references: tuple[Grid, ...] = ()  # each smaller by one factor in height and width, or not at all
    causal: bool = False

    @property
    def coords(self) -> Tensor:
        parts = []
        for grid in (*self.references, self.grid):
            factor = self.grid.height // grid.height
            scale = ReferenceScale(height=factor, width=factor)
            parts.append(coordinates(grid, self.fps, SCALE, PATCH, self.causal, scale))
        return torch.cat(parts, dim=1)

    @property
    def timesteps(self) -> Tensor:
        per_token = torch.full((self.coords.shape[1],), self.timestep)
        per_token[: self.clean + sum(reference.tokens(PATCH) for reference in self.references)] = 0
        return per_token


T2V = Alone(Grid(3, 4, 2), 7, 901)
FIRST_FRAME = Alone(Grid(3, 2, 2), 3, 250, clean=4)
REFERENCE = Alone(Grid(2, 4, 4), 5, 640, references=(Grid(2, 4, 4),))
SMALL_REFERENCE = Alone(Grid(2, 4, 4), 1, 13, clean=16, references=(Grid(2, 2, 2),), causal=True)
TWO_REFERENCES = Alone(Grid(2, 4, 4), 9, 333, clean=16, references=(Grid(2, 2, 2), Grid(2, 4, 4)))
IMAGE = Alone(Grid(1, 3, 5), 11, 901, fps=1.0)
OTHER_FPS = Alone(Grid(5, 2, 3), 2, 1000, fps=29.97)
CAUSAL = Alone(Grid(4, 2, 2), 6, 77, fps=30.0, causal=True)

PACKS = {
    "one": [T2V],
    "first_frame": [FIRST_FRAME],
    "reference": [REFERENCE],
    "smaller_reference": [SMALL_REFERENCE],
    "two_references": [TWO_REFERENCES],
    "image": [IMAGE],
    "mixed": [T2V, FIRST_FRAME, IMAGE, REFERENCE, OTHER_FPS, SMALL_REFERENCE, CAUSAL, TWO_REFERENCES],
}


def _data(samples: list[Alone]) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(sample.coords.shape[1], CHANNELS, generator=generator),
            torch.randn(sample.text_tokens, TEXT, generator=generator),
        )
        for sample in samples
    ]


def _inputs(samples: list[Alone], data: list[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32):
    timesteps, index = torch.cat([sample.timesteps for sample in samples]).unique(return_inverse=True)
    return (
        torch.cat([tokens for tokens, _ in data]).to(dtype),
        torch.cat([text for _, text in data]).to(dtype),
        timesteps,
        index,
        torch.cat([sample.coords for sample in samples], dim=1),
        Lengths.of([len(tokens) for tokens, _ in data]),
        Lengths.of([len(text) for _, text in data]),
    )


def _by_diffusers(model, sample: Alone, tokens: Tensor, text: Tensor) -> Tensor:
    """The unmodified forward: padded text masked; plain grids by F, H, W, others by coordinates."""
    padded = torch.cat([text, torch.full((16 - len(text), TEXT), 3.0, dtype=text.dtype)])
    mask = (torch.arange(16) < len(text)).long()
    if not sample.references and not sample.causal:
        place = {
            **dict(zip(("num_frames", "height", "width"), sample.grid, strict=True)),
            "rope_interpolation_scale": (SCALE.temporal / sample.fps, SCALE.spatial, SCALE.spatial),
        }
    else:
        place = {"video_coords": sample.coords[None]}
    output = model(
        hidden_states=tokens[None],
        encoder_hidden_states=padded[None],
        timestep=sample.timesteps[None],
        encoder_attention_mask=mask[None],
        return_dict=False,
        **place,
    )
    return output[0][0]


def _relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", PACKS)
def test_a_pack_equals_its_samples_alone(name: str, checkpointing: bool) -> None:
    samples, reference = PACKS[name], small_transformer()
    packed = deepcopy(reference)
    ltx.install(packed)
    if checkpointing:
        packed.enable_gradient_checkpointing()
    data = _data(samples)
    found = packed(*_inputs(samples, data))
    expected = torch.cat(
        [_by_diffusers(reference, sample, *parts) for sample, parts in zip(samples, data, strict=True)]
    )
    assert found.shape == expected.shape
    assert _relative(found, expected) < 1e-5

    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (key, mine), theirs in zip(packed.named_parameters(), reference.parameters(), strict=True):
        # A key's bias moves all scores of a query alike, so its true gradient is 0 and only rounding is left.
        floor = 1e-5 * theirs.grad.norm() + 1e-6 * weights.norm()
        assert (mine.grad - theirs.grad).norm() < floor, key


def test_every_parameter_learns_from_a_pack() -> None:
    model = small_transformer()
    ltx.install(model)
    samples = PACKS["mixed"]
    model(*_inputs(samples, _data(samples))).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_samples_of_a_pack_do_not_see_each_other() -> None:
    samples = PACKS["mixed"]
    model = small_transformer()
    ltx.install(model)
    data = _data(samples)
    before = model(*_inputs(samples, data))
    data[2] = (data[2][0] + 1, data[2][1] - 1)
    after = model(*_inputs(samples, data))
    sizes = [len(tokens) for tokens, _ in data]
    changed = [not torch.equal(a, b) for a, b in zip(before.split(sizes), after.split(sizes), strict=True)]
    assert changed == [position == 2 for position in range(len(samples))]


def test_weights_and_their_names_stay() -> None:
    model = small_transformer()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [name for name, _ in model.named_modules()]
    ltx.install(model)
    assert [name for name, _ in model.named_modules()] == modules
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_bfloat16_is_as_close_to_float32_as_diffusers_is() -> None:
    samples, exact = PACKS["mixed"], small_transformer()
    data = _data(samples)
    half = deepcopy(exact).to(torch.bfloat16)
    packed = deepcopy(half)
    ltx.install(packed)
    with torch.no_grad():
        found = packed(*_inputs(samples, data, torch.bfloat16)).float()
        truth = torch.cat([_by_diffusers(exact, s, *d) for s, d in zip(samples, data, strict=True)])
        theirs = torch.cat(
            [
                _by_diffusers(half, s, *(part.bfloat16() for part in d)).float()
                for s, d in zip(samples, data, strict=True)
            ]
        )
    assert _relative(found, truth) < 1.5 * _relative(theirs, truth) + 1e-3


def test_lengths_that_do_not_fit_the_tensors_are_refused() -> None:
    model = small_transformer(layers=1)
    ltx.install(model)
    inputs = list(_inputs([T2V], _data([T2V])))
    inputs[5] = Lengths.of([5])
    with pytest.raises(ValueError, match="disagree"):
        model(*inputs)
