"""What cannot be encoded or written, with the exact message a user sees."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from shards.dataset.opened import open_dataset
from shards.errors import InputError
from shards.geometry import Bucket
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.stage import EncodeOptions, encode
from tests.support import disks
from tests.support.clips import PALETTE, ramp, write_lossless, write_ramp
from tests.support.models import tiny_model

BUCKETS = Bucket.parse_list("64x64x9")
OPTIONS = EncodeOptions(device="cpu", rows_per_shard=1, max_text_tokens=32)


def table_of(folder: Path, *rows: dict[str, str]) -> Path:
    path = folder / "table.json"
    path.write_text(json.dumps([{"caption": "x"} | row for row in rows]))
    return path


def test_nothing_that_is_wrong_with_a_clip_stops_the_rest(tmp_path: Path) -> None:
    """All wrong ones in one table, with one that is right at the end and some that only look odd."""
    expected = {
        "zero.mp4": "the file is empty",
        "text.mp4": "Invalid data found when processing input",
        "zero.png": f"cannot identify image file '{tmp_path}/zero.png'",
        "half.mp4": "moov atom not found",
        "short.mp4": "5 frames, the shortest video bucket 64x64x9 needs 9",
        "picture.png": "a picture needs a bucket of 1 frame: add for example 64x64x1",
    }
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.mp4").write_text("not a clip")
    whole = write_ramp(tmp_path / "good.mp4", 9).read_bytes()
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    write_ramp(tmp_path / "short.mp4", 5)
    write_ramp(tmp_path / "picture.png", 1)
    write_lossless(tmp_path / "odd.mkv", ramp(9, 75, 51, PALETTE[1]), [40 * n for n in range(9)], 25)
    uneven = [0, 50, 100, 110, 120, 130, 140, 240, 340]
    write_lossless(tmp_path / "uneven.mkv", ramp(9, 64, 64, PALETTE[2]), uneven, 25)
    names = [*expected, "odd.mkv", "uneven.mkv", "good.mp4"]
    table = table_of(tmp_path, *({"media_path": name} for name in names))
    report = encode(table, tiny_model(), tmp_path / "out", BUCKETS, options=OPTIONS)
    reasons = {failure.source: failure.reason for failure in report.failures}
    assert reasons.pop("half.mp4")  # in the words of whatever FFmpeg was built in
    del expected["half.mp4"]
    assert reasons == expected
    manifest = open_dataset(tmp_path / "out").manifest
    assert list(manifest.keys) == ["odd_mkv", "uneven_mkv", "good_mp4"]
    assert manifest.fps.tolist() == pytest.approx([25.0, 8 / 0.34, 24.0])


def test_one_clip_twice_is_two_samples(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 9)
    table = table_of(tmp_path, {"media_path": "a.mp4"}, {"media_path": "a.mp4", "caption": "y"})
    encode(table, tiny_model(), tmp_path / "out", BUCKETS, options=OPTIONS)
    first, second = open_dataset(tmp_path / "out").manifest.keys
    assert first == "a_mp4"
    assert second.startswith("a_mp4-")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the dataset."""
    with disks.small_disk(tmp_path / "disk", "64k") as root:
        yield root


def clips(folder: Path, count: int) -> Path:
    for number in range(count):
        write_ramp(folder / f"{number}.mp4", 9, colour=number % len(PALETTE))
    return table_of(folder, *({"media_path": f"{number}.mp4"} for number in range(count)))


def files(root: Path) -> dict[str, bytes]:
    """The dataset's, without those of the job."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".encode" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_full_disk_keeps_what_is_done_and_a_later_run_completes(tmp_path: Path, small_disk: Path) -> None:
    table = clips(tmp_path, 8)
    with pytest.raises(InputError) as error:
        encode(table, tiny_model(), small_disk, BUCKETS, options=OPTIONS)
    full = rf"{small_disk}: No space left on device: {small_disk}/\S+; what is done is kept: make room and run .*"
    assert re.fullmatch(full, str(error.value))
    kept = files(small_disk)
    assert 0 < len(kept) < 8
    disks.remount(small_disk, "size=4m")
    encode(table, tiny_model(), small_disk, BUCKETS, options=OPTIONS)
    encode(table, tiny_model(), tmp_path / "out", BUCKETS, options=OPTIONS)
    assert files(small_disk) == files(tmp_path / "out")
    assert kept.items() <= files(small_disk).items()


def test_a_read_only_disk_is_said(tmp_path: Path, small_disk: Path) -> None:
    disks.remount(small_disk, "ro")
    with pytest.raises(InputError) as error:
        encode(clips(tmp_path, 1), tiny_model(), small_disk / "out", BUCKETS, options=OPTIONS)
    assert str(error.value) == (
        f"{small_disk}/out: Read-only file system: {small_disk}/out; "
        "what is done is kept: see to the permissions and run the same command again"
    )


def test_a_folder_that_may_not_be_written_is_said() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = clips(folder, 1)
        model = shutil.copytree(tiny_model(), folder / "model")
        (folder / "out").mkdir()
        for path in (folder, model, *model.rglob("*")):
            path.chmod(0o755)
        with _nobody(), pytest.raises(InputError) as error:
            encode(table, model, folder / "out", BUCKETS, options=OPTIONS)
    assert str(error.value) == (
        f"{name}/out: Permission denied: {name}/out/.encode; "
        "what is done is kept: see to the permissions and run the same command again"
    )


@contextmanager
def _nobody() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_latents_that_are_not_finite_leave_the_clip_out(tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model(), tmp_path / "model")
    vae = load_vae(model, torch.float32)
    vae.encoder.conv_out.conv.bias[0] = torch.inf
    vae.save_pretrained(model / "vae")
    with pytest.raises(InputError) as error:
        encode(clips(tmp_path, 2), model, tmp_path / "out", BUCKETS, options=OPTIONS)
    assert str(error.value) == (
        f"{tmp_path}/table.json: none of its 2 rows could be encoded; the first, 0.mp4: the VAE gave numbers that "
        "are not finite in torch.float32. All are listed in failures.jsonl of the output folder."
    )
