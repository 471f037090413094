from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.geometry import Bucket
from shards.prepare.encode.assign import Clip, Window
from shards.prepare.encode.cut import Decoded
from shards.prepare.encode.latents import batches, encode_batch
from shards.prepare.encode.models import load_vae
from shards.prepare.media.video import ClipInfo
from shards.prepare.tables.table import Row
from tests.support.models import tiny_model

SMALL, LARGE = Bucket(32, 32, 5), Bucket(64, 32, 5)


def decoded(key: str, bucket: Bucket = SMALL, references: int = 0) -> Decoded:
    frames = np.full((bucket.frames, bucket.height, bucket.width, 3), 100, np.uint8)
    clip = Clip(Row(key, "", key, Path(key)), ClipInfo(5, 32, 32, 24.0), bucket, (), ())
    return Decoded(clip, Window(key, 0), frames, (frames,) * references, 24.0)


@given(st.lists(st.sampled_from([SMALL, LARGE]), max_size=12), st.integers(1, 4))
def test_batches_hold_every_sample_once_and_one_bucket_each(buckets: list[Bucket], most: int) -> None:
    given_samples = [decoded(str(number), bucket) for number, bucket in enumerate(buckets)]
    groups = list(batches(iter(given_samples), most))
    keys = [sample.window.key for group in groups for sample in group]
    assert sorted(keys, key=int) == [str(number) for number in range(len(buckets))]
    assert all(len({sample.clip.bucket for sample in group}) == 1 for group in groups)
    assert all(len(group) <= most for group in groups)
    assert sum(len(group) < most for group in groups) <= 2, "one unfilled group per bucket"
    if most == 1:
        assert keys == [str(number) for number in range(len(buckets))]


def test_noise_depends_on_the_sample_and_on_the_place_among_its_references() -> None:
    vae = load_vae(tiny_model(), torch.float32)
    both = encode_batch(vae, [decoded("a", references=2), decoded("b")], seed=3, most=1)
    assert list(both[0]) == ["latents", "reference_latents", "reference_latents_2"]
    tensors = [*both[0].values(), *both[1].values()]
    for number, one in enumerate(tensors):
        assert not any(torch.equal(one, other) for other in tensors[number + 1 :])
    (alone,) = encode_batch(vae, [decoded("b")], seed=3, most=1)
    assert torch.equal(alone["latents"], both[1]["latents"])
    (other_seed,) = encode_batch(vae, [decoded("b")], seed=4, most=1)
    assert not torch.equal(alone["latents"], other_seed["latents"])


def test_too_little_memory_is_told_with_ways_out() -> None:
    vae = load_vae(tiny_model(), torch.float32)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    vae.encoder.register_forward_pre_hook(fail)
    with pytest.raises(InputError) as error:
        encode_batch(vae, [decoded("a"), decoded("b")], seed=3, most=2)
    assert str(error.value) == (
        "2 clip(s) of 32x32x5 do not fit the memory of cpu: run the same command with --swap-models, or on a GPU with "
        "more memory, which keeps what is done; or write to another folder with --vae-batch 1, --text-encoder-8bit "
        "or --vae-tiling, which give other bytes"
    )
