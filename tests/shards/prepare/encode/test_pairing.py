from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.feed.conditioning import reference_scale
from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.prepare.encode.pairing import check_downscale, pair
from shards.prepare.media.video import ClipError, ClipInfo, probe
from tests.support.clips import write_ramp

SCALE = Scale(4, 16)
NTSC = 30000 / 1001


@pytest.mark.parametrize(
    ("target", "reference", "bucket", "step", "frames"),
    [
        ((12, 24.0), (12, 24.0), 9, 1, 9),
        ((12, 24.0), (12, 24000 / 1001), 9, 1, 9),
        ((12, 30.0), (12, NTSC), 9, 1, 9),
        ((12, 24.0), (1, 24.0), 9, 0, 1),
        ((1, 1.0), (1, 1.0), 1, 0, 1),
        ((33, 24.0), (17, 12.0), 33, 2, 17),
        ((33, 24.0), (16, 12.0), 17, 2, 9),
        ((34, 24.0), (17, 12.0), 33, 2, 17),
        ((40, 24.0), (13, 8.0), 25, 3, 9),
        ((40, 24.0), (14, 8.0), 13, 3, 5),
        ((40, 24.0), (20, 12.0), 1, 2, 1),
    ],
)
def test_references_that_fit_are_ones_training_accepts(
    tmp_path: Path,
    target: tuple[int, float],
    reference: tuple[int, float],
    bucket: int,
    step: int,
    frames: int,
) -> None:
    path = write_ramp(tmp_path / "r.mp4", reference[0], fps=reference[1])
    found = pair(ClipInfo(target[0], 64, 64, target[1]), Bucket(64, 64, bucket), path, SCALE)
    assert found == (path, step, frames)
    grids = (SCALE.grid(number, 64, 64) for number in (bucket, frames))
    reference_scale(*grids, key="k")


@pytest.mark.parametrize(
    ("target", "reference", "bucket", "reason"),
    [
        ((12, 24.0), (11, 24.0), 9, "11 frames, the clip has 12"),
        ((12, 24.0), (13, 24.0), 9, "13 frames, the clip has 12"),
        (
            (12, 24.0),
            (12, 25.0),
            9,
            "25 frames per second, the clip has 24: neither equal nor a whole fraction of it",
        ),
        (
            (12, 30.0),
            (10, 24.0),
            9,
            "24 frames per second, the clip has 30: neither equal nor a whole fraction of it",
        ),
        (
            (12, 12.0),
            (24, 24.0),
            9,
            "24 frames per second, the clip has 12: neither equal nor a whole fraction of it",
        ),
        (
            (40, 24.0),
            (17, 12.0),
            9,
            "17 frames at 12 frames per second, the clip has 40 at 24: 20 would cover the same time",
        ),
        (
            (40, 24.0),
            (20, 12.0),
            13,
            "a frame for 2 of the clip's, and the VAE cannot encode 1 in 2 of the 13 frames of bucket 64x64x13",
        ),
        (
            (1, 1.0),
            (12, 24.0),
            1,
            "24 frames per second, the clip has 1: neither equal nor a whole fraction of it",
        ),
    ],
)
def test_others_are_refused_with_both_values(
    tmp_path: Path, target: tuple[int, float], reference: tuple[int, float], bucket: int, reason: str
) -> None:
    path = write_ramp(tmp_path / "r.mp4", reference[0], fps=reference[1])
    assert probe(path).frames == reference[0]
    with pytest.raises(ClipError) as error:
        pair(ClipInfo(target[0], 64, 64, target[1]), Bucket(64, 64, bucket), path, SCALE)
    assert (error.value.path, error.value.reason) == (path, reason)


def test_smaller_references_must_fit_the_vae_in_every_bucket() -> None:
    buckets = Bucket.parse_list("64x64x9,96x64x9")
    check_downscale(buckets, 1, SCALE)
    check_downscale(buckets, 2, SCALE)
    with pytest.raises(InputError) as error:
        check_downscale(buckets, 4, SCALE)
    assert str(error.value) == (
        "--buckets 96x64x9: its references would be 24x16 pixels at --reference-downscale 4, and the VAE takes "
        "multiples of 16"
    )
    with pytest.raises(
        InputError, match=r"--buckets 64x64x9: its references would be 21\.3333x21\.3333 pixels"
    ):
        check_downscale(buckets, 3, SCALE)
