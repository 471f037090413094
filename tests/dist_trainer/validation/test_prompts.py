"""What sample videos are made from is encoded once, as the dataset was, and kept."""

from __future__ import annotations

import errno
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as torch_dist
from diffusers import LTXPipeline
from torch import Tensor

from dist_trainer.build import Data, build_data
from dist_trainer.config import RunConfig, load
from dist_trainer.dist import Gathering
from dist_trainer.feed.data import run_state
from dist_trainer.rundir import RunFolder
from dist_trainer.validation import prompts
from dist_trainer.validation.prompts import Cases, encode_cases, read_case, shown
from dist_trainer.validation.show import read
from dist_trainer.world import World
from shards.errors import InputError
from shards.geometry import Scale
from shards.prepare.encode.models import load_vae
from shards.prepare.media.clip_error import ClipError
from shards.prepare.media.video import read_clip, write_clip
from tests.support.datasets import write_dataset
from tests.support.gatherings import at_once, in_memory
from tests.support.runs import lora_blocks, tiny_config, write_config

PROMPTS = ["a red square moves left", "a blue circle"]
GRID = (2, 2, 3)
FRAMES, HEIGHT, WIDTH = 5, 32, 48


class Bench:
    """Configs over a small dataset with references, and what is encoded for them in one run's folder."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self._model = root, model
        sizes: dict[str, Any] = {"channels": 8, "text_width": 48, "scale": Scale(4, 16)}
        self.dataset = write_dataset(root / "data", 4, grids=(GRID,), references=(GRID,), **sizes)
        rng = np.random.default_rng(0)
        for number in range(2):
            clip = rng.integers(0, 255, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
            write_clip(root / f"{number}.mp4", clip, 12)
            write_clip(root / f"{number}.png", clip, 12)

    def config(self, **validation: Any) -> RunConfig:
        blocks = lora_blocks(reference=True)
        blocks["validation"] = {
            "prompts": PROMPTS,
            "images": [str(self.root / f"{number}.png") for number in range(2)],
            "reference_videos": [str(self.root / f"{number}.mp4") for number in range(2)],
            "video_dims": [WIDTH, HEIGHT, FRAMES],
            "interval": 5,
            **validation,
        }
        described = tiny_config(self._model, self.dataset.root, self.root / "run", **blocks)
        return load(write_config(self.root / "config.yaml", described))

    def data(self, config: RunConfig) -> Data:
        return build_data(config, self.dataset, run_state(config, self.dataset, World(0, 1, 0), None))

    def encoded(self, **validation: Any) -> Cases:
        config = self.config(**validation)
        found = encode_cases(config, self.data(config), RunFolder(self.root / "run"), in_memory(1)[0])
        assert found is not None
        return found

    def kept(self) -> dict[str, int]:
        folder = self.root / "run" / "validation"
        return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path) -> Bench:
    return Bench(tmp_path, model_folder)


def test_texts_are_those_of_ltx_pipeline_without_their_padding(bench: Bench, model_folder: Path) -> None:
    path = bench.encoded(negative_prompt="blurry").path
    pipeline = LTXPipeline.from_pretrained(model_folder)
    for number, prompt in enumerate(PROMPTS):
        embeds, mask, negative, negative_mask = pipeline.encode_prompt(
            prompt, negative_prompt="blurry", max_sequence_length=256
        )
        case = read_case(path, number)
        assert_near(case.text, embeds[0, mask[0].bool()])
        assert case.negative is not None
        assert_near(case.negative, negative[0, negative_mask[0].bool()])


def assert_near(ours: Tensor | None, theirs: Tensor) -> None:
    """Equal, but for rounding to bfloat16."""
    assert ours is not None
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), theirs.detach(), rtol=0.01, atol=0.01)


@torch.no_grad()
def test_pictures_and_references_are_latents_as_the_vae_makes_them(bench: Bench, model_folder: Path) -> None:
    vae = load_vae(model_folder, torch.float32)
    path = bench.encoded().path
    for number in range(2):
        case = read_case(path, number)
        files = {"png": (case.first, 1), "mp4": (case.reference, FRAMES)}
        for suffix, (latents, frames) in files.items():
            assert latents is not None
            clip = torch.from_numpy(read_clip(bench.root / f"{number}.{suffix}", frames)).permute(3, 0, 1, 2)
            posterior = vae.encode(clip[None].float() / 127.5 - 1).latent_dist
            spread = vae.latents_std.view(-1, 1, 1, 1)
            mean = (posterior.mean[0] - vae.latents_mean.view(-1, 1, 1, 1)) / spread
            # A sample of the posterior: five of its deviations leave room for rounding too.
            assert ((latents.float() - mean).abs() < 5 * posterior.std[0] / spread + 0.02).all()
        # As it is shown beside videos, for the ranks that do not see its file.
        kept = read(shown(path, number)).astype(int)
        assert np.abs(kept - read_clip(bench.root / f"{number}.mp4", FRAMES)).mean() < 10


def test_no_negative_prompt_is_encoded_where_nothing_steers_away(bench: Bench) -> None:
    assert read_case(bench.encoded(guidance_scale=1.0).path, 0).negative is None


def test_what_is_encoded_is_kept_until_something_it_depends_on_changes(bench: Bench) -> None:
    bench.encoded()
    kept = bench.kept()
    assert len(kept) == 1
    bench.encoded(inference_steps=7, interval=3, skip_initial_validation=True)
    assert bench.kept() == kept
    for changed in ({"prompts": ["a dog", "a cat"]}, {"negative_prompt": "dark"}, {"seed": 7}):
        before = bench.kept()
        bench.encoded(**changed)
        assert len(bench.kept()) == len(before) + 1
    before = bench.kept()
    (bench.root / "0.png").write_bytes((bench.root / "1.png").read_bytes())
    bench.encoded()
    assert len(bench.kept()) == len(before) + 1


def test_a_file_that_was_cut_or_is_gone_is_written_again(bench: Bench) -> None:
    path = bench.encoded().path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (path.parent / ".01234567.mp4").touch()  # of a kill
    assert bench.encoded().path == path
    assert path.read_bytes() == whole
    shown(path, 1).unlink()
    bench.encoded()
    assert {file.name for file in path.parent.iterdir()} == {
        path.name,
        *(shown(path, n).name for n in (0, 1)),
    }


def test_of_a_hosts_ranks_the_first_fetches_what_they_need_before_the_others_ask(
    bench: Bench, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three hosts of two ranks each, and four videos; rank 0 alone encodes, and tells of the scheduler."""
    asked: list[tuple[int, str]] = []
    here = threading.local()

    def fetch(source: str, name: str) -> Path:
        if here.rank == 2:
            time.sleep(0.2)
        asked.append((here.rank, name))
        return model_folder / name

    monkeypatch.setattr(prompts, "part", fetch)
    config, store = bench.config(videos_per_prompt=2), torch_dist.HashStore()
    data = bench.data(config)

    def encode(gathering: Gathering) -> Cases | None:
        here.rank = gathering.world.rank
        return encode_cases(config, data, RunFolder(bench.root / "run"), gathering)

    made = at_once(encode, [Gathering(World(rank, 6, rank % 2), store, 20) for rank in range(6)])
    assert all(isinstance(cases, Cases) for cases in made), made
    assert [cases.model for cases in made] == [model_folder] * 4 + [None] * 2
    assert {cases.scheduler["_class_name"] for cases in made} == {"FlowMatchEulerDiscreteScheduler"}
    assert {rank for rank, name in asked if name != "vae"} == {0}
    of_vae = [rank for rank, name in asked if name == "vae"]
    assert set(of_vae) == {0, 1, 2, 3}
    assert of_vae.index(0) < of_vae.index(1)
    assert of_vae.index(2) < of_vae.index(1)
    assert of_vae.index(2) < of_vae.index(3)


def test_a_reference_that_breaks_off_is_named(bench: Bench) -> None:
    """Its header promises all its frames."""
    file = bench.root / "1.mp4"
    content = bytearray(file.read_bytes())
    begin = content.find(b"mdat") + 4
    content[begin + 40 : begin + 4000] = bytes(len(content[begin + 40 : begin + 4000]))
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^validation.*{file}"):
        bench.encoded()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ClipError(Path(".tmp.mp4"), "no encoder"),
            r"^validation\.prompts\.0: .*/validation/\w+_01\.mp4: no encoder$",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "/f"),
            r"^output_dir: .*/run/validation: .* choose another",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/f"),
            r"^/f: No space left on device; make room there",
        ),
    ],
)
def test_a_reference_that_cannot_be_written_to_be_shown_is_said_in_a_line(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(prompts, "_encoded", lambda *_: {})
    monkeypatch.setattr(prompts, "write", fail)
    with pytest.raises(InputError, match=said):
        bench.encoded()


def test_without_a_validation_nothing_is_encoded(bench: Bench) -> None:
    config = bench.config(interval=None)
    assert encode_cases(config, bench.data(config), RunFolder(bench.root / "run"), in_memory(1)[0]) is None
    assert not (bench.root / "run").exists()
