from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline

from shards.dataset import Dataset, open_dataset
from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.hashing import mix, sample_id
from shards.index import index
from shards.prepare.encode import FAILURES_NAME, EncodeOptions, EncodeReport, encode
from shards.prepare.models import fingerprint
from shards.prepare.video import cover, read_clip
from shards.reader import Reader
from shards.sample import Sample
from tests.support.clips import filmed, write_ramp
from tests.support.models import tiny_model

BUCKETS = Bucket.parse_list("64x64x9")
OPTIONS = EncodeOptions(device="cpu", seed=5)


def write_table(folder: Path, *entries: tuple[str, str] | tuple[str, str, str]) -> Path:
    names = ("caption", "media_path", "reference_path")
    path = folder / "table.json"
    path.write_text(json.dumps([dict(zip(names, entry, strict=False)) for entry in entries]))
    return path


def run(
    folder: Path, table: Path, buckets: tuple[Bucket, ...] = BUCKETS, **changes
) -> tuple[EncodeReport, Dataset]:
    report = encode(table, tiny_model(), folder / "out", buckets, options=replace(OPTIONS, **changes))
    return report, open_dataset(folder / "out")


def samples(dataset: Dataset) -> dict[str, Sample]:
    with Reader(dataset) as reader:
        return {sample.key: sample for sample in reader.read(range(len(dataset.manifest)))}


def plain_latents(clip: np.ndarray, key: str, purpose: int) -> torch.Tensor:
    """Latents as one would write them in a notebook with the unmodified classes."""
    vae = AutoencoderKLLTXVideo.from_pretrained(tiny_model(), subfolder="vae")
    pixels = torch.stack([torch.from_numpy(frame.copy()) for frame in clip]).permute(3, 0, 1, 2).unsqueeze(0)
    generator = torch.Generator("cpu").manual_seed(int(mix(OPTIONS.seed, sample_id(key), purpose)))
    with torch.no_grad():
        z = vae.encode(pixels / 127.5 - 1.0).latent_dist.sample(generator)
    z = LTXPipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    return z[0].to(torch.bfloat16)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Clips a to d in four colours with references ra to rd in other colours; c alone is too short."""
    for number, name in enumerate("abcd"):
        frames = 5 if name == "c" else 9 + number
        write_ramp(tmp_path / f"{name}.mp4", frames, colour=number)
        write_ramp(tmp_path / f"r{name}.mp4", 12, colour=6 - number)
    return tmp_path


def test_latents_and_reference_equal_a_plain_computation(clips: Path) -> None:
    _, dataset = run(clips, write_table(clips, ("a cat", "b.mp4", "rb.mp4")))
    sample = samples(dataset)["b_mp4"]
    assert sample.latents.shape == (8, 3, 4, 4)
    assert sample.latents.dtype == torch.bfloat16
    assert torch.equal(sample.latents, plain_latents(read_clip(clips / "b.mp4", 9), "b_mp4", 0))
    assert torch.equal(sample.references[0], plain_latents(read_clip(clips / "rb.mp4", 9), "b_mp4", 1))


def test_filmed_clip_goes_to_its_bucket_with_its_rate(tmp_path: Path) -> None:
    for name in ("bikes", "bigbuckbunny"):
        (tmp_path / f"{name}.mp4").symlink_to(filmed(name))
    table = write_table(tmp_path, ("bikes in a street", "bikes.mp4"), ("a rabbit", "bigbuckbunny.mp4"))
    buckets = Bucket.parse_list("128x64x9,112x64x9,112x64x5")
    report, dataset = run(tmp_path, table, buckets)
    assert report.buckets == {"128x64x9": 1, "112x64x9": 1}
    assert not report.failures
    found = samples(dataset)
    expected = plain_latents(read_clip(filmed("bikes"), 9, cover(128, 64)), "bikes_mp4", 0)
    assert torch.equal(found["bikes_mp4"].latents, expected)
    assert found["bigbuckbunny_mp4"].fps == 25.0
    assert found["bigbuckbunny_mp4"].latents.float().std() > 0.3


def test_a_row_left_out_takes_its_caption_and_reference_with_it(clips: Path) -> None:
    """Lightricks' trainer saved every clip after a short one under the wrong name, with the wrong caption."""
    captions = {
        name: f"a {colour} ring"
        for name, colour in zip("abcd", ("red", "green", "blue", "yellow"), strict=True)
    }
    table = write_table(clips, *((captions[name], f"{name}.mp4", f"r{name}.mp4") for name in "abcd"))
    report, dataset = run(clips, table)
    assert [failure.source for failure in report.failures] == ["c.mp4"]
    found = samples(dataset)
    assert sorted(found) == ["a_mp4", "b_mp4", "d_mp4"]
    pipeline = LTXPipeline.from_pretrained(tiny_model(), transformer=None, vae=None)
    for name in "abd":
        sample = found[f"{name}_mp4"]
        assert torch.equal(sample.latents, plain_latents(read_clip(clips / f"{name}.mp4", 9), sample.key, 0))
        assert torch.equal(
            sample.references[0], plain_latents(read_clip(clips / f"r{name}.mp4", 9), sample.key, 1)
        )
        with torch.no_grad():
            padded, mask = pipeline._get_t5_prompt_embeds([captions[name]], max_sequence_length=256)
        assert torch.equal(sample.prompt_embeds, padded[0, mask[0]].to(torch.bfloat16))


def test_what_cannot_be_decoded_is_listed_and_the_rest_is_encoded(clips: Path, capsys) -> None:
    (clips / "bad.mp4").write_bytes(b"not a clip")
    # The header of a cut file still promises nine frames: found out only while decoding.
    whole = clips / "torn.mp4"
    write_ramp(whole, 9, 256, 256)
    data = whole.read_bytes()
    mdat, moov = data.index(b"mdat") - 4, data.index(b"moov") - 4
    assert mdat < moov
    whole.write_bytes(data[: mdat + 8] + bytes(moov - mdat - 8) + data[moov:])
    table = write_table(
        clips,
        ("x", "bad.mp4"),
        ("x", "a.mp4"),
        ("x", "torn.mp4"),
        ("x", "b.mp4", "bad.mp4"),
        ("x", "d.mp4", "c.mp4"),
    )
    report, dataset = run(clips, table)
    assert list(dataset.manifest.keys) == ["a_mp4"]
    assert report.samples == 1
    listed = [json.loads(line) for line in (clips / "out" / FAILURES_NAME).read_text().splitlines()]
    assert sorted(entry["source"] for entry in listed) == ["b.mp4", "bad.mp4", "d.mp4", "torn.mp4"]
    assert [failure._asdict() for failure in report.failures] == listed
    assert all(entry["reason"] for entry in listed)
    assert (
        "c.mp4 has 5 frames, 9 are needed" in {entry["source"]: entry["reason"] for entry in listed}["d.mp4"]
    )
    assert "4 rows were not encoded" in capsys.readouterr().err


def test_pictures_and_clips_of_several_sizes_in_one_dataset(clips: Path) -> None:
    write_ramp(clips / "p.png", 1, 100, 64)
    write_ramp(clips / "w.mp4", 20, 96, 64, fps=12)
    table = write_table(clips, ("x", "p.png"), ("x", "a.mp4"), ("x", "w.mp4"))
    report, dataset = run(clips, table, Bucket.parse_list("64x64x1,96x64x1,64x64x9,96x64x17"))
    assert report.buckets == {"96x64x1": 1, "64x64x9": 1, "96x64x17": 1}
    assert dataset.manifest.grid.tolist() == [[1, 4, 6], [3, 4, 4], [5, 4, 6]]
    assert dataset.manifest.fps.tolist() == [1.0, 24.0, 12.0]
    assert dataset.manifest.references.shape[1] == 0


def test_dataset_says_what_it_was_encoded_with(clips: Path) -> None:
    report, dataset = run(clips, write_table(clips, ("a cat", "a.mp4")), id_token=" MYTOK ")
    info = dataset.info
    assert (info.channels, info.text_width, info.scale) == (8, 48, Scale(4, 16))
    pipeline = LTXPipeline.from_pretrained(tiny_model(), transformer=None)
    assert info.vae.fingerprint == fingerprint(pipeline.vae)
    assert info.text_encoder.fingerprint == fingerprint(pipeline.text_encoder)
    with torch.no_grad():
        for prompt, embeds in (
            ("", info.null_embeds()),
            ("MYTOK a cat", samples(dataset)["a_mp4"].prompt_embeds),
        ):
            padded, mask = pipeline._get_t5_prompt_embeds([prompt], max_sequence_length=256)
            assert torch.equal(embeds, padded[0, mask[0]].to(torch.bfloat16))
    assert report.out == clips / "out"
    assert report.cut_captions == 0
    assert not (clips / "out" / FAILURES_NAME).exists()


def test_the_shards_alone_give_the_same_manifest(clips: Path) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4", f"r{name}.mp4") for name in "abd"))
    _, dataset = run(clips, table, shard_bytes=1)
    assert len(dataset.manifest.shards) == 3
    assert index(clips / "out").fingerprint == dataset.manifest.fingerprint


def test_same_inputs_same_bytes_and_another_seed_other_latents(clips: Path) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4", f"r{name}.mp4") for name in "abd"))
    for out, seed in (("one", 5), ("two", 5), ("three", 6)):
        options = replace(OPTIONS, seed=seed, reshape_mode="random")
        encode(table, tiny_model(), clips / out, BUCKETS, options=options)
    files = sorted(path.relative_to(clips / "one") for path in (clips / "one").rglob("*") if path.is_file())
    assert [str(path) for path in files] == ["dataset.json", "manifest.parquet", "shards/000000.tar"]
    for path in files:
        assert (clips / "one" / path).read_bytes() == (clips / "two" / path).read_bytes()
    first, other = samples(open_dataset(clips / "one")), samples(open_dataset(clips / "three"))
    for key in first:
        assert not torch.equal(first[key].latents, other[key].latents)
        assert not torch.equal(first[key].latents, first[key].references[0])


def test_bfloat16_networks_stay_close_to_float32(clips: Path) -> None:
    _, dataset = run(clips, write_table(clips, ("a cat", "a.mp4")), dtype="bfloat16")
    exact = plain_latents(read_clip(clips / "a.mp4", 9), "a_mp4", 0).float()
    error = (samples(dataset)["a_mp4"].latents.float() - exact).std() / exact.std()
    assert 0 < error < 0.05


@pytest.mark.parametrize(
    ("changes", "buckets", "message"),
    [
        ({"reshape_mode": "left"}, BUCKETS, "reshape_mode 'left'"),
        ({"dtype": "int8"}, BUCKETS, "dtype 'int8'"),
        ({"device": "cuda:77"}, BUCKETS, "device 'cuda:77'"),
        ({"max_text_tokens": 0}, BUCKETS, "max_text_tokens 0"),
        ({}, Bucket.parse_list("64x64x10"), "bucket 64x64x10 does not fit the VAE"),
        (
            {},
            Bucket.parse_list("64x64x17"),
            "none of its 1 rows.*a.mp4: 9 frames, the shortest bucket needs 17",
        ),
    ],
)
def test_unusable_requests_are_refused(
    clips: Path, changes: dict, buckets: tuple[Bucket, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(clips, write_table(clips, ("x", "a.mp4")), buckets, **changes)
    assert not (clips / "out" / "dataset.json").exists()


def test_a_dataset_is_never_written_over(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"))
    run(clips, table)
    before = (clips / "out/manifest.parquet").read_bytes()
    for gone in ("dataset.json", "manifest.parquet", None):
        with pytest.raises(InputError, match="already holds a dataset"):
            run(clips, table)
        if gone:
            (clips / "out" / gone).unlink()
    assert before
    assert (clips / "out/shards/000000.tar").exists()


def test_a_folder_where_everything_failed_can_be_used_again(clips: Path) -> None:
    table = write_table(clips, ("x", "c.mp4"))
    with pytest.raises(InputError, match="none of its 1 rows"):
        run(clips, table)
    assert json.loads((clips / "out" / FAILURES_NAME).read_text())["source"] == "c.mp4"
    report, _ = run(clips, write_table(clips, ("x", "a.mp4")))
    assert report.samples == 1
    assert not (clips / "out" / FAILURES_NAME).exists()
