"""Clip, caption and reference stay together whatever is left out: each is marked, and the marks are read back."""

from __future__ import annotations

import json
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from shards.formats.sample import parse
from shards.geometry import Bucket, Scale
from shards.prepare.encode.models import load_text_encoder, load_tokenizer, load_vae
from shards.prepare.encode.stage import EncodeOptions, encode
from shards.prepare.encode.text import encode_prompt
from shards.prepare.encode.vae import encode_clips
from tests.support.clips import PALETTE, ramp, write_ramp
from tests.support.models import tiny_model

SCALE = Scale(4, 16)  # of the tiny VAE
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
# What row i is: its clip has colour i, its reference colour i + 1, its caption names colour i.
KINDS = {
    "good": ("clip{}.mp4", "ref{}.mp4"),
    "picture": ("clip{}.png", "ref{}.png"),
    "with a picture": ("clip{}.mp4", "ref{}.png"),
    "without reference": ("clip{}.mp4", ""),
    "short": ("short{}.mp4", "ref{}.mp4"),
    "broken": ("broken.mp4", "ref{}.mp4"),
    "broken reference": ("clip{}.mp4", "broken.mp4"),
    "longer reference": ("clip{}.mp4", "long{}.mp4"),
    "slower reference": ("clip{}.mp4", "slow{}.mp4"),
}
SAMPLES = {"good": 2, "picture": 1, "with a picture": 2, "without reference": 2}


@dataclass(frozen=True, repr=False)
class Marks:
    """What the mark of each colour looks like once encoded."""

    latents: dict[int, torch.Tensor]  # [colours, C]: means of a clip's latents, by their number of frames
    captions: list[torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    (folder / "broken.mp4").write_bytes(b"no")
    for number in range(len(COLOURS)):
        other = (number + 1) % len(COLOURS)
        for suffix, frames in ((".mp4", 18), (".png", 1)):
            write_ramp(folder / f"clip{number}{suffix}", frames, colour=number)
            write_ramp(folder / f"ref{number}{suffix}", frames, colour=other)
        write_ramp(folder / f"short{number}.mp4", 5, colour=number)
        write_ramp(folder / f"long{number}.mp4", 20, colour=other)
        write_ramp(folder / f"slow{number}.mp4", 18, colour=other, fps=20)
    return folder


@pytest.fixture(scope="module")
def marks() -> Marks:
    vae = load_vae(tiny_model(), torch.float32)
    latents = {}
    for frames in (9, 1):
        clips = [ramp(18, 64, 64, colour)[:frames] for colour in PALETTE[: len(COLOURS)]]
        noise = [torch.Generator().manual_seed(0) for _ in clips]
        means = [_mean(latent) for latent in encode_clips(vae, clips, noise)]
        latents[SCALE.grid(frames, 64, 64).frames] = torch.stack(means)
    tokenizer, encoder = load_tokenizer(tiny_model()), load_text_encoder(tiny_model(), torch.float32)
    captions = [encode_prompt(tokenizer, encoder, f"a {colour} ring", 32)[0] for colour in COLOURS]
    return Marks(latents, captions)


def colour_of(latents: torch.Tensor, marks: Marks) -> int:
    return int((marks.latents[latents.shape[1]] - _mean(latents)).norm(dim=1).argmin())


def _mean(latents: torch.Tensor) -> torch.Tensor:
    return latents.float().mean(dim=(1, 2, 3))


@settings(max_examples=4, deadline=None, phases=(Phase.generate,))
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=len(COLOURS), max_size=len(COLOURS)),
    first=st.sampled_from(["good", "picture"]),
    rows_per_shard=st.integers(1, 4),
    vae_batch=st.integers(1, 3),
)
def test_marks_of_a_sample_agree(
    folder: Path, marks: Marks, kinds: list[str], first: str, rows_per_shard: int, vae_batch: int
) -> None:
    kinds = [*kinds[:-1], first]
    table = folder / "table.json"
    rows = [
        {"caption": f"a {COLOURS[number]} ring"}
        | dict(zip(("media_path", "reference_path"), (n.format(number) for n in KINDS[kind]), strict=True))
        for number, kind in enumerate(kinds)
    ]
    table.write_text(json.dumps(rows))
    options = EncodeOptions(
        device="cpu", windows=None, rows_per_shard=rows_per_shard, vae_batch=vae_batch, max_text_tokens=32
    )
    with tempfile.TemporaryDirectory() as out:
        buckets = Bucket.parse_list("64x64x9,64x64x1")
        report = encode(table, tiny_model(), out, buckets, options=options)
        read = [sample for path in sorted(Path(out, "shards").iterdir()) for sample in _samples(path)]
    found = [0] * len(kinds)
    for meta, tensors in read:
        number = COLOURS.index(meta["caption"].split()[1])
        found[number] += 1
        assert meta["source"] == rows[number]["media_path"]
        assert torch.equal(tensors["prompt_embeds"], marks.captions[number])
        assert colour_of(tensors["latents"], marks) == number
        if rows[number]["reference_path"]:
            assert colour_of(tensors["reference_latents"], marks) == (number + 1) % len(COLOURS)
        else:
            assert "reference_latents" not in tensors
    assert found == [SAMPLES.get(kind, 0) for kind in kinds]
    left_out = [row["media_path"] for row, kind in zip(rows, kinds, strict=True) if kind not in SAMPLES]
    assert [failure.source for failure in report.failures] == left_out


def _samples(path: Path) -> list[tuple[dict, dict[str, torch.Tensor]]]:
    with tarfile.open(path) as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    keys = [name.removesuffix(".json") for name in members if name.endswith(".json")]
    return [(json.loads(members[f"{key}.json"]), parse(members[f"{key}.safetensors"])) for key in keys]
