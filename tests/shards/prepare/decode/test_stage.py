"""Samples come back as videos and pictures, as diffusers decodes them, references to the left."""

from __future__ import annotations

import errno
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline
from hypothesis import given
from hypothesis import strategies as st

import shards.prepare.decode.stage as module
from shards.dataset.info import Source, write_info
from shards.dataset.manifest import write_manifest
from shards.dataset.opened import Dataset, open_dataset
from shards.errors import InputError
from shards.geometry import Bucket
from shards.prepare.decode.options import DecodeOptions, choose
from shards.prepare.decode.pictures import decode_latents, side_by_side
from shards.prepare.decode.stage import decode
from shards.prepare.encode.stage import encode
from shards.prepare.encode.vae import encode_clips
from shards.prepare.media.video import probe, read_clip, write_clip
from shards.prepare.tables.rows import read_rows, write_rows
from shards.reader import Reader
from tests.support.clips import PALETTE, ramp, write_ramp
from tests.support.datasets import write_dataset
from tests.support.footage import tree
from tests.support.models import tiny_model, tiny_source


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Encoded from clips: two videos with a reference of half their size, one with two, and a picture."""
    folder = tmp_path_factory.mktemp("raw")
    rows = []
    for number, references in enumerate((1, 1, 2, 0)):
        frames = 1 if number == 3 else 9
        suffix = ".png" if frames == 1 else ".mp4"
        clip = write_ramp(folder / f"clips/{number}{suffix}", frames, 96, 64, colour=number, fps=25)
        paths = [
            write_ramp(folder / f"r/{number}-{index}.mp4", 9, 96, 64, colour=4 + index, fps=25)
            for index in range(references)
        ]
        rows.append(
            {
                "media_path": clip.relative_to(folder).as_posix(),
                "caption": f"a red car, number {number}",
                "reference_path": [path.relative_to(folder).as_posix() for path in paths],
            }
        )
    write_rows(folder / "t.jsonl", rows)
    out = tmp_path_factory.mktemp("dataset") / "out"
    encode(folder / "t.jsonl", str(tiny_model()), str(out), Bucket.parse_list("96x64x9,96x64x1"))
    return open_dataset(out)


KEYS = ("clips__0_mp4", "clips__1_mp4", "clips__2_mp4", "clips__3_png")


def test_samples_have_their_size_rate_and_references(dataset: Dataset, tmp_path: Path) -> None:
    report = decode(dataset.root, tiny_model(), tmp_path)
    assert report.files == ("clips__0_mp4.mp4", "clips__1_mp4.mp4", "clips__2_mp4.mp4", "clips__3_png.png")
    assert (report.failures, report.remark) == ((), None)
    for name, width in zip(report.files, (192, 192, 288, 96), strict=True):
        frames, fps = (1, 1.0) if name.endswith(".png") else (9, 25.0)
        assert probe(tmp_path / name) == (frames, width, 64, fps)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_captions_are_in_the_index(dataset: Dataset, tmp_path: Path) -> None:
    decode(dataset.root, tiny_model(), tmp_path)
    rows = read_rows(tmp_path / "index.jsonl")
    assert [row["caption"] for row in rows] == [f"a red car, number {number}" for number in range(4)]
    assert [row["key"] for row in rows] == list(KEYS)
    assert [row["references"] for row in rows] == [1, 1, 2, 0]
    assert rows[3] | {"frames": 1, "width": 96, "height": 64, "source": "clips/3.png"} == rows[3]


def test_the_index_grows_with_what_is_decoded(dataset: Dataset, tmp_path: Path) -> None:
    for keys in (KEYS[1:2], KEYS[:1], KEYS[1:2]):
        decode(dataset.root, tiny_model(), tmp_path, DecodeOptions(keys=keys))
    assert [row["key"] for row in read_rows(tmp_path / "index.jsonl")] == [KEYS[1], KEYS[0]]


def test_the_target_is_on_the_right(dataset: Dataset, tmp_path: Path) -> None:
    """A random VAE restores no colours, but each part has to be what its own latents give."""
    decode(dataset.root, tiny_model(), tmp_path, DecodeOptions(keys=(KEYS[2],), crf=1))
    vae = AutoencoderKLLTXVideo.from_pretrained(tiny_model() / "vae")
    with Reader(dataset) as reader:
        sample = reader.read([dataset.manifest.keys.tolist().index(KEYS[2])])[0]
    frames = read_clip(tmp_path / f"{KEYS[2]}.mp4", 9).astype(int)
    for place, latents in enumerate((*sample.references, sample.latents)):
        expected = decode_latents(vae, latents, torch.Generator())
        assert np.abs(pooled(frames[:, :, 96 * place : 96 * (place + 1)]) - pooled(expected)).mean() < 4


def pooled(frames: np.ndarray) -> np.ndarray:
    """Means of 8 x 8 pixels: a random VAE gives noise, whose colours do not survive compression one by one."""
    return frames.reshape(len(frames), 8, 8, -1, 8, 3).mean(axis=(2, 4))


def timestep_vae() -> AutoencoderKLLTXVideo:
    """Like the tiny one, but it takes a timestep and noise, as those of 0.9.1 and later do."""
    config = dict(AutoencoderKLLTXVideo.load_config(tiny_model() / "vae"))
    config |= {"timestep_conditioning": True, "decoder_block_out_channels": (24, 48)}
    config |= {"upsample_factor": (2, 2), "upsample_residual": (True, True)}
    torch.manual_seed(3)
    vae = AutoencoderKLLTXVideo.from_config(config).eval()
    vae.latents_mean.copy_(torch.linspace(-0.5, 0.5, len(vae.latents_mean)))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, len(vae.latents_std)))
    return vae


@pytest.mark.parametrize(("timestep", "noise"), [(0.0, None), (0.05, 0.025), (0.3, None)])
@pytest.mark.parametrize("conditioned", [False, True])
def test_latents_are_decoded_as_diffusers_does(
    conditioned: bool, timestep: float, noise: float | None
) -> None:
    pipeline = LTXPipeline.from_pretrained(tiny_model())
    vae = pipeline.vae = timestep_vae() if conditioned else pipeline.vae
    latents = torch.randn(8, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    pipeline.set_progress_bar_config(disable=True)
    found = decode_latents(vae, latents, torch.Generator().manual_seed(2), timestep, noise)
    expected = _decode_as_pipeline(pipeline, latents, torch.Generator().manual_seed(2), timestep, noise)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def _decode_as_pipeline(
    pipeline: LTXPipeline,
    latents: torch.Tensor,
    generator: torch.Generator,
    timestep: float,
    noise: float | None,
) -> np.ndarray:
    """What `LTXPipeline` gives for these latents when its transformer leaves them as they are."""
    _, frames, height, width = latents.shape

    def still(hidden_states: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
        return (torch.zeros_like(hidden_states),)

    pipeline.transformer.forward = still
    embeds = torch.zeros(1, 4, 48)
    return (
        (
            pipeline(
                prompt_embeds=embeds,
                prompt_attention_mask=torch.ones(1, 4),
                guidance_scale=1.0,
                height=height * 16,
                width=width * 16,
                num_frames=(frames - 1) * 4 + 1,
                num_inference_steps=2,
                latents=latents[None].flatten(2).transpose(1, 2),
                generator=generator,
                decode_timestep=timestep,
                decode_noise_scale=noise,
                output_type="np",
            ).frames[0]
            * 255
        )
        .round()
        .astype(np.uint8)
    )


def test_what_was_encoded_comes_back_in_shape(tmp_path: Path) -> None:
    vae = AutoencoderKLLTXVideo.from_pretrained(tiny_model() / "vae")
    clip = ramp(9, 96, 64, PALETTE[0])
    (latents,) = encode_clips(vae, [clip], [torch.Generator().manual_seed(0)])
    assert decode_latents(vae, latents, torch.Generator()).shape == clip.shape


def test_tiles_change_little(dataset: Dataset, tmp_path: Path) -> None:
    options = DecodeOptions(keys=(KEYS[3],))
    decode(dataset.root, tiny_model(), tmp_path / "whole", options)
    decode(dataset.root, tiny_model(), tmp_path / "tiles", replace(options, vae_tiling=True))
    whole, tiles = (read_clip(tmp_path / name / "clips__3_png.png", 1) for name in ("whole", "tiles"))
    assert np.array_equal(whole, tiles)  # smaller than a tile


@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3
    )
)
def test_side_by_side_is_as_high_and_long_as_the_target(sizes: list[tuple[int, int, int]]) -> None:
    clips = [np.full((*size, 3), 10 * number, np.uint8) for number, size in enumerate(sizes)]
    joined = side_by_side(clips)
    frames, height, width = sizes[-1]
    assert joined.shape[:2] == (frames, height)
    assert np.array_equal(joined[:, :, -width:], clips[-1])
    assert (joined[:, :, 0] == clips[0][0, 0, 0]).all()
    if len(clips) > 1:
        first = joined[:, :, : joined.shape[2] - width]
        expected = sum(max(2, 2 * round(w * height / h / 2)) for _, h, w in sizes[:-1])
        assert first.shape[2] == expected


def test_slow_references_stay_as_long_as_they_have_to() -> None:
    slow = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 4, 4, 3), np.uint8)
    joined = side_by_side([slow, np.zeros((9, 4, 4, 3), np.uint8)])
    assert joined[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("many"), 30, channels=8, vae=tiny_source())


def test_samples_are_chosen(many: Dataset) -> None:
    assert choose(many, DecodeOptions(first=3)) == [0, 1, 2]
    assert choose(many, DecodeOptions(first=99)) == list(range(30))
    keys = ("clips/sample_00007", "clips/sample_00002", "clips/sample_00007")
    assert choose(many, DecodeOptions(keys=keys)) == [7, 2]
    some = choose(many, DecodeOptions(random=9, seed=1))
    assert len(set(some)) == 9
    assert some == choose(many, DecodeOptions(random=9, seed=1))
    assert some != choose(many, DecodeOptions(random=9, seed=2))
    assert set(choose(many, DecodeOptions(random=5, seed=1))) < set(some)


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sample_00007", "; there are 'clips/sample_00007'"),
        ("clips/sampel_00007", "; there are 'clips/sample_00007', "),
        ("%%", "; the first is 'clips/sample_00000'"),
    ],
)
def test_unknown_keys_are_told_with_near_ones(many: Dataset, key: str, near: str) -> None:
    with pytest.raises(InputError) as error:
        choose(many, DecodeOptions(keys=("clips/sample_00001", key)))
    assert str(error.value).startswith(f"{many.root} has no sample {key!r}{near}")


def test_another_vae_is_refused_with_both_named(dataset: Dataset, tmp_path: Path) -> None:
    other = tmp_path / "model"
    shutil.copytree(tiny_model(), other)
    vae = AutoencoderKLLTXVideo.from_pretrained(other / "vae")
    vae.decoder.conv_in.conv.weight.data.mul_(1.5)
    vae.save_pretrained(other / "vae")
    expected = f"was encoded with the VAE {tiny_source().fingerprint} of {tiny_model()}, that of {other} is "
    with pytest.raises(InputError, match=expected):
        decode(dataset.root, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = decode(dataset.root, other, tmp_path / "out", DecodeOptions(first=1, force=True))
    assert report.remark is not None
    assert expected in report.remark


def test_an_unknown_vae_is_remarked(many: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(many.root, folder)
    write_info(folder, replace(many.info, vae=Source()))
    report = decode(folder, tiny_model(), tmp_path / "out", DecodeOptions(first=1))
    assert report.remark is not None
    assert "does not say which VAE it was encoded with" in report.remark


def test_latents_of_another_width_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "dataset", 2, channels=4)
    with pytest.raises(InputError, match=r"has latents of 4 channels, the VAE of .* takes 8"):
        decode(tmp_path / "dataset", tiny_model(), tmp_path / "out", DecodeOptions(force=True))


def test_a_damaged_sample_is_left_out(many: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(many.root, folder)
    manifest = many.manifest
    shard = folder / manifest.shards[manifest.shard[1]]
    data = bytearray(shard.read_bytes())
    data[manifest.offset[1] + manifest.nbytes[1] - 1] ^= 1
    shard.write_bytes(data)
    report = decode(folder, tiny_model(), tmp_path / "out", DecodeOptions(first=3))
    assert len(report.files) == 2
    ((key, reason),) = report.failures
    assert key == "clips/sample_00001"
    assert "checksum" in reason


def test_remote_datasets_are_decoded(bucket: str, tmp_path: Path) -> None:
    dataset = write_dataset(f"{bucket}/data", 3, channels=8, vae=tiny_source())
    report = decode(dataset.root, tiny_model(), tmp_path, DecodeOptions(first=2))
    assert report.files == ("clips/sample_00000.png", "clips/sample_00001.mp4")
    assert [row["caption"] for row in read_rows(tmp_path / "index.jsonl")] == ["caption 0", "caption 1"]


def test_a_key_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset", 1, channels=8, vae=tiny_source())
    dataset.manifest.keys[0] = "a/../../../evil"
    write_manifest(dataset.root, dataset.manifest)
    with pytest.raises(InputError, match="leads out of"):
        decode(dataset.root, tiny_model(), tmp_path / "out")
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DecodeOptions(first=0), "--first 0 must be at least 1"),
        (DecodeOptions(random=0), "--random 0 must be at least 1"),
        (DecodeOptions(timestep=2.0), "--decode-timestep 2 must be between 0 and 1"),
        (DecodeOptions(noise_scale=-1.0), "--decode-noise-scale -1 must be between 0 and 1"),
        (DecodeOptions(device="abacus"), "--device 'abacus' is not known: use auto, cpu or cuda"),
        (DecodeOptions(dtype="int4"), "--dtype 'int4' is not known"),
    ],
)
def test_options_that_make_no_sense(
    many: Dataset, tmp_path: Path, options: DecodeOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        decode(many.root, tiny_model(), tmp_path / "out", options)


def test_what_is_there_is_not_decoded_again(dataset: Dataset, tmp_path: Path) -> None:
    options = DecodeOptions(keys=KEYS[1:])
    decode(dataset.root, tiny_model(), tmp_path, options)
    before = tree(tmp_path)
    (tmp_path / f"{KEYS[1]}.mp4").write_bytes(b"would be decoded anew")
    (tmp_path / f"{KEYS[2]}.mp4").unlink()
    report = decode(dataset.root, tiny_model(), tmp_path, DecodeOptions(keys=KEYS))
    assert report.existed == 2
    assert report.files == tuple(f"{key}.{'png' if 'png' in key else 'mp4'}" for key in KEYS)
    assert (tmp_path / f"{KEYS[1]}.mp4").read_bytes() == b"would be decoded anew"
    assert (tmp_path / f"{KEYS[2]}.mp4").read_bytes() == before[f"{KEYS[2]}.mp4"]
    assert [row["key"] for row in read_rows(tmp_path / "index.jsonl")] == [*KEYS[1:], KEYS[0]]


@pytest.mark.parametrize("other", [{"crf": 3}, {"vae_tiling": True}, {"dtype": "bfloat16"}])
def test_other_options_decode_again(dataset: Dataset, tmp_path: Path, other: dict[str, Any]) -> None:
    options = DecodeOptions(keys=KEYS[:1], dtype="float32")
    decode(dataset.root, tiny_model(), tmp_path, options)
    for existed in (0, 1):
        report = decode(dataset.root, tiny_model(), tmp_path, replace(options, **other))
        assert report.existed == existed


def test_a_sample_of_other_bytes_is_decoded_again(tmp_path: Path) -> None:
    for seed, existed in ((0, 0), (0, 2), (1, 0)):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        write_dataset(tmp_path / "data", 2, channels=8, vae=tiny_source(), seed=seed)
        assert decode(tmp_path / "data", tiny_model(), tmp_path / "out").existed == existed


def test_only_what_dead_processes_left_is_taken_away(dataset: Dataset, tmp_path: Path) -> None:
    for name, age in ((".decode-dead", 86400.0), (".decode-alive", 60.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    decode(dataset.root, tiny_model(), tmp_path, DecodeOptions(first=1))
    assert [path.name for path in tmp_path.glob(".*")] == [".decode-alive"]


@pytest.mark.parametrize(
    ("number", "cure"), [(errno.ENOSPC, "make room"), (errno.EACCES, "see to the permissions")]
)
def test_a_disk_that_refuses_is_told_and_what_is_done_is_kept(
    many: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cure: str
) -> None:
    written: list[Path] = []

    def refuse(path: Path, *arguments: Any) -> None:
        if written:
            raise OSError(number, os.strerror(number), str(path))
        write_clip(path, *arguments)
        written.append(path)

    monkeypatch.setattr(module, "write_clip", refuse)
    message = (
        rf"^{tmp_path}: {os.strerror(number)}: .*; what is done is kept: {cure} and run the same command"
    )
    with pytest.raises(InputError, match=message):
        decode(many.root, tiny_model(), tmp_path, DecodeOptions(first=3))
    assert [row["key"] for row in read_rows(tmp_path / "index.jsonl")] == ["clips/sample_00000"]
    assert not list(tmp_path.glob(".decode-*"))
    monkeypatch.undo()
    assert decode(many.root, tiny_model(), tmp_path, DecodeOptions(first=3)).existed == 1
