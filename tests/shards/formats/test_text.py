"""Whatever the bytes of a shard are, a scan ends, and with a ShardError or an InputError where they are wrong."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError, ShardError
from shards.formats.header import read_header, sample_geometry
from shards.formats.mds import COLUMNS, scan_mds
from shards.formats.meta import rate_of, read_meta
from shards.formats.row import Row
from shards.formats.sample import parse, payload
from shards.formats.tar import scan_shard
from shards.formats.text import key_fault, parse_json
from shards.storage import Folder
from tests.support import mosaic
from tests.support.damage import write_tar

META = json.dumps({"format": 1, "fps": 24.0, "caption": "a"}).encode()
BODY = payload({"latents": torch.ones(2, 1, 2, 3), "prompt_embeds": torch.ones(3, 5)})
DEEP = b"[" * 100_000
HEADER = json.loads(BODY[8 : 8 + struct.unpack("<Q", BODY[:8])[0]])
DATA = BODY[8 + struct.unpack("<Q", BODY[:8])[0] :]


def body_of(header: Any) -> bytes:
    """A payload with another header; text stays as it is."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data)) + data + DATA


def with_shape(name: str, *shape: Any) -> bytes:
    return body_of(HEADER | {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}})


SPOILED_HEADERS = {
    "deep": body_of(DEEP),
    "endless size": body_of(b'{"latents": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 0]}}'),
    "endless word": with_shape("latents", float("inf")),
    "not a number": with_shape("latents", float("nan"), 0),
    "huge and empty": with_shape("prompt_embeds", 2**40, 0),
    "just too large": with_shape("prompt_embeds", 2**31, 0),
    "long and of no width": with_shape("prompt_embeds", 2**30, 0),
    "below zero twice": body_of(
        HEADER | {"extra": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}
    ),
    "half": with_shape("latents", 0.5),
    "a word": with_shape("latents", "1"),
    "yes": with_shape("latents", True),
    "many dimensions": with_shape("extra", *[1] * 1000, 0),
    "offsets below zero": body_of({"latents": {"dtype": "F32", "shape": [0], "data_offsets": [-8, -8]}}),
    "three offsets": body_of({"latents": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0, 0]}}),
    "a list for a dtype": body_of({"latents": {"dtype": [], "shape": [0], "data_offsets": [0, 0]}}),
    "a list": body_of([1]),
    "null": body_of(None),
    "null for a tensor": body_of({"latents": None}),
    "another encoding": body_of(json.dumps(HEADER).encode("utf-16")),
}


@pytest.mark.parametrize("name", SPOILED_HEADERS)
def test_headers_that_describe_no_tensors_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):
        sample_geometry(read_header(SPOILED_HEADERS[name]))
    write_tar(tmp_path / "0.tar", [("a.json", META), ("a.safetensors", SPOILED_HEADERS[name])])
    with pytest.raises(ShardError, match=r"^0.tar: sample 'a': member: expected a readable sample, found "):
        scan_shard(Folder(tmp_path), "0.tar")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (DEEP, "the JSON is nested too deep"),
        (b'{"a": ' + DEEP, "the JSON is nested too deep"),
        (b'{"fps": 1e999}', "needs a positive fps, found inf"),
        (b'{"fps": Infinity}', "needs a positive fps, found inf"),
        (b'{"fps": NaN}', "needs a positive fps, found nan"),
        (b'{"fps": 1%s}' % (b"0" * 400), "needs a positive fps, found 1000"),
        (b'{"fps": 1%s}' % (b"0" * 5000), "Exceeds the limit"),
        (b'{"fps": "24"}', "needs a positive fps, found '24'"),
        (b'{"fps": 24, "format": 2}', "has format 2, this code reads up to 1"),
        ('{"fps": 24, "caption": "ä"}'.encode("latin-1"), "can't decode byte 0xe4"),
        (META.decode().encode("utf-16"), "can't decode byte 0xff"),
    ],
)
def test_json_that_cannot_be_used_is_refused(tmp_path: Path, meta: bytes, message: str) -> None:
    write_tar(tmp_path / "0.tar", [("a.json", meta), ("a.safetensors", BODY)])
    with pytest.raises(ShardError, match=rf"^0.tar: sample 'a': member: .*{message}"):
        scan_shard(Folder(tmp_path), "0.tar")


@pytest.mark.parametrize("value", [b"null", b'"mp4"', b"1e999", b"[]", b"1.5"])
def test_another_tools_format_says_nothing(value: bytes) -> None:
    values = read_meta(b'\xef\xbb\xbf{"fps": 12, "format": %s}' % value)
    assert rate_of(values) == 12.0


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("a", ""),
        ("v1.2/ä b..c", ""),
        ("a//b", ""),
        ("", "is not a file's name"),
        ("a\0", "is not a file's name"),
        ("/a", "leads out of its folder"),
        ("..", "leads out of its folder"),
        ("a/../../b", "leads out of its folder"),
        ("a\udcff", "is not UTF-8 text"),
    ],
)
def test_keys_that_may_be_no_path_say_why(key: str, fault: str) -> None:
    assert key_fault(key) == fault


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in (("a\udcff.json", META), ("a\udcff.safetensors", BODY)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError) as error:
        scan_shard(Folder(tmp_path), "0.tar")
    assert str(error.value) == (
        "0.tar: key 'a\\udcff' is not UTF-8 text: write the shard again with plain names"
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([2**31, 2**63, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=6,
)
headers = st.dictionaries(
    st.sampled_from(["latents", "prompt_embeds", "reference_latents", "extra", "__metadata__"]),
    json_values
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "I8"]) | json_values,
            "shape": st.lists(st.integers(-1, 4) | json_values, max_size=5) | json_values,
            "data_offsets": st.lists(st.integers(-1, 100) | json_values, max_size=3) | json_values,
        }
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    header=st.fixed_dictionaries({}, optional=dict.fromkeys(HEADER, st.none())) | headers, keep=st.booleans()
)
def test_no_header_does_more_than_be_refused(header: dict[str, Any], keep: bool) -> None:
    body = body_of(HEADER | header if keep else header)
    try:
        found = read_header(body)
        sample_geometry(found)
    except ValueError:
        return
    assert {name: tuple(tensor.shape) for name, tensor in parse(body).items()} == {
        name: entry.shape for name, entry in found.items()
    }


@given(st.binary(max_size=40) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_json_does_more_than_be_refused(data: bytes) -> None:
    try:
        parse_json(data)
        rate_of(read_meta(data))
    except ValueError:
        return


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, bytes, bool]]:
    """Places (0 to 1) of a file, what is put there, and whether over what is there or before it."""
    return draw(
        st.lists(
            st.tuples(
                st.floats(0, 1),
                st.binary(min_size=1, max_size=8)
                | st.sampled_from([b"\xff" * 12, b"\x80" + b"\xff" * 11, bytes(512)]),
                st.booleans(),
            ),
            min_size=1,
            max_size=4,
        )
    )


def edited(data: bytes, changes: list[tuple[float, bytes, bool]]) -> bytes:
    for place, new, over in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + len(new) * over :]
    return data


def mend_checksums(data: bytes) -> bytes:
    """Every block that begins as a tar's header gets the checksum of one."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


def scanned(scan: Any, root: Path, name: str) -> list[Row]:
    try:
        return scan(Folder(root), name)
    except (ShardError, InputError):
        return []


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tars")
    names = ["a", "b/" + "long" * 40, "c"]
    write_tar(root / "whole.tar", [(f"{key}.{kind}", data) for key in names for kind, data in
                                   (("json", META), ("safetensors", BODY), ("mp4", b"video"))])  # fmt: skip
    assert len(scan_shard(Folder(root), "whole.tar")) == 3
    return root


@pytest.mark.timeout(120)
@settings(max_examples=300, deadline=None)
@given(changes=edits(), mended=st.booleans())
def test_a_tar_with_any_bytes_changed_ends(
    tars: Path, changes: list[tuple[float, bytes, bool]], mended: bool
) -> None:
    data = edited((tars / "whole.tar").read_bytes(), changes)
    (tars / "0.tar").write_bytes(mend_checksums(data) if mended else data)
    for row in scanned(scan_shard, tars, "0.tar"):
        assert 0 < row.offset < row.offset + row.nbytes <= len(data)


FIELDS = {"name": (0, 100), "size": (124, 136), "type": (156, 157), "magic": (257, 263), "prefix": (345, 500)}


@pytest.mark.timeout(120)
@settings(max_examples=300, deadline=None)
@given(
    member=st.integers(0, 9),
    field=st.sampled_from(sorted(FIELDS)),
    value=st.binary(min_size=1, max_size=12)
    | st.integers(-(2**40), 2**40).map(lambda number: number.to_bytes(12, "big", signed=True)),
)
def test_a_tar_with_any_field_of_a_header_changed_ends(
    tars: Path, member: int, field: str, value: bytes
) -> None:
    data = bytearray((tars / "whole.tar").read_bytes())
    headers = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    begin, end = FIELDS[field]
    place = headers[member % len(headers)]
    data[place + begin : place + end] = value[: end - begin].ljust(end - begin, b"\0")
    (tars / "0.tar").write_bytes(mend_checksums(bytes(data)))
    scanned(scan_shard, tars, "0.tar")


@pytest.fixture(scope="module")
def mds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mosaic.require()
    root = tmp_path_factory.mktemp("mds")
    samples = [{"key": key, "json": META.decode(), "safetensors": BODY} for key in "abc"]
    (mosaic.write(root / "out", COLUMNS, samples) / "shard.00000.mds").rename(root / "whole.mds")
    assert len(scan_mds(Folder(root), "whole.mds")) == 3
    return root


@pytest.mark.timeout(120)
@settings(max_examples=300, deadline=None)
@given(changes=edits())
def test_an_mds_shard_with_any_bytes_changed_ends(
    mds: Path, changes: list[tuple[float, bytes, bool]]
) -> None:
    (mds / "0.mds").write_bytes(edited((mds / "whole.mds").read_bytes(), changes))
    scanned(scan_mds, mds, "0.mds")


@settings(max_examples=100, deadline=None)
@given(described=json_values | st.fixed_dictionaries(
    {f"column_{part}": st.lists(json_values, min_size=3, max_size=3) for part in ("names", "encodings", "sizes")}
))  # fmt: skip
def test_an_mds_description_of_anything_is_refused(mds: Path, described: Any) -> None:
    text = json.dumps(described).encode()
    start = 8 + len(text)
    (mds / "1.mds").write_bytes(struct.pack("<II", 0, start) + text)
    with pytest.raises(ShardError, match=r"^1.mds: (description of the columns|columns)"):
        scan_mds(Folder(mds), "1.mds")
