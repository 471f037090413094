"""What a user or a disk got wrong, the line they read and the exit code; each through the real command or the API."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xxhash
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
from tests.support import disks, mosaic
from tests.support.clips import write_ramp
from tests.support.damage import (
    cut,
    edit_description,
    edit_json,
    edit_manifest,
    flip,
    members,
    replace_member,
    shard_of,
    write_tar,
)
from tests.support.models import tiny_model
from tests.support.scenarios import one_of, sound_dataset

NOBODY = 65534
REBUILD = "rebuild it with `ltx-shards index {root}`"
KEEP_ONE = (
    "remove one of the two and run `ltx-shards index {root}` again, "
    "or let `ltx-shards doctor {root} --repair` keep the first"
)
FULL = "No space left on device: make room and run the same command again"
FORBIDDEN = "Permission denied: see to the permissions and run the same command again"
ADVICE = (
    "; put a whole copy of the shard in its place, or `ltx-shards doctor {root} --repair` writes a manifest of the "
    "samples that are whole, which needs no index after it"
)


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


def manifest_of_another(root: Path) -> None:
    """The manifest of a dataset of the same keys and sizes."""
    shutil.copy(sound_dataset(root.parent / "other", seed=1) / MANIFEST_NAME, root / MANIFEST_NAME)


def payload_of(root: Path, number: int) -> bytes:
    """The bytes of the tensors of a sample of the first shard."""
    found = [body for name, body in members(root / "shards/000000.tar") if name.endswith("safetensors")]
    return found[number]


def empty_manifest(root: Path) -> None:
    write_manifest(root, Manifest.from_rows([]))


class Case(NamedTuple):
    """`command` before the folder, {root}; `message` is the whole line."""

    spoil: Callable[[Path], object]
    command: str
    message: str


CASES: dict[str, Case] = {
    "a manifest that names a file above": Case(
        manifest_names("../x.tar"),
        "stats",
        "{root}/manifest.parquet names a shard outside the dataset's folder: ../x.tar: " + REBUILD,
    ),
    "a manifest that names an absolute path": Case(
        manifest_names("/etc/passwd"),
        "stats",
        "{root}/manifest.parquet names a shard outside the dataset's folder: /etc/passwd: " + REBUILD,
    ),
    "a manifest with a key that leads out": Case(
        lambda root: edit_manifest(root, keys=one_of("../../x")),
        "stats",
        "{root}/manifest.parquet: row 1: key '../../x' leads out of its folder: " + REBUILD,
    ),
    "a manifest with an offset below zero": Case(
        lambda root: edit_manifest(root, offset=one_of(-512)),
        "stats",
        "{root}/manifest.parquet: row 1, sample 'clips/01': offset is -512: " + REBUILD,
    ),
    "a manifest with sizes beyond reason": Case(
        lambda root: edit_manifest(root, nbytes=one_of(1 << 50)),
        "plan --ranks 8 --samples-per-step 8",
        "{root}/manifest.parquet: row 1, sample 'clips/01': nbytes is 1125899906842624: " + REBUILD,
    ),
    "a manifest with a rate of nothing": Case(
        lambda root: edit_manifest(root, fps=one_of(0.0)),
        "stats",
        "{root}/manifest.parquet: row 1, sample 'clips/01': fps is 0.0: " + REBUILD,
    ),
    "a manifest without a column": Case(
        lambda root: pq.write_table(
            pq.read_table(root / MANIFEST_NAME).drop_columns(["checksum"]), root / MANIFEST_NAME
        ),
        "stats",
        "{root}/manifest.parquet is not a readable manifest ('Field \"checksum\" does not exist in schema'): "
        + REBUILD,
    ),
    "a manifest cut short": Case(
        lambda root: (root / MANIFEST_NAME).write_bytes(b"PAR1"),
        "stats",
        "{root}/manifest.parquet is not a readable manifest (Could not open Parquet input source '<Buffer>': "
        "Parquet file size is 4 bytes, smaller than the minimum file footer (8 bytes)): " + REBUILD,
    ),
    "no manifest": Case(
        lambda root: (root / MANIFEST_NAME).unlink(),
        "stats",
        "{root}/manifest.parquet is missing: " + REBUILD,
    ),
    "the manifest of another dataset": Case(
        manifest_of_another,
        "convert --to mds --out {root}/mds",
        "shards/000000.tar: sample 'clips/00': xxh3_64 checksum: expected {other:016x}, found {checksum:016x}"
        + ADVICE,
    ),
    "a flipped bit": Case(
        lambda root: flip(root, 0),
        "convert --to mds --out {root}/mds",
        "shards/000000.tar: sample 'clips/00': xxh3_64 checksum: expected {checksum:016x}, found {flipped:016x}"
        + ADVICE,
    ),
    "members above": Case(
        member_names("../../{}".format),
        "index",
        "shards/000000.tar: key '../../clips/00' leads out of its folder: write the shard again with plain names",
    ),
    "members at the root": Case(
        member_names("/{}".format),
        "index",
        "shards/000000.tar: key '/clips/00' leads out of its folder: write the shard again with plain names",
    ),
    "members whose names are no text": Case(
        member_names(lambda name: name.replace("clips/", "clips\udcff/")),
        "index",
        "shards/000000.tar: key 'clips\\udcff/00' is not UTF-8 text: write the shard again with plain names",
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
    "a json of brackets": Case(
        lambda root: replace_member(root, 1, "json", lambda _: b"[" * 100_000),
        "index",
        "shards/000000.tar: sample 'clips/01': member: expected a readable sample, "
        "found the JSON is nested too deep" + ADVICE,
    ),
    "a json with a rate without end": Case(
        lambda root: edit_json(root, 1, fps=float("inf")),
        "index",
        "shards/000000.tar: sample 'clips/01': member: expected a readable sample, "
        "found the json member needs a positive fps, found inf" + ADVICE,
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
        "{root}: key 'clips/00' appears twice, in shards/000000.tar and shards/zz.tar: " + KEEP_ONE,
    ),
    "a key twice in one shard": Case(
        lambda root: write_tar(
            shard_of(root, 0), members(shard_of(root, 0)) + members(shard_of(root, 0))[:2]
        ),
        "index",
        "{root}: key 'clips/00' appears twice, in shards/000000.tar and shards/000000.tar: " + KEEP_ONE,
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
        "{root}: 3 shards without a sample, which is a .json and a .safetensors of one name",
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
    "no folder": Case(
        shutil.rmtree,
        "doctor",
        "dataset folder {root} does not exist; `ltx-shards encode ... --out {root}` makes it",
    ),
    "two descriptions": Case(
        lambda root: None, "index --like x --scale 8x32", "give --like or --scale, not both"
    ),
    "a scale that is none": Case(
        lambda root: None,
        "index --scale 8",
        "--scale '8': frames and pixels a side of one latent cell, as 8x32",
    ),
    "a rate of nothing": Case(lambda root: None, "index --fps 0", "--fps 0.0: it must be a positive number"),
    "a rate without end": Case(
        lambda root: None, "index --fps inf", "--fps inf: it must be a positive number"
    ),
    "fewer threads than none": Case(
        lambda root: None, "index --threads -1", "--threads -1: it must be at least 1"
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_message_is_one_line_and_the_exit_code_2(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    root = sound_dataset(tmp_path / "data")
    manifest = read_manifest(root)
    nbytes, values = int(manifest.nbytes[1]), {"checksum": int(manifest.checksum[0])}
    before = (root / MANIFEST_NAME).read_bytes()
    case.spoil(root)
    if "convert" in case.command:
        values["other"] = int(read_manifest(root).checksum[0])
        values["flipped"] = xxhash.xxh3_64_intdigest(payload_of(root, 0))
    code, out, err = run(*case.command.format(root=root).split(), root)
    assert err == f"error: {case.message.format(root=root, nbytes=nbytes, half=nbytes // 2, **values)}\n"
    assert (code, out) == (2, "")
    if case.command == "index" and "manifest" not in name:
        assert (root / MANIFEST_NAME).read_bytes() == before, "a failed index leaves the manifest as it was"


class Asked(NamedTuple):
    """A `table` of clips, the `command` about it, and the whole line it ends with; {here} is the folder."""

    table: str
    command: str
    message: str


ENCODE = "encode t.csv --model {model} --out out --device cpu --buckets 64x64x9"
TABLES: dict[str, Asked] = {
    "no captions": Asked(
        "media_path\ngood.mp4", ENCODE, "t.csv: row 1: no column 'caption' (there are: 'media_path')."
    ),
    "no clips": Asked(
        "caption\na cat", ENCODE, "t.csv: row 1: no column 'media_path' (there are: 'caption')."
    ),
    "no column of that name": Asked(
        "caption,media_path\na cat,good.mp4",
        ENCODE + " --reference-column depth",
        "t.csv: row 1: no column 'depth' (there are: 'caption', 'media_path').",
    ),
    "no clips to caption": Asked(
        "caption\na cat",
        "caption t.csv --model {model}",
        "t.csv: row 1: no column 'media_path' (there are: 'caption').",
    ),
    "no clips to make references of": Asked(
        "caption,media_path\na cat,good.mp4",
        "reference t.csv --kind canny --media-column film",
        "t.csv: row 1: no column 'film' (there are: 'caption', 'media_path')",
    ),
    "no clips to split": Asked("", "split nothing.mp4 --out clips", "nothing.mp4: no such video or folder"),
    "nothing to import": Asked(
        "",
        "import . --out out",
        ". has no latents/ and conditions/: give the .precomputed folder that LTX-Video-Trainer wrote, or the folder "
        "it is in",
    ),
    "no path in a row": Asked(
        "caption,media_path\na cat,",
        ENCODE,
        "t.csv: row 1: column 'media_path' is empty. Give the path of a clip or take the row out.",
    ),
    "no row": Asked(
        "caption,media_path",
        ENCODE,
        "t.csv: no rows in it. Write one row per clip with the columns 'caption' and 'media_path'.",
    ),
    "no file": Asked(
        "caption,media_path\na cat,gone.mp4",
        ENCODE,
        "t.csv: 1 media file(s) not found, looked for relative to .: gone.mp4. Correct the paths or take those rows "
        "out.",
    ),
    "half a character in a caption": Asked(
        '[{"caption": "a \\ud800", "media_path": "good.mp4"}]',
        ENCODE.replace("t.csv", "t.json"),
        "t.json: row 1: column 'caption' holds half a character, which was cut: 'a \\ud800'. Correct it.",
    ),
    "an odd width": Asked(
        "caption,media_path\na cat,good.mp4",
        ENCODE.replace("64x64x9", "60x64x9"),
        "--buckets 60x64x9 does not fit the VAE: 60x64 pixels cannot be encoded: both sides must be multiples of 16",
    ),
    "an odd number of frames": Asked(
        "caption,media_path\na cat,good.mp4",
        ENCODE.replace("64x64x9", "64x64x8"),
        "--buckets 64x64x8 does not fit the VAE: 8 frames cannot be encoded: the VAE takes a multiple of 4 plus 1, the "
        "nearest below is 5",
    ),
    "an odd size of references": Asked(
        "caption,media_path\na cat,good.mp4",
        ENCODE + " --reference-downscale 3",
        "--buckets 64x64x9: its references would be 21.3333x21.3333 pixels at --reference-downscale 3, and the VAE "
        "takes multiples of 16",
    ),
    "no size": Asked(
        "caption,media_path\na cat,good.mp4",
        ENCODE.replace("64x64x9", "0x64x9"),
        "--buckets: bucket '0x64x9' is not WIDTHxHEIGHTxFRAMES, for example 768x448x89",
    ),
    "no clip that can be read": Asked(
        "caption,media_path\na cat,zero.mp4\na dog,text.mp4",
        ENCODE,
        "t.csv: none of its 2 rows could be encoded; the first, zero.mp4: the file is empty. "
        "All are listed in failures.jsonl of the output folder.",
    ),
}


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a clip, an empty file and one of text."""
    monkeypatch.chdir(tmp_path)
    write_ramp(tmp_path / "good.mp4", 9)
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a clip")
    return tmp_path


@pytest.mark.parametrize("name", TABLES)
def test_so_it_is_for_tables_and_clips(clips: Path, name: str) -> None:
    table, command, message = TABLES[name]
    (clips / ("t.json" if "t.json" in command else "t.csv")).write_text(table + "\n")
    code, out, err = run(*command.format(model=tiny_model()).split())
    assert err.splitlines()[-1] == f"error: {message}"
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_clips_that_cannot_be_read_are_listed_and_counted(clips: Path) -> None:
    write_ramp(clips / "short.mp4", 5)
    write_ramp(clips / "picture.png", 1)
    names = ["zero.mp4", "text.mp4", "short.mp4", "picture.png", "good.mp4"]
    (clips / "t.csv").write_text("caption,media_path\n" + "".join(f"a cat,{name}\n" for name in names))
    code, out, _ = run(*ENCODE.format(model=tiny_model()).split())
    reasons = {
        "zero.mp4": "the file is empty",
        "text.mp4": "Invalid data found when processing input",
        "short.mp4": "5 frames, the shortest video bucket 64x64x9 needs 9",
        "picture.png": "a picture needs a bucket of 1 frame: add for example 64x64x1",
    }
    assert code == 0
    assert "4 left out, all listed in out/failures.jsonl\n" in out
    for name, reason in reasons.items():
        assert re.search(rf"│ {name} +│ {reason} +│", out)
    assert (clips / "out/failures.jsonl").read_text() == "".join(
        json.dumps({"source": name, "reason": reason}) + "\n" for name, reason in reasons.items()
    )


def test_empty_captions_are_named(clips: Path) -> None:
    (clips / "t.csv").write_text("caption,media_path\n,good.mp4\n")
    code, out, _ = run(*ENCODE.format(model=tiny_model()).split())
    assert code == 0
    assert " ".join(out.split()).endswith(
        "t.csv: 1 empty caption (good.mp4): run `ltx-shards caption t.csv` to have them written, "
        "and encode into another folder"
    )


def test_a_full_disk_stops_an_encode_which_says_so(clips: Path, small_disk: Path) -> None:
    (clips / "t.csv").write_text("caption,media_path\na cat,good.mp4\n")
    fill(small_disk, leave=0)
    code, out, err = run(*ENCODE.replace("out out", "out disk/out").format(model=tiny_model()).split())
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == (
        "error: disk/out: No space left on device: disk/out/.encode/job.json; "
        "what is done is kept: make room and run the same command again"
    )


def read(root: Path, row: int) -> None:
    with Reader(open_dataset(root), threads=1) as reader:
        reader.read([row])


def test_a_flipped_bit_is_met_by_the_reader_and_by_the_doctor(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    expected = int(open_dataset(root).manifest.checksum[1])
    flip(root, 1)
    with pytest.raises(ShardError) as error:
        read(root, 1)
    found = f"{xxhash.xxh3_64_intdigest(payload_of(root, 1)):016x}"
    assert str(error.value) == (
        f"{root}/shards/000000.tar: sample 'clips/01': xxh3_64 checksum: expected {expected:016x}, "
        f"found {found}; run `ltx-shards doctor {root}`"
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
        f"{root}/shards/000000.tar: sample 'clips/01': bytes before the end of the file: "
        f"expected {nbytes}, found {nbytes // 2}; run `ltx-shards doctor {root}`"
    )
    read(root, 0)
    code, out, _ = run("doctor", root, "--json")
    kinds = {finding["kind"]: finding["count"] for finding in json.loads(out)["findings"]}
    assert (code, kinds) == (1, {"cut": 3, "structure": 1})


def test_the_manifest_of_another_dataset_is_met_by_the_reader_and_by_the_doctor(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    own = read_manifest(root)
    manifest_of_another(root)
    expected, found = int(read_manifest(root).checksum[0]), int(own.checksum[0])
    with pytest.raises(ShardError) as error:
        read(root, 0)
    assert str(error.value) == (
        f"{root}/shards/000000.tar: sample 'clips/00': xxh3_64 checksum: expected {expected:016x}, "
        f"found {found:016x}; run `ltx-shards doctor {root}`"
    )
    code, out, _ = run("doctor", root)
    assert code == 1
    assert f"clips/00 (shards/000000.tar): {expected:016x} in the manifest, found {found:016x}" in out
    assert out.splitlines()[-2] == (
        f"not sound: `ltx-shards doctor {root} --repair` keeps 0 samples; if shards were written again, "
        f"`ltx-shards index {root}` takes them as they are"
    )
    words = f"{root}: 12 samples in 3 shards, fingerprint {own.fingerprint}\n"
    assert run("index", root) == (0, words, "")
    assert run("doctor", root)[0] == 0


def test_a_manifest_that_leads_out_is_not_followed_by_the_doctor(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    manifest_names("../secret.tar")(root)
    code, out, _ = run("doctor", root, "--json")
    finding = json.loads(out)["findings"][0]
    assert (code, finding["kind"], finding["examples"][0]["detail"]) == (
        1,
        "manifest",
        f"{root}/manifest.parquet names a shard outside the dataset's folder: ../secret.tar: "
        f"rebuild it with `ltx-shards index {root}`",
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
    with disks.small_disk(tmp_path / "disk", "256k") as root:
        yield root


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
    fill(small_disk, leave=4 << 10)  # enough to say that a command writes here
    code, out, err = run("index", root)
    assert (code, out, err) == (2, "", f"error: {root}/manifest.parquet: {FULL}\n")
    assert (root / MANIFEST_NAME).read_bytes() == before
    assert not [path for path in root.rglob("*") if path.name.endswith(".tmp")]


def test_a_full_disk_stops_a_merge_before_its_manifest(small_disk: Path, tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    fill(small_disk, leave=30 << 10)
    code, out, err = run("merge", root, "--out", small_disk / "out")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: {small_disk}/out/shards/00-00000[012].tar: {FULL}\n", err)
    assert not (small_disk / "out" / MANIFEST_NAME).exists()
    (small_disk / "ballast").unlink()


@pytest.mark.parametrize(
    ("to", "place"), [("mds", "out/.unfinished/shards"), ("tar", "out/shards/000000.tar")]
)
def test_a_full_disk_stops_a_conversion(small_disk: Path, tmp_path: Path, to: str, place: str) -> None:
    mosaic.require()
    root = sound_dataset(tmp_path / "data")
    if to == "tar":
        assert run("convert", root, "--to", "mds", "--out", tmp_path / "mds")[0] == 0
        root = tmp_path / "mds"
    fill(small_disk, leave=12 << 10)
    code, out, err = run("convert", root, "--to", to, "--out", small_disk / "out")
    assert (code, out, err) == (2, "", f"error: {small_disk}/{place}: {FULL}\n")
    assert not (small_disk / "out" / MANIFEST_NAME).exists()


def test_a_disk_that_is_read_only_is_said(small_disk: Path) -> None:
    root = sound_dataset(small_disk / "data")
    disks.remount(small_disk, "ro")
    code, out, err = run("index", root)
    advice = "Read-only file system: give a folder that can be written"
    assert (code, out, err) == (2, "", f"error: {root}/writing.json: {advice}\n")


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
    assert indexed == (2, "", f"error: {root}/writing.json: {FORBIDDEN}\n")
    assert looked[0] == 0
    assert f"no picture of the lengths: {root}/doctor.png: Permission denied" in looked[1]
    assert flipped == (2, "", f"error: {root}/inner: {FORBIDDEN}\n")
    for folder in (root, root / "shards"):
        folder.chmod(0o755)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_manifest_that_may_not_be_read_is_not_taken_for_a_damaged_one(public_folder: Path) -> None:
    root = sound_dataset(public_folder / "data")
    run("stats", root)
    (root / MANIFEST_NAME).chmod(0)
    with somebody_else():
        found = run("stats", root)
    assert found == (2, "", f"error: {root}/manifest.parquet: {FORBIDDEN}\n")


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
    assert indexed == (2, "", f"error: {shard}: {FORBIDDEN}\n")
    assert len(np.unique(read_manifest(root).keys)) == 12
