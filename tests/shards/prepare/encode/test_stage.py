from __future__ import annotations

import json
import re
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline

from shards.dataset.index import index
from shards.dataset.left_out import LeftOut, write_left_out
from shards.dataset.merge import merge
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.output import writing
from shards.doctor.diagnose import diagnose
from shards.doctor.repair import repair
from shards.errors import InputError
from shards.formats.sample import Sample
from shards.geometry import Bucket, Scale
from shards.hashing import mix, sample_id
from shards.prepare.encode import stage, units
from shards.prepare.encode.models import fingerprint
from shards.prepare.encode.request import check_request, is_over
from shards.prepare.encode.stage import FAILURES_NAME, EncodeOptions, EncodeReport, encode
from shards.prepare.encode.stale import DEADLY
from shards.prepare.failures import Failure
from shards.prepare.media.video import cover, read_clip
from shards.prepare.tables.table import Row, read_table
from shards.prepare.work.trial import mark_deadly
from shards.prepare.work.workers import Worker
from shards.reader import Reader
from shards.storage import Folder, open_storage
from tests.support.clips import filmed, write_ramp
from tests.support.damage import flip
from tests.support.jobs import until
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
    assert not report.was_complete
    return report, open_dataset(folder / "out")


def counts(report: EncodeReport) -> dict[str, float]:
    return {bucket: sums[0] for bucket, sums in report.buckets.items()}


def samples(dataset: Dataset) -> dict[str, Sample]:
    with Reader(dataset) as reader:
        return {sample.key: sample for sample in reader.read(range(len(dataset.manifest)))}


def dataset_files(root: Path) -> list[Path]:
    """All files but those of the job."""
    return [path for path in root.rglob("*") if path.is_file() and ".encode" not in path.parts]


def dataset_bytes(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in dataset_files(root)}


def plain_latents(clip: np.ndarray, key: str, *purpose: int) -> torch.Tensor:
    """Latents as one would write them in a notebook with the unmodified classes, in one thread."""
    torch.set_num_threads(1)
    vae = AutoencoderKLLTXVideo.from_pretrained(tiny_model(), subfolder="vae")
    pixels = torch.stack([torch.from_numpy(frame.copy()) for frame in clip]).permute(3, 0, 1, 2).unsqueeze(0)
    generator = torch.Generator("cpu").manual_seed(int(mix(OPTIONS.seed, sample_id(key), *purpose)))
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
        write_ramp(tmp_path / f"r{name}.mp4", frames, colour=6 - number)
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
    assert counts(report) == {"128x64x9": 1, "112x64x9": 1}
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


def test_what_cannot_be_decoded_is_listed_and_the_rest_is_encoded(clips: Path) -> None:
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
    reasons = {entry["source"]: entry["reason"] for entry in listed}
    assert reasons["d.mp4"] == "its reference c.mp4: 5 frames, the clip has 12"
    assert reasons["b.mp4"] == "its reference bad.mp4: Invalid data found when processing input"


def test_pictures_and_clips_of_several_sizes_in_one_dataset(clips: Path) -> None:
    write_ramp(clips / "p.png", 1, 100, 64)
    write_ramp(clips / "w.mp4", 20, 96, 64, fps=12)
    table = write_table(clips, ("x", "p.png"), ("x", "a.mp4"), ("x", "w.mp4"))
    report, dataset = run(clips, table, Bucket.parse_list("64x64x1,96x64x1,64x64x9,96x64x17"))
    assert counts(report) == {"96x64x1": 1, "64x64x9": 1, "96x64x17": 1}
    assert report.buckets["96x64x1"] == [1, pytest.approx(64 / 100 * 96 / 64), 1.0]  # of a picture of 100x64
    assert report.buckets["96x64x17"] == [1, 1.0, 17 / 20]
    assert report.pictures == 0
    assert dataset.manifest.grid.tolist() == [[1, 4, 6], [3, 4, 4], [5, 4, 6]]
    assert dataset.manifest.fps.tolist() == [1.0, 24.0, 12.0]
    assert dataset.manifest.references.shape[1] == 0


def test_videos_that_become_pictures_are_counted(clips: Path) -> None:
    write_ramp(clips / "p.png", 1, 64, 64)
    table = write_table(clips, ("x", "p.png"), ("x", "a.mp4"), ("x", "c.mp4"))
    report, _ = run(clips, table, Bucket.parse_list("64x64x1"))
    assert (report.samples, report.pictures) == (3, 2)
    assert report.buckets == {"64x64x1": [3, 3.0, pytest.approx(1 + 1 / 9 + 1 / 5)]}


def test_a_dataset_has_a_folder_of_its_own_and_its_table_is_not_taken_for_one(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4")).rename(clips / "dataset.json")
    with pytest.raises(InputError) as error:
        encode(table, clips / "no model", clips / "sub/..", BUCKETS, options=OPTIONS)
    assert str(error.value) == (
        f"--out {clips}/sub/.. is the folder of dataset.json: give one that is the dataset's own, as "
        f"{clips}/sub/../encoded"
    )


@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_repair_left_out_stays_out_until_its_shard_is_made_again(clips: Path, damaged: bool) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4") for name in "abd"))
    _, dataset = run(clips, table, rows_per_shard=1)
    out, options = clips / "out", replace(OPTIONS, rows_per_shard=1)
    if damaged:
        flip(out, 0)
        repair(diagnose(out))
    else:
        checksum = f"{int(dataset.manifest.checksum[0]):016x}"
        write_left_out(open_storage(out), [LeftOut("shards/000000.tar", "a_mp4", checksum, "not finite")])
        index(out)
    write_ramp(clips / "d.mp4", 17, colour=5)
    _, dataset = run(clips, table, rows_per_shard=1)
    assert list(dataset.manifest.keys) == ["b_mp4", "d_mp4"]
    assert diagnose(out).sound
    (out / "shards/000000.tar").unlink()
    encode(table, tiny_model(), out, BUCKETS, options=options)
    assert ("a_mp4" in open_dataset(out).manifest.keys) == damaged


def test_an_unfinished_encoding_is_neither_repaired_nor_merged(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after a shard of a changed clip was put in place: the manifest has the old sample still."""
    table = write_table(clips, ("x", "a.mp4"), ("x", "b.mp4"))
    run(clips, table, rows_per_shard=1)
    more = clips / "more"
    encode(write_table(clips, ("x", "d.mp4")), tiny_model(), more, BUCKETS, options=OPTIONS)
    table = write_table(clips, ("x", "a.mp4"), ("x", "b.mp4"))
    write_ramp(clips / "a.mp4", 17, colour=5)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(clips, table, rows_per_shard=1)
    out, diagnosis = clips / "out", diagnose(clips / "out")
    for refused in (
        lambda: repair(diagnosis),
        lambda: merge([more], out),
        lambda: merge([out], clips / "all"),
    ):
        with pytest.raises(InputError, match=r"out: encoding is unfinished \(2 of 2 units\): run the same"):
            refused()
    run(clips, table, rows_per_shard=1)
    assert diagnose(out).sound
    assert len(open_dataset(out).manifest) == 2


def interrupt(*arguments: object) -> None:
    raise KeyboardInterrupt


def test_the_shard_of_rows_that_fail_now_goes_though_a_worker_was_killed_before_that(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(clips, ("x", "a.mp4"), ("x", "b.mp4"))
    run(clips, table, rows_per_shard=1)
    (clips / "a.mp4").write_bytes(b"no video")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "publish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(clips, table, rows_per_shard=1)
    assert (clips / "out/shards/000000.tar").exists()
    run(clips, table, rows_per_shard=1)
    assert not (clips / "out/shards/000000.tar").exists()


def test_the_manifest_is_written_when_no_other_command_writes(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, real, refused = open_storage(clips / "out"), stage.write_manifest, []

    def write_manifest(*arguments: Any) -> None:
        with pytest.raises(InputError, match="is being written by") as error, writing(storage):
            pass
        refused.append(error)
        real(*arguments)

    monkeypatch.setattr(stage, "write_manifest", write_manifest)
    table = write_table(clips, ("x", "a.mp4"))
    with ThreadPoolExecutor() as pool:
        with writing(storage):
            at_work = pool.submit(encode, table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS)
            until(lambda: storage.stat("shards/000000.tar") is not None, 60)
            time.sleep(0.5)
            assert not at_work.done()
            assert not storage.stat("manifest.parquet")
        assert at_work.result(60).samples == len(refused) == 1


@pytest.mark.parametrize("where", ["folder", "store"])
def test_shards_that_are_gone_or_cut_are_made_again_and_nothing_else_is_touched(
    clips: Path, bucket: str, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4") for name in "abcd"))
    out = clips / "out" if where == "folder" else f"{bucket}/out"
    options, storage = replace(OPTIONS, rows_per_shard=1), open_storage(out)
    encode(table, tiny_model(), out, BUCKETS, options=options)
    before = {entry.path: storage.read(entry.path) for entry in storage.list("shards")}
    kept = storage.stat("shards/000000.tar")
    storage.remove("shards/000003.tar")
    storage.write("shards/000001.tar", before["shards/000001.tar"][:-5])
    assert is_over(out, read_table(table), options) is False
    again = encode(table, tiny_model(), out, BUCKETS, options=options)
    assert (again.samples, again.was_complete) == (3, False)
    assert f"{out}: 2 shards made again: gone or cut\n" in capsys.readouterr().err
    assert {entry.path: storage.read(entry.path) for entry in storage.list("shards")} == before
    assert storage.stat("shards/000000.tar") == kept
    assert is_over(out, read_table(table), options) is True
    storage.remove("manifest.parquet")
    assert not encode(table, tiny_model(), out, BUCKETS, options=options).was_complete
    assert len(open_dataset(out).manifest) == 3
    # What cannot be made again is said.
    storage.remove("shards/000003.tar")
    (clips / "d.mp4").unlink()
    with pytest.raises(InputError) as error:
        encode(table, tiny_model(), out, BUCKETS, options=options)
    assert str(error.value) == (
        f"{out}/shards/000003.tar is gone or cut, and cannot be made again, as {clips}/d.mp4 is gone too: bring one "
        "of them back"
    )


def test_what_other_commands_wrote_into_the_manifest_is_told_and_stays(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"), ("x", "b.mp4"))
    run(clips, table, rows_per_shard=1)
    out, options = clips / "out", replace(OPTIONS, rows_per_shard=1)
    more = clips / "more"
    encode(write_table(clips, ("x", "d.mp4")), tiny_model(), more, BUCKETS, options=options)
    shutil.copy(more / "shards/000000.tar", out / "shards/more.tar")
    index(out, append=True)
    table = write_table(clips, ("x", "a.mp4"), ("x", "b.mp4"))
    again = encode(table, tiny_model(), out, BUCKETS, options=options)
    assert (again.was_complete, again.samples, again.listed) == (True, 2, 3)
    (out / "shards/000001.tar").unlink()
    encode(table, tiny_model(), out, BUCKETS, options=options)
    assert list(open_dataset(out).manifest.keys) == ["a_mp4", "b_mp4", "d_mp4"]


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
    _, dataset = run(clips, table, rows_per_shard=1)
    assert len(dataset.manifest.shards) == 3
    assert index(clips / "out").fingerprint == dataset.manifest.fingerprint


def test_same_inputs_same_bytes_and_another_seed_other_latents(clips: Path) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4", f"r{name}.mp4") for name in "abd"))
    for out, seed in (("one", 5), ("two", 5), ("three", 6)):
        options = replace(OPTIONS, seed=seed, reshape_mode="random")
        encode(table, tiny_model(), clips / out, BUCKETS, options=options)
    files = sorted(path.relative_to(clips / "one") for path in dataset_files(clips / "one"))
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
        ({"reshape_mode": "left"}, BUCKETS, "--reshape-mode 'left'"),
        ({"dtype": "int8"}, BUCKETS, "--dtype 'int8'"),
        ({"device": "cuda:77"}, BUCKETS, "--device 'cuda:77'"),
        ({"max_text_tokens": 0}, BUCKETS, "max_text_tokens 0"),
        ({"reference_downscale": 3}, BUCKETS, "--buckets 64x64x9: its references would be 21"),
        ({}, (), "no resolution bucket given"),
        ({}, Bucket.parse_list("64x64x10"), "--buckets 64x64x10 does not fit the VAE"),
        (
            {},
            Bucket.parse_list("64x64x17"),
            "none of its 1 rows.*a.mp4: 9 frames, the shortest video bucket 64x64x17 needs 17",
        ),
    ],
)
def test_unusable_requests_are_refused(
    clips: Path, changes: dict, buckets: tuple[Bucket, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(clips, write_table(clips, ("x", "a.mp4")), buckets, **changes)
    assert not (clips / "out" / "dataset.json").exists()


def test_a_dataset_that_no_job_made_is_never_written_over_and_no_model_is_opened(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"))
    run(clips, table)
    shutil.rmtree(clips / "out" / ".encode")
    for gone in ("dataset.json", "manifest.parquet", None):
        with pytest.raises(InputError) as error:
            encode(table, clips / "no model", clips / "out", BUCKETS, options=OPTIONS)
        assert str(error.value) == (
            f"{clips / 'out'} already holds a dataset, or a part of one: give another folder, or remove it first"
        )
        if gone:
            (clips / "out" / gone).unlink()
    assert (clips / "out/shards/000000.tar").exists()


def test_a_complete_job_says_so_and_changes_nothing(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"), ("x", "c.mp4"))
    first, _ = run(clips, table)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in dataset_files(clips / "out")}
    again = encode(table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS)
    assert again.was_complete
    assert again == replace(first, was_complete=True, seconds=again.seconds)
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in dataset_files(clips / "out")
    }


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 6}, "seed was 5 when this work began and is 6 now"),
        ({"windows": 2}, "windows was 1 when this work began and is 2 now"),
        ({"dtype": "bfloat16"}, 'dtype was "float32" when this work began and is "bfloat16" now'),
        ({"vae_batch": 2}, "vae_batch was 1"),
        ({"id_token": "TOK"}, 'id_token was null when this work began and is "TOK" now'),
    ],
)
def test_a_job_is_not_continued_with_what_would_give_other_bytes(clips: Path, change: dict, key: str) -> None:
    table = write_table(clips, ("x", "a.mp4"))
    run(clips, table)
    with pytest.raises(InputError, match=re.escape(f"{clips}/out/.encode/job.json: {key}")):
        encode(table, tiny_model(), clips / "out", BUCKETS, options=replace(OPTIONS, **change))
    with pytest.raises(InputError, match="buckets was"):
        encode(table, tiny_model(), clips / "out", Bucket.parse_list("64x64x5"), options=OPTIONS)
    for rows, differs in (
        ([("another caption", "a.mp4")], "table was"),
        ([("x", "a.mp4")] * 2, "rows was 1"),
    ):
        write_table(clips, *rows)
        with pytest.raises(InputError, match=differs) as error:
            encode(table, clips / "no model", clips / "out", BUCKETS, options=OPTIONS)
        assert str(error.value).endswith(
            "now: encode the table as it was. New rows: put them into a table of their own, encode it into another "
            "folder and join both with `ltx-shards merge`. Other captions, or fewer rows: encode into another folder"
        )


def test_results_of_several_kinds_of_hardware_are_told_and_another_kind_of_device_is_refused(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(clips, ("x", "a.mp4"), ("x", "b.mp4"))
    kinds = iter(["NVIDIA A", "NVIDIA B"])
    monkeypatch.setattr(units, "hardware", lambda device: next(kinds))
    report, _ = run(clips, table, rows_per_shard=1)
    assert report.hardware == ["NVIDIA A", "NVIDIA B"]
    described = clips / "out/.encode/job.json"
    described.write_text(described.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(InputError, match='device was "cuda" when this work began and is "cpu" now'):
        encode(table, tiny_model(), clips / "out", BUCKETS, options=replace(OPTIONS, rows_per_shard=1))


def test_the_same_model_in_another_place_is_the_same(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"))
    run(clips, table)
    moved = shutil.copytree(tiny_model(), clips / "model")
    assert encode(table, moved, clips / "out", BUCKETS, options=OPTIONS).was_complete


def test_it_may_be_continued_on_other_means(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"))
    run(clips, table)
    options = replace(OPTIONS, decode_threads=1, swap_models=True, patience_s=60.0)
    assert encode(table, tiny_model(), clips / "out", BUCKETS, options=options).was_complete


def test_a_folder_where_everything_failed_can_be_used_again(clips: Path) -> None:
    table = write_table(clips, ("x", "c.mp4"))
    with pytest.raises(InputError, match="none of its 1 rows"):
        run(clips, table)
    assert json.loads((clips / "out" / FAILURES_NAME).read_text())["source"] == "c.mp4"
    report, _ = run(clips, write_table(clips, ("x", "a.mp4")))
    assert report.samples == 1
    assert not (clips / "out" / FAILURES_NAME).exists()


def test_beginning_anew_may_be_killed_at_any_change(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, other = write_table(clips, ("x", "c.mp4")), Bucket.parse_list("64x64x5")
    with pytest.raises(InputError, match="none of its 1 rows"):
        run(clips, table)
    left = 0

    def counted(real: Any) -> Any:
        def change(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*arguments)

        return change

    for changes in range(20):
        out = clips / f"out{changes}"
        shutil.copytree(clips / "out", out)
        left = changes
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "remove", counted(Folder.remove))
            patch.setattr(Folder, "write", counted(Folder.write))
            try:
                check_request(table, out, other, OPTIONS)
            except KeyboardInterrupt:
                killed = True
            else:
                killed = False
        check_request(table, out, other, OPTIONS)
        assert open_storage(out).list(".encode") == []
        if not killed:
            break
    assert changes >= 3


def test_a_missing_file_is_an_error_before_anything_begins(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"), ("x", "gone.mp4", "ra.mp4"))
    with pytest.raises(InputError) as error:
        encode(table, clips / "no model", clips / "out", BUCKETS, options=OPTIONS)
    assert str(error.value) == (
        f"{table}: 1 media file(s) not found, looked for relative to {clips}: gone.mp4. "
        "Correct the paths or take those rows out."
    )
    assert not (clips / "out").exists()


def test_a_disk_that_goes_away_later_stops_the_worker_and_is_no_failure(clips: Path) -> None:
    """It must not leave half a dataset that counts as complete."""
    disk = clips / "disk"
    disk.mkdir()
    (clips / "d.mp4").rename(disk / "d.mp4")
    table = write_table(clips, ("x", "a.mp4"), ("x", "disk/d.mp4"), ("x", "b.mp4"))
    options = replace(OPTIONS, rows_per_shard=1)
    (disk / "d.mp4").rename(clips / "elsewhere.mp4")
    with pytest.raises(InputError, match=r"1 media file\(s\) not found.*: disk/d.mp4"):
        encode(table, tiny_model(), clips / "out", BUCKETS, options=options, worker=Worker(1, 2))
    (clips / "elsewhere.mp4").rename(disk / "d.mp4")
    report = encode(table, tiny_model(), clips / "out", BUCKETS, options=options)
    assert (report.samples, report.failures) == (3, ())


def test_a_single_file_that_goes_missing_later_is_a_failure_until_it_is_back(clips: Path) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4") for name in "abd"))
    encode(table, tiny_model(), clips / "whole", BUCKETS, options=OPTIONS)
    (clips / "d.mp4").rename(clips / "elsewhere.mp4")
    late = Worker(1, 2)
    report = encode(table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS, worker=late)
    assert report.samples == 2
    assert report.failures == (Failure("d.mp4", "No such file or directory"),)
    (clips / "elsewhere.mp4").rename(clips / "d.mp4")
    report = encode(table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS)
    assert (report.samples, report.failures, report.was_complete) == (3, (), False)
    assert dataset_bytes(clips / "out") == dataset_bytes(clips / "whole")


def test_a_file_that_was_replaced_is_noticed_and_its_shard_made_again(
    clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset is then the one that a first run gives, in every byte; a row that failed is in it."""
    table = write_table(clips, *(("x", f"{name}.mp4", f"r{name}.mp4") for name in "abcd"))
    options = replace(OPTIONS, rows_per_shard=1)
    encode(table, tiny_model(), clips / "out", BUCKETS, options=options)
    kept = (clips / "out/shards/000000.tar").stat().st_mtime_ns
    for name in ("c.mp4", "rc.mp4"):
        write_ramp(clips / name, 14, colour=3)
    write_ramp(clips / "rb.mp4", 10, colour=2)
    again = encode(table, tiny_model(), clips / "out", BUCKETS, options=options)
    assert (again.samples, again.failures, again.was_complete) == (4, (), False)
    assert f"{clips}/out: 2 shards made again: files changed" in capsys.readouterr().err
    assert (clips / "out/shards/000000.tar").stat().st_mtime_ns == kept
    encode(table, tiny_model(), clips / "fresh", BUCKETS, options=options)
    assert dataset_bytes(clips / "out") == dataset_bytes(clips / "fresh")
    # Now the other way round: what cannot be encoded any more leaves.
    (clips / "b.mp4").write_bytes(b"not a clip")
    assert encode(table, tiny_model(), clips / "out", BUCKETS, options=options).samples == 3
    assert not (clips / "out/shards/000001.tar").exists()


def test_a_dataset_outlives_its_footage(clips: Path) -> None:
    table = write_table(clips, ("x", "a.mp4"), ("x", "c.mp4"))
    run(clips, table)
    (clips / "a.mp4").unlink()
    write_ramp(clips / "c.mp4", 20)
    options = replace(OPTIONS, retry_failed=True)
    again = encode(table, tiny_model(), clips / "out", BUCKETS, options=options)
    assert (again.samples, again.was_complete) == (1, True)


@pytest.mark.parametrize("killed", [False, True])
def test_failed_rows_are_tried_again_where_that_is_asked_for(
    clips: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """A row that killed its process is first tried in another one."""
    reason = "disk error"
    table = write_table(clips, *(("x", f"{name}.mp4") for name in "abd"))
    real = units.decode

    def failing(row: Row, **options: Any) -> Any:
        return iter([Failure(row.source, reason)]) if row.source == "b.mp4" else real(row, **options)

    with monkeypatch.context() as patch:
        patch.setattr(units, "decode", failing)
        report, _ = run(clips, table)
    assert report.failures == (Failure("b.mp4", reason),)
    if killed:
        mark_deadly(open_storage(clips / "out"), DEADLY, ["b.mp4"])
    assert encode(table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS).was_complete
    tried: list[str] = []
    monkeypatch.setattr(units, "deadly", lambda _, rows, patience: tried.extend(r.source for r in rows) or {})
    again = encode(table, tiny_model(), clips / "out", BUCKETS, options=replace(OPTIONS, retry_failed=True))
    assert (again.samples, again.failures) == (3, ())
    assert tried == (["b.mp4"] if killed else [])
    encode(table, tiny_model(), clips / "fresh", BUCKETS, options=OPTIONS)
    assert dataset_bytes(clips / "out") == dataset_bytes(clips / "fresh")


def test_empty_and_cut_captions_are_counted(clips: Path) -> None:
    table = write_table(
        clips, ("", "a.mp4"), (" ", "b.mp4"), ("red " * 100, "d.mp4"), ("red " * 100, "c.mp4")
    )
    report, dataset = run(clips, table, max_text_tokens=32)
    assert (report.empty_captions, report.cut_captions, len(report.failures)) == (["a.mp4", "b.mp4"], 1, 1)
    assert dataset.manifest.text_tokens.tolist() == [1, 1, 32]


def test_a_dataset_may_have_several_references_of_smaller_size(clips: Path) -> None:
    path = clips / "table.csv"
    path.write_text("caption,media_path,edges,depth\nx,a.mp4,ra.mp4,b9.mp4;c9.png\nx,b.mp4,,\n")
    write_ramp(clips / "b9.mp4", 9, colour=5)
    write_ramp(clips / "c9.png", 1, colour=6)
    report, dataset = run(clips, path, reference_column="edges,depth", reference_downscale=2)
    assert (report.samples, report.failures) == (2, ())
    manifest = dataset.manifest
    assert manifest.references.tolist() == [[[3, 2, 2], [3, 2, 2], [1, 2, 2]], [[0, 0, 0]] * 3]
    references = samples(dataset)["a_mp4"].references
    small = cover(32, 32)
    expected = [
        (read_clip(clips / "ra.mp4", 9, small), (1,)),
        (read_clip(clips / "b9.mp4", 9, small), (1, 1)),
    ]
    expected.append((read_clip(clips / "c9.png", 1, small), (1, 2)))
    for found, (frames, purpose) in zip(references, expected, strict=True):
        assert torch.equal(found, plain_latents(frames, "a_mp4", *purpose))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_worker_that_stood_still_past_its_lease_changes_nothing(
    clips: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, where: str, recorded: bool
) -> None:
    """It made other bytes; it stood still before or after it had recorded them, and another ended the job."""
    table = write_table(clips, ("x", "a.mp4", "ra.mp4"), ("x", "b.mp4", "rb.mp4"))
    out = clips / "out" if where == "folder" else f"{bucket}/out"
    storage = open_storage(out)
    late: list[bool] = []

    def all_by_another() -> None:
        late.append(True)
        storage.remove(".encode/claims/000000")
        encode(table, tiny_model(), out, BUCKETS, options=OPTIONS)

    def encode_unit(*arguments: Any, **named: Any) -> dict[str, Any]:
        if late:
            return real_encode_unit(*arguments, **named)
        changed = [replace(OPTIONS, seed=99) if isinstance(one, EncodeOptions) else one for one in arguments]
        made = real_encode_unit(*changed, **named)
        if not recorded:
            all_by_another()
        return made

    def publish(*arguments: Any) -> None:
        if not late:
            all_by_another()
        real_publish(*arguments)

    real_encode_unit, real_publish = stage.encode_unit, stage.publish
    monkeypatch.setattr(stage, "encode_unit", encode_unit)
    monkeypatch.setattr(stage, "publish", publish)
    report = encode(table, tiny_model(), out, BUCKETS, options=OPTIONS)
    monkeypatch.undo()
    assert late == [True]
    assert report.samples == 2
    assert storage.list(".encode/attempts") == []
    seed = 99 if recorded else OPTIONS.seed
    encode(table, tiny_model(), clips / "fresh", BUCKETS, options=replace(OPTIONS, seed=seed))
    for path, data in dataset_bytes(clips / "fresh").items():
        assert storage.read(path) == data


def test_the_next_clips_are_decoded_while_one_is_encoded(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one thread: the second clip is there while the first is in the VAE."""
    table = write_table(clips, *(("x", f"{name}.mp4") for name in "abd"))
    order: list[str] = []
    second = threading.Event()
    real_decode, real_encode = units.decode, units.encode_batch

    def decode(row: Row, **options: Any) -> Any:
        for part in real_decode(row, **options):
            order.append(f"decoded {row.source}")
            if row.source == "b.mp4":
                second.set()
            yield part

    def encode_batch(vae: Any, batch: Any, *arguments: Any) -> Any:
        assert second.wait(20), "decoding waits for the VAE"
        order.append(f"encoded {batch[0].clip.row.source}")
        return real_encode(vae, batch, *arguments)

    monkeypatch.setattr(units, "decode", decode)
    monkeypatch.setattr(units, "encode_batch", encode_batch)
    run(clips, table, decode_threads=1)
    assert order.index("decoded b.mp4") < order.index("encoded a.mp4")
    assert [entry for entry in order if entry.startswith("encoded")] == [
        f"encoded {name}.mp4" for name in "abd"
    ]


def test_workers_that_come_before_the_first_one_wait_where_all_rows_failed_the_last_time(
    clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, loading = stage._load, threading.Lock()

    def load(*arguments: Any) -> Any:
        with loading:  # transformers does not load in two threads at once
            return real(*arguments)

    monkeypatch.setattr(stage, "_load", load)
    table = write_table(clips, ("x", "c.mp4"))
    with pytest.raises(InputError, match="none of its 1 rows"):
        run(clips, table)
    table = write_table(clips, ("x", "a.mp4"))
    with ThreadPoolExecutor() as pool:
        early = pool.submit(
            encode, table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS, worker=Worker(1, 2)
        )
        time.sleep(0.3)
        assert not early.done()
        first = encode(table, tiny_model(), clips / "out", BUCKETS, options=OPTIONS, worker=Worker(0, 2))
        assert early.result(60).samples == first.samples == 1


def test_windows_are_samples_of_their_own(clips: Path) -> None:
    write_ramp(clips / "long.mp4", 30)
    table = write_table(clips, ("a cat", "long.mp4"), ("a dog", "a.mp4"))
    report, dataset = run(clips, table, windows=None)
    assert report.samples == 4
    found = samples(dataset)
    assert list(found) == ["long_mp4-w0", "long_mp4-w1", "long_mp4-w2", "a_mp4-w0"]
    whole = read_clip(clips / "long.mp4", 30)
    for number, start in enumerate((0, 10, 21)):
        key = f"long_mp4-w{number}"
        assert torch.equal(found[key].latents, plain_latents(whole[start : start + 9], key, 0))
    with tarfile.open(clips / "out/shards/000000.tar") as tar:
        metas = [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]
    assert [(meta["source"], meta["start"]) for meta in metas] == [
        ("long.mp4", 0),
        ("long.mp4", 10),
        ("long.mp4", 21),
        ("a.mp4", 0),
    ]


def test_clips_encoded_together_are_close_to_those_encoded_alone(clips: Path) -> None:
    write_ramp(clips / "p.png", 1, 64, 64)
    table = write_table(
        clips, *(("x", f"{name}.mp4", f"r{name}.mp4") for name in "abd"), ("x", "p.png"), ("x", "b.mp4")
    )
    buckets = Bucket.parse_list("64x64x9,64x64x1")
    encode(table, tiny_model(), clips / "alone", buckets, options=OPTIONS)
    for out in ("together", "again"):
        encode(table, tiny_model(), clips / out, buckets, options=replace(OPTIONS, vae_batch=3))
    alone, together = samples(open_dataset(clips / "alone")), samples(open_dataset(clips / "together"))
    assert len(alone) == 5
    assert alone.keys() == together.keys()
    for key, sample in alone.items():
        assert torch.allclose(sample.latents.float(), together[key].latents.float(), atol=0.05)
        assert len(sample.references) == len(together[key].references)
        for one, other in zip(sample.references, together[key].references, strict=True):
            assert torch.allclose(one.float(), other.float(), atol=0.05)
    for path in dataset_files(clips / "together"):
        assert path.read_bytes() == (clips / "again" / path.relative_to(clips / "together")).read_bytes()


def test_a_unit_whose_rows_all_fail_writes_no_shard(clips: Path) -> None:
    table = write_table(clips, ("x", "c.mp4"), ("x", "a.mp4"), ("x", "c.mp4"), ("x", "b.mp4"))
    report, dataset = run(clips, table, rows_per_shard=1)
    assert dataset.manifest.shards == ("shards/000001.tar", "shards/000003.tar")
    assert [failure.source for failure in report.failures] == ["c.mp4", "c.mp4"]
    assert index(clips / "out").fingerprint == dataset.manifest.fingerprint


def test_a_dataset_in_an_object_store_has_the_same_bytes(clips: Path, bucket: str) -> None:
    table = write_table(clips, *(("x", f"{name}.mp4", f"r{name}.mp4") for name in "abcd"))
    options = replace(OPTIONS, rows_per_shard=2)
    here = encode(table, tiny_model(), clips / "out", BUCKETS, options=options)
    there = encode(table, tiny_model(), f"{bucket}/out", BUCKETS, options=options)
    assert there == replace(here, out=f"{bucket}/out", seconds=there.seconds)
    storage = open_storage(f"{bucket}/out")
    for path in dataset_files(clips / "out"):
        assert storage.read(path.relative_to(clips / "out").as_posix()) == path.read_bytes()
    assert encode(table, tiny_model(), f"{bucket}/out", BUCKETS, options=options).was_complete
