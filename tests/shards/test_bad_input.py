"""What a user or a disk got wrong, the line they read and the exit code; each through the real command or the API."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load, save

from shards.cli import main
from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from shards.dataset.opened import open_dataset
from shards.dataset.selection import renamed
from shards.errors import InputError, ShardError
from shards.formats.sample import payload
from shards.formats.tar import ShardWriter, write_shard
from shards.reader import Reader
from shards.storage import Folder
from tests.support.damage import (
    cut,
    edit_description,
    edit_json,
    flip,
    members,
    replace_member,
    shard_of,
    write_tar,
)
from tests.support.scenarios import sound_dataset

NOBODY = 65534
ADVICE = "; `ltx-shards doctor {root} --repair` keeps the samples that are whole"


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["ltx-shards", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


def manifest_names(name: str) -> Callable[[Path], None]:
    """A manifest whose first shard is called so."""

    def spoil(root: Path) -> None:
        manifest = read_manifest(root)
        write_manifest(root, renamed(manifest, [name, *manifest.shards[1:]]))

    return spoil


def member_names(change: Callable[[str], str]) -> Callable[[Path], None]:
    """Other names for the members of the first shard."""

    def spoil(root: Path) -> None:
        path = shard_of(root, 0)
        write_tar(path, [(change(name), body) for name, body in members(path)])

    return spoil


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Other tensors in the second sample."""
    return lambda root: replace_member(root, 1, "safetensors", lambda body: save(change(load(body))))


def newer_manifest(root: Path) -> None:
    table = pq.read_table(root / MANIFEST_NAME)
    pq.write_table(table.replace_schema_metadata({"ltx_shards_manifest": "2"}), root / MANIFEST_NAME)


def hollow_manifest(root: Path) -> None:
    table = pq.read_table(root / MANIFEST_NAME)
    values = table["fps"].to_pylist()
    place = table.schema.get_field_index("fps")
    pq.write_table(table.set_column(place, "fps", [[None, *values[1:]]]), root / MANIFEST_NAME)


def only_other_files(root: Path) -> None:
    for path in (root / "shards").glob("*.tar"):
        write_tar(path, [("a.mp4", b"video"), ("b.txt", b"text")])


def empty_manifest(root: Path) -> None:
    write_manifest(root, Manifest.from_rows([]))


class Case(NamedTuple):
    """`command` before the folder; `message` is the whole line, with {root} for the folder."""

    spoil: Callable[[Path], object]
    command: str
    message: str


CASES: dict[str, Case] = {
    "a manifest that names a file above": Case(
        manifest_names("../x.tar"),
        "stats",
        "{root}/manifest.parquet names a shard outside the dataset's folder: ../x.tar",
    ),
    "a manifest that names an absolute path": Case(
        manifest_names("/etc/passwd"),
        "stats",
        "{root}/manifest.parquet names a shard outside the dataset's folder: /etc/passwd",
    ),
    "members above": Case(
        member_names("../../{}".format),
        "index",
        "shards/000000.tar: member '../../clips/00' leads out of its folder: write the tar again with plain names",
    ),
    "members at the root": Case(
        member_names("/{}".format),
        "index",
        "shards/000000.tar: member '/clips/00' leads out of its folder: write the tar again with plain names",
    ),
    "a tar cut inside a sample": Case(
        lambda root: cut(root, 1),
        "index",
        "shards/000000.tar: sample 'clips/01': bytes of a member: expected {nbytes}, found {half}" + ADVICE,
    ),
    "a tar of no bytes": Case(
        lambda root: shard_of(root, 0).write_bytes(b""),
        "index",
        "shards/000000.tar: tar structure (last sample read is named): expected a whole tar, found empty file"
        + ADVICE,
    ),
    "integer latents": Case(
        tensors(lambda all: all | {"latents": all["latents"].int()}),
        "index",
        "shards/000000.tar: sample 'clips/01': member: expected a readable sample, "
        "found tensor 'latents' has dtype I32; BF16, F16, F32, F64 are read" + ADVICE,
    ),
    "flat latents": Case(
        tensors(lambda all: all | {"latents": all["latents"].flatten()}),
        "index",
        "shards/000000.tar: sample 'clips/01': member: expected a readable sample, "
        "found latents [C, F, H, W] is needed, found (96,)" + ADVICE,
    ),
    "a json that ends early": Case(
        lambda root: replace_member(root, 1, "json", lambda _: b"{"),
        "index",
        "shards/000000.tar: sample 'clips/01': member: expected a readable sample, "
        "found Expecting property name enclosed in double quotes: line 1 column 2 (char 1)" + ADVICE,
    ),
    "a json without a rate": Case(
        lambda root: edit_json(root, 1, fps=None),
        "index",
        "shards/000000.tar: the json of sample 'clips/01' has no fps: give the clips' rate with --fps",
    ),
    "a json of a newer version": Case(
        lambda root: edit_json(root, 1, format=9),
        "index",
        "shards/000000.tar: sample 'clips/01': member: expected a readable sample, "
        "found the json member has format 9, this code reads up to 1" + ADVICE,
    ),
    "a key in two shards": Case(
        lambda root: shutil.copy(shard_of(root, 0), root / "shards/zz.tar"),
        "index",
        "key 'clips/00' appears twice, in shards/000000.tar and shards/zz.tar; keys must be unique",
    ),
    "a key twice in one shard": Case(
        lambda root: write_tar(
            shard_of(root, 0), members(shard_of(root, 0)) + members(shard_of(root, 0))[:2]
        ),
        "index",
        "key 'clips/00' appears twice, in shards/000000.tar and shards/000000.tar; keys must be unique",
    ),
    "keys with a dot": Case(
        member_names(lambda name: name.replace("0.", "0.v1.")),
        "index",
        "shards/000000.tar: sample 'clips/00': member clips/00.json: expected one, "
        "found none; the name clips/00.v1.safetensors has a second dot, and a key ends at the first" + ADVICE,
    ),
    "dataset.json of another model": Case(
        lambda root: edit_description(root, channels=128),
        "index",
        "{root}: dataset.json says channels 128, the shards hold 4 (shards/000000.tar, sample 'clips/00'): "
        "it belongs to another model",
    ),
    "dataset.json of a newer version": Case(
        lambda root: edit_description(root, version=7),
        "doctor",
        "{root}/dataset.json has version 7, this code reads up to 1: update ltx-dist-trainer",
    ),
    "a manifest of a newer version": Case(
        newer_manifest,
        "doctor",
        "{root}/manifest.parquet has version 2, this code reads up to 1: update ltx-dist-trainer",
    ),
    "a manifest with holes": Case(
        hollow_manifest,
        "stats",
        "{root}/manifest.parquet is not a readable manifest (column fps has rows without a value): "
        "rebuild it with `ltx-shards index {root}`",
    ),
    "a manifest of no samples": Case(
        empty_manifest, "stats", "{root} holds no samples: manifest.parquet is empty; encode some clips first"
    ),
    "shards of no samples": Case(
        only_other_files,
        "index",
        "{root}: its 3 shards hold no sample: a sample is a .json and a .safetensors of one name",
    ),
    "no shards": Case(
        lambda root: shutil.rmtree(root / "shards"),
        "doctor",
        "{root}/shards holds no shard: there is nothing to look at",
    ),
    "no shards to index": Case(
        lambda root: shutil.rmtree(root / "shards"),
        "index",
        "{root}/shards holds no .tar file: give the folder that contains shards/",
    ),
    "no folder": Case(shutil.rmtree, "doctor", "dataset folder {root} does not exist"),
    "two descriptions": Case(
        lambda root: None, "index --like x --scale 8x32", "give --like or --scale, not both"
    ),
    "a scale that is none": Case(
        lambda root: None,
        "index --scale 8",
        "--scale '8': frames and pixels a side of one latent cell, as 8x32",
    ),
    "a rate of nothing": Case(lambda root: None, "index --fps 0", "--fps 0.0: it must be positive"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_message_is_one_line_and_the_exit_code_2(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    root = sound_dataset(tmp_path / "data")
    nbytes = int(read_manifest(root).nbytes[1])
    before = (root / MANIFEST_NAME).read_bytes()
    case.spoil(root)
    code, out, err = run(*case.command.split(), root)
    values = {"root": root, "nbytes": nbytes, "half": nbytes // 2}
    assert err == f"error: {case.message.format(**values)}\n"
    assert (code, out) == (2, "")
    if case.command == "index" and "manifest" not in name:
        assert (root / MANIFEST_NAME).read_bytes() == before, "a failed index leaves the manifest as it was"


def read(root: Path, row: int) -> None:
    with Reader(open_dataset(root), threads=1) as reader:
        reader.read([row])


def test_a_flipped_bit_is_met_by_the_reader_and_by_the_doctor(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    expected = int(open_dataset(root).manifest.checksum[1])
    flip(root, 1)
    with pytest.raises(ShardError) as error:
        read(root, 1)
    found = str(error.value).rpartition(" ")[2]
    assert str(error.value) == (
        f"shards/000000.tar: sample 'clips/01': xxh3_64 checksum: expected {expected:016x}, found {found}"
    )
    code, out, _ = run("doctor", root, "--json")
    (finding,) = json.loads(out)["findings"]
    assert (code, finding["examples"][0]) == (
        1,
        {
            "shard": "shards/000000.tar",
            "key": "clips/01",
            "detail": f"{expected:016x} in the manifest, found {found}",
        },
    )


def test_a_tar_cut_short_is_met_by_the_reader_and_by_the_doctor(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    nbytes = int(read_manifest(root).nbytes[1])
    cut(root, 1)
    with pytest.raises(ShardError) as error:
        read(root, 1)
    assert str(error.value) == (
        "shards/000000.tar: sample 'clips/01': bytes before the end of the file: "
        f"expected {nbytes}, found {nbytes // 2}"
    )
    read(root, 0)
    code, out, _ = run("doctor", root, "--json")
    kinds = {finding["kind"]: finding["count"] for finding in json.loads(out)["findings"]}
    assert (code, kinds) == (1, {"cut": 3, "structure": 1})


def test_the_manifest_of_another_dataset_is_met_by_the_reader_and_by_the_doctor(tmp_path: Path) -> None:
    root, other = sound_dataset(tmp_path / "a"), sound_dataset(tmp_path / "b", seed=1)
    shutil.copy(other / MANIFEST_NAME, root / MANIFEST_NAME)
    with pytest.raises(
        ShardError, match=r"^shards/000000.tar: sample 'clips/00': xxh3_64 checksum: expected"
    ):
        read(root, 0)
    code, out, _ = run("doctor", root)
    assert code == 1
    assert "every sample of the shard differs from its checksum: written again, or another dataset's" in out
    assert run("index", root)[0] == 0
    assert run("doctor", root)[0] == 0


def test_a_manifest_that_leads_out_is_not_followed_by_the_doctor(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    manifest_names("../secret.tar")(root)
    code, out, _ = run("doctor", root, "--json")
    finding = json.loads(out)["findings"][0]
    assert (code, finding["kind"], finding["examples"][0]["detail"]) == (
        1,
        "manifest",
        f"{root}/manifest.parquet names a shard outside the dataset's folder: ../secret.tar",
    )
    assert run("doctor", root, "--repair")[0] == 0
    assert len(open_dataset(root).manifest) == 12


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("a.v1", "key 'a.v1' contains '.', where WebDataset would cut it; use another character"),
        ("/a", "key '/a' is not usable as a file name inside a tar"),
        ("../a", "key '../a' contains '.', where WebDataset would cut it; use another character"),
    ],
)
def test_keys_that_others_would_misread_are_not_written(tmp_path: Path, key: str, message: str) -> None:
    body = payload({"latents": torch.randn(2, 1, 2, 2), "prompt_embeds": torch.randn(2, 4)})
    with pytest.raises(InputError) as error:
        write_shard(Folder(tmp_path), "shards/0.tar", [(key, {"fps": 24.0}, body)])
    assert str(error.value) == message
    assert not list(tmp_path.rglob("*.*"))


def test_a_key_is_written_once(tmp_path: Path) -> None:
    body = payload({"latents": torch.randn(2, 1, 2, 2), "prompt_embeds": torch.randn(2, 4)})
    with ShardWriter(tmp_path) as writer:
        writer.add("a", {"fps": 24.0}, body)
        with pytest.raises(InputError) as error:
            writer.add("a", {"fps": 24.0}, body)
    assert str(error.value) == "key 'a' was added twice; keys must be unique in a dataset"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount")
    options = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if not mounted or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: a full disk; mounting a small tmpfs needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, leave: int) -> None:
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(free.f_bavail * free.f_bsize - leave))


def test_a_full_disk_stops_the_writer_and_leaves_no_half_shard(small_disk: Path) -> None:
    body = payload({"latents": torch.randn(8, 4, 8, 8), "prompt_embeds": torch.randn(2, 4)})

    def write() -> None:
        with ShardWriter(small_disk) as writer:
            for number in range(60):
                writer.add(str(number), {"fps": 24.0}, body)

    with pytest.raises(OSError, match="No space left on device") as error:
        write()
    assert error.value.filename == str(small_disk / "shards/000000.tar")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_full_disk_stops_an_index_which_leaves_the_old_manifest(small_disk: Path) -> None:
    root = sound_dataset(small_disk / "data")
    before = (root / MANIFEST_NAME).read_bytes()
    fill(small_disk, leave=0)
    code, out, err = run("index", root)
    assert (code, out, err) == (2, "", f"error: {root}/manifest.parquet: No space left on device\n")
    assert (root / MANIFEST_NAME).read_bytes() == before
    assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]


def test_a_full_disk_stops_a_merge_before_its_manifest(small_disk: Path, tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    fill(small_disk, leave=30 << 10)
    code, out, err = run("merge", root, "--out", small_disk / "out")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {small_disk}/out/shards/00-0000")
    assert err.endswith(".tar: No space left on device\n")
    assert not (small_disk / "out" / MANIFEST_NAME).exists()
    (small_disk / "ballast").unlink()


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user can reach: pytest's own are for this user alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """As a user without rights, where this one has all of them."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_of_somebody_else_is_read_but_not_written(public_folder: Path) -> None:
    root = sound_dataset(public_folder / "data")
    run("doctor", root)  # everything is imported now: the other user may not reach the code
    run("index", root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for folder in (root, root / "shards"):
        folder.chmod(0o555)
    with somebody_else():
        indexed, looked = run("index", root), run("doctor", root)
        flipped = run("merge", root, "--out", root / "inner")
    assert indexed == (2, "", f"error: {root}/manifest.parquet: Permission denied\n")
    assert looked[0] == 0
    assert f"no picture of the lengths: {root}/doctor.png: Permission denied" in looked[1]
    assert flipped == (2, "", f"error: {root}/inner: Permission denied\n")
    for folder in (root, root / "shards"):
        folder.chmod(0o755)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_shards_that_may_not_be_read_are_no_reason_to_drop_samples(public_folder: Path) -> None:
    root = sound_dataset(public_folder / "data")
    run("doctor", root)
    shard = shard_of(root, 0)
    shard.chmod(0)
    with somebody_else():
        code, out, _ = run("doctor", root, "--json")
        mended = run("doctor", root, "--repair")
        indexed = run("index", root)
    kinds = {finding["kind"]: finding["count"] for finding in json.loads(out)["findings"]}
    assert (code, kinds) == (1, {"unreadable": 5})
    assert mended[0] == 2
    assert mended[2].endswith("could not be read; nothing is repaired before the storage works\n")
    assert indexed == (2, "", f"error: {shard}: Permission denied\n")
    assert len(np.unique(read_manifest(root).keys)) == 12
