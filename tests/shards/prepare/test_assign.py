from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.prepare.assign import Decoded, Failure, Job, assign, check_buckets, choose_bucket, decode
from shards.prepare.table import Row
from shards.prepare.video import ClipInfo
from tests.support.clips import write_ramp

BUCKETS = Bucket.parse_list("64x64x1,64x64x9,96x64x9,64x96x9,128x96x17,128x128x17,512x512x17")


@pytest.mark.parametrize(
    ("frames", "width", "height", "bucket"),
    [
        (1, 4000, 3000, "64x64x1"),
        (8, 64, 64, "64x64x1"),
        (9, 64, 64, "64x64x9"),
        (16, 1920, 1080, "96x64x9"),
        (16, 1080, 1920, "64x96x9"),
        (17, 96, 64, "128x96x17"),
        (400, 640, 480, "128x96x17"),
        (40, 130, 130, "128x128x17"),
        (40, 1000, 1000, "512x512x17"),
    ],
)
def test_longest_bucket_first_then_aspect_then_area(
    frames: int, width: int, height: int, bucket: str
) -> None:
    assert str(choose_bucket(ClipInfo(frames, width, height, 24.0), BUCKETS)) == bucket


@given(st.integers(1, 40), st.integers(16, 2000), st.integers(16, 2000), st.permutations(BUCKETS))
def test_choice_does_not_depend_on_the_order_of_buckets(
    frames: int, width: int, height: int, shuffled: list[Bucket]
) -> None:
    info = ClipInfo(frames, width, height, 24.0)
    chosen = choose_bucket(info, BUCKETS)
    assert chosen is not None
    assert chosen == choose_bucket(info, shuffled)
    assert chosen.frames <= frames


def test_a_clip_that_fills_no_bucket_has_none() -> None:
    assert choose_bucket(ClipInfo(8, 64, 64, 24.0), BUCKETS[1:]) is None


@pytest.mark.parametrize("bucket", ["64x64x8", "72x64x9", "64x40x9"])
def test_buckets_must_fit_the_vae(bucket: str) -> None:
    check_buckets(Bucket.parse_list("64x64x9,96x64x13"), Scale(4, 16))
    with pytest.raises(InputError, match=f"bucket {bucket} does not fit the VAE"):
        check_buckets(Bucket.parse_list(f"64x64x9,{bucket}"), Scale(4, 16))
    with pytest.raises(InputError, match="no resolution bucket"):
        check_buckets((), Scale(4, 16))


def row(folder: Path, name: str, reference: str | None = None) -> Row:
    return Row(name.replace(".", "_"), "", name, folder / name, folder / reference if reference else None)


def test_every_row_gives_a_job_or_a_reason_in_order(tmp_path: Path) -> None:
    write_ramp(tmp_path / "good.mp4", 12)
    write_ramp(tmp_path / "short.mp4", 5)
    write_ramp(tmp_path / "still.png", 1)
    (tmp_path / "broken.mp4").write_bytes(b"no")
    rows = [
        row(tmp_path, "short.mp4"),
        row(tmp_path, "good.mp4"),
        row(tmp_path, "broken.mp4"),
        row(tmp_path, "still.png"),
        row(tmp_path, "good.mp4", "short.mp4"),
        row(tmp_path, "good.mp4", "broken.mp4"),
        row(tmp_path, "good.mp4", "good.mp4"),
    ]
    found = list(assign(rows, Bucket.parse_list("64x64x9")))
    assert [type(entry) for entry in found] == [Failure, Job, Failure, Failure, Failure, Failure, Job]
    reasons = [entry.reason for entry in found if isinstance(entry, Failure)]
    for reason, words in zip(
        reasons,
        [
            "5 frames, the shortest bucket needs 9",
            "",
            "add for example 64x64x1",
            "short.mp4 has 5 frames, 9",
            "reference broken.mp4",
        ],
        strict=True,
    ):
        assert words in reason
    assert found[1].info == ClipInfo(12, 64, 64, 24.0)


@pytest.mark.parametrize("mode", ["center", "random"])
def test_clip_and_reference_are_cut_at_the_same_place(tmp_path: Path, mode: str) -> None:
    write_ramp(tmp_path / "a.mp4", 9, 128, 64)
    write_ramp(tmp_path / "b.mp4", 12, 128, 64)
    lefts = set()
    for key in ("k1", "k2", "k3"):
        job = Job(
            Row(key, "", "a.mp4", tmp_path / "a.mp4", tmp_path / "b.mp4"),
            ClipInfo(9, 128, 64, 24.0),
            Bucket(64, 64, 9),
        )
        clip = decode(job, 7, mode)
        assert isinstance(clip, Decoded)
        assert clip.reference is not None
        assert clip.target.shape == clip.reference.shape == (9, 64, 64, 3)
        assert np.abs(clip.target[0].astype(int) - clip.reference[0]).max() < 8
        assert np.array_equal(clip.target, decode(job, 7, mode).target)
        lefts.add(int(clip.target[0, :, 0].sum()))
    assert len(lefts) == (1 if mode == "center" else 3)
