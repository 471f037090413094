from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.hashing import mix, sample_id, splitmix64, unit

WORDS = st.integers(0, 2**64 - 1)
GAMMA = 0x9E3779B97F4A7C15


@pytest.mark.parametrize(
    ("seed", "outputs"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_splitmix64_gives_the_published_sequences(seed: int, outputs: list[int]) -> None:
    states = np.array([(seed + n * GAMMA) % 2**64 for n in range(3)], dtype=np.uint64)
    assert splitmix64(states).tolist() == outputs


@given(st.lists(WORDS, min_size=2, max_size=50, unique=True), st.integers(-(2**70), 2**70))
def test_distinct_ids_never_share_a_key(ids: list[int], seed: int) -> None:
    keys = mix(seed, 3, np.array(ids, dtype=np.uint64))
    assert len(set(keys.tolist())) == len(ids)


@given(st.lists(WORDS, min_size=1, max_size=20), WORDS)
def test_an_array_hashes_like_its_elements(ids: list[int], seed: int) -> None:
    together = mix(seed, np.array(ids, dtype=np.uint64))
    assert together.tolist() == [int(mix(seed, number)) for number in ids]


def test_order_count_and_value_of_the_arguments_matter() -> None:
    hashes = [
        int(mix(*values)) for values in ((1,), (2,), (1, 2), (2, 1), (1, 0), (0, 1), (1, 2, 0), (0,), (0, 0))
    ]
    assert len(set(hashes)) == len(hashes)


def test_integers_of_any_size_and_sign_are_taken_modulo_2_64() -> None:
    assert int(mix(-1)) == int(mix(2**64 - 1)) == int(mix(np.int64(-1)))
    assert int(mix(2**64 + 5, 7)) == int(mix(5, 7))


def test_wrapping_is_silent_and_arguments_are_not_changed() -> None:
    words = np.array([2**64 - 1, 5], dtype=np.uint64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix(2**64 - 1, words)
        splitmix64(np.uint64(2**64 - 1))
    assert words.tolist() == [2**64 - 1, 5]


def test_mix_of_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="at least one"):
        mix()


@given(WORDS)
def test_unit_keeps_the_top_53_bits_exactly(word: int) -> None:
    value = float(unit(np.uint64(word)))
    assert 0 <= value < 1
    assert value * 2**53 == word >> 11


@pytest.mark.parametrize(("key", "expected"), [("", 0x2D06800538D394C2), ("a", 0xE6C632B61E964E1F)])
def test_sample_id_is_xxh3_64_of_the_key(key: str, expected: int) -> None:
    assert sample_id(key) == expected


def test_sample_id_hashes_utf8() -> None:
    assert sample_id("é") != sample_id("e")
    assert 0 <= sample_id("日本") < 2**64
