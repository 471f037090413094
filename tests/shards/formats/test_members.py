"""Which members of a tar are taken, and that no header leads the walk astray."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from shards.errors import ShardError
from shards.formats.sample import payload
from shards.formats.tar import scan_shard
from shards.storage import Folder

BODY = payload({"latents": torch.ones(2, 1, 2, 3), "prompt_embeds": torch.ones(3, 5)})
META = json.dumps({"fps": 24}).encode()


def member(name: str, body: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(body), kind, "a.json"
    return info, body


def write(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> None:
    with tarfile.open(folder / "0.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for info, body in members:
            tar.addfile(info, io.BytesIO(body))


def sample(key: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(f"{key}.json", META), member(f"{key}.safetensors", BODY)]


def change_size(header: bytearray, size: int) -> None:
    """A size below zero in a header of 512 bytes, in base 256, with the header's checksum made good."""
    header[124:136] = size.to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)


def spoil(folder: Path, number: int, size: int) -> None:
    path = folder / "0.tar"
    with tarfile.open(path) as tar:
        place = tar.getmembers()[number].offset
    data = bytearray(path.read_bytes())
    header = data[place : place + 512]
    change_size(header, size)
    data[place : place + 512] = header
    path.write_bytes(data)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("size", [-1, -512, -1024, -2048, -(1 << 60)])
def test_a_size_below_zero_does_not_lead_back_for_ever(tmp_path: Path, number: int, size: int) -> None:
    write(tmp_path, *sample("a"), *sample("b"))
    spoil(tmp_path, number, size)
    with pytest.raises(ShardError, match=r"^0.tar:"):
        scan_shard(Folder(tmp_path), "0.tar")


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE, b"Z"])
def test_nor_do_members_that_are_no_files(tmp_path: Path, kind: bytes) -> None:
    write(tmp_path, *sample("a"), member("x", b"", kind), *sample("b"))
    spoil(tmp_path, 2, -2048)
    with pytest.raises(ShardError, match=r"^0.tar:"):
        scan_shard(Folder(tmp_path), "0.tar")


def test_a_pax_header_may_not_lead_back_either(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for info, body in sample("a"):
            tar.addfile(info, io.BytesIO(body))
        info, body = member("b.json", META)
        info.pax_headers = {"size": "-2048"}
        tar.addfile(info, io.BytesIO(body))
    with pytest.raises(ShardError, match=r"^0.tar: sample 'a'"):
        scan_shard(Folder(tmp_path), "0.tar")


@pytest.mark.parametrize(
    "kind",
    [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE],
)
def test_links_devices_and_folders_are_passed_over(tmp_path: Path, kind: bytes) -> None:
    strange = [member("b.json", kind=kind), member("b.safetensors", kind=kind)]
    write(tmp_path, *strange, *sample("a"), *strange)
    assert [row.key for row in scan_shard(Folder(tmp_path), "0.tar")] == ["a"]


def test_a_link_is_no_member_of_a_sample(tmp_path: Path) -> None:
    write(tmp_path, *sample("a"), member("b.json", kind=tarfile.LNKTYPE), sample("b")[1])
    with pytest.raises(ShardError, match=r"^0.tar: sample 'b': member b.json: expected one, found none"):
        scan_shard(Folder(tmp_path), "0.tar")


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    """Its bytes are not there in one piece, for the reader to take by offset."""
    write(tmp_path, *sample("a"))
    path = tmp_path / "0.tar"
    data = bytearray(path.read_bytes())
    data[156:157] = tarfile.GNUTYPE_SPARSE
    data[483:495] = b"%011o\0" % len(META)
    header = data[:512]
    header[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(header)
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"member: expected all its bytes, found 'a.json' as a sparse file"):
        scan_shard(Folder(tmp_path), "0.tar")
