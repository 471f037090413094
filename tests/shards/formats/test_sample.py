from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from shards.formats.sample import parse, payload, views

dims = st.integers(1, 5)
dtypes = st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64])


@st.composite
def samples(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    channels, dtype = draw(dims), draw(dtypes)
    names = ["latents"] + ["reference_latents"] * draw(st.booleans())
    tensors = {name: torch.randn(channels, draw(dims), draw(dims), draw(dims)).to(dtype) for name in names}
    return tensors | {"prompt_embeds": torch.randn(draw(st.integers(0, 5)), draw(dims)).to(draw(dtypes))}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@settings(max_examples=60, deadline=None)
@given(samples())
def test_payloads_round_trip_here_and_in_safetensors(tensors: dict[str, torch.Tensor]) -> None:
    data = payload(tensors)
    assert same(parse(bytearray(data)), tensors)
    assert same(load(data), tensors)
    assert payload(tensors) == data


def small() -> dict[str, torch.Tensor]:
    return {"latents": torch.randn(2, 1, 2, 3), "prompt_embeds": torch.randn(4, 5)}


def test_parsed_tensors_share_the_buffer() -> None:
    buffer = torch.frombuffer(bytearray(payload(small())), dtype=torch.uint8)
    tensors = parse(buffer)
    buffer.fill_(0)
    assert all((tensor == 0).all() for tensor in tensors.values())


def test_read_only_bytes_are_copied_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    tensors = small()
    parsed = parse(payload(tensors))
    parsed["latents"].zero_()
    assert not recwarn.list
    assert torch.equal(parsed["prompt_embeds"], tensors["prompt_embeds"])


@pytest.mark.parametrize("start", [1, 4, 64])
def test_views_work_at_any_start(start: int) -> None:
    from shards.formats.header import read_header

    tensors = small()
    data = payload(tensors)
    buffer = torch.frombuffer(bytearray(start) + bytearray(data), dtype=torch.uint8)
    assert same(views(buffer, start, read_header(data)), tensors)


def test_views_of_tensors_that_are_not_contiguous_are_stored_right() -> None:
    tensors = small() | {"latents": torch.randn(3, 2, 4, 2).permute(1, 3, 0, 2)}
    assert same(parse(payload(tensors)), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 3)}, r"latents \[C, F, H, W\] is needed, found \(2, 3\)"),
        ({"latents": torch.zeros(2, 0, 3, 3)}, "latents"),
        ({"prompt_embeds": torch.zeros(3)}, "prompt_embeds"),
        ({"reference_latents": torch.zeros(3, 1, 1, 1)}, "reference_latents has 3 channels, latents 2"),
        ({"latents": torch.zeros(2, 1, 2, 3, dtype=torch.int32)}, "dtype I32"),
    ],
)
def test_tensors_that_are_no_sample_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        payload(small() | change)


@pytest.mark.parametrize("missing", ["latents", "prompt_embeds"])
def test_a_missing_tensor_is_named(missing: str) -> None:
    tensors = small()
    del tensors[missing]
    with pytest.raises(ValueError, match=f"{missing} .* is needed, found none"):
        payload(tensors)


@given(st.data())
def test_a_payload_cut_anywhere_is_refused(data: st.DataObject) -> None:
    whole = save(small())
    with pytest.raises(ValueError):
        parse(whole[: data.draw(st.integers(0, len(whole) - 1))])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_refused_with_a_value_error(noise: bytes, framed: bool) -> None:
    data = len(noise).to_bytes(8, "little") + noise if framed else noise
    try:
        parse(data)
    except ValueError:
        return
    assert not noise.strip() or parse(data) == {}


def test_long_headers_are_not_kept() -> None:
    """Foreign payloads may carry any amount of metadata, of which nothing is used twice."""
    from shards.formats.header import _remembered, read_header

    _remembered.cache_clear()
    for number in range(20):
        read_header(save(small(), {"workflow": "x" * 100_000 + str(number)}))
    assert _remembered.cache_info().currsize == 0
    read_header(save(small(), {"workflow": "x"}))
    assert _remembered.cache_info().currsize == 1
