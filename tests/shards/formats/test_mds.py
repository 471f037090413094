from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from shards.dataset.index import index
from shards.dataset.info import write_info
from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.opened import open_dataset
from shards.errors import InputError, ShardError
from shards.formats.mds import COLUMNS, read_mds, scan_mds, write_mds
from shards.formats.row import Stored
from shards.formats.sample import payload
from shards.formats.tar import read_shard
from shards.reader import Reader
from shards.storage import Folder
from tests.support import mosaic
from tests.support.datasets import write_dataset


@pytest.fixture(autouse=True)
def _library() -> None:
    mosaic.require()


def tensors(value: float = 1.0, text: int = 3) -> bytes:
    return payload(
        {
            "latents": torch.full((2, 1, 2, 3), float(value)),
            "prompt_embeds": torch.full((text, 5), float(value)),
        }
    )


def sample(key: str, value: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "key": key,
        "json": json.dumps({"fps": 24.0, "caption": key}),
        "safetensors": tensors(value),
        **more,
    }


def three(tmp_path: Path) -> Path:
    """A shard of three samples by the stock library."""
    samples = [sample(key, value) for value, key in enumerate(("a", "x/b", "c.v1"))]
    return mosaic.write(tmp_path / "shards", COLUMNS, samples) / "shard.00000.mds"


@settings(max_examples=20, deadline=None)
@given(
    keys=st.lists(
        st.text("abü_-.", min_size=1, max_size=60).filter(lambda key: key != ".."),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    limit=st.one_of(st.none(), st.integers(1200, 4000)),
)
def test_a_scan_finds_what_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], lengths: list[int], limit: int | None
) -> None:
    root = tmp_path_factory.mktemp("mds")
    bodies = {key: tensors(number, lengths[number % len(lengths)]) for number, key in enumerate(keys)}
    samples = [{"key": key, "json": '{"fps": 12}', "safetensors": body} for key, body in bodies.items()]
    mosaic.write(root / "shards", COLUMNS, samples, size_limit=limit)
    names = sorted(f"shards/{path.name}" for path in (root / "shards").glob("*.mds"))
    rows = [row for name in names for row in scan_mds(Folder(root), name)]
    assert [row.key for row in rows] == keys
    for row in rows:
        with open(root / row.shard, "rb") as file:
            file.seek(row.offset)
            assert file.read(row.nbytes) == bodies[row.key]
        assert row.text_tokens == load(bodies[row.key])["prompt_embeds"].shape[0]
        assert row.fps == 12


@pytest.mark.parametrize(
    "columns",
    [
        {"key": "str", "json": "json", "safetensors": "bytes"},
        {"key": "bytes", "json": "bytes", "safetensors": "bytes"},
        {
            "a": "int",
            "key": "str",
            "json": "str",
            "m": "str",
            "safetensors": "bytes",
            "z": "ndarray:float32:2,3",
        },
    ],
)
def test_columns_of_other_kinds_and_more_of_them(tmp_path: Path, columns: dict[str, str]) -> None:
    given = sample("k", a=7, m="more", z=torch.zeros(2, 3).numpy())
    given["json"] = json.loads(given["json"]) if columns["json"] == "json" else given["json"]
    for name, kind in columns.items():
        given[name] = (
            given[name].encode() if kind == "bytes" and isinstance(given[name], str) else given[name]
        )
    mosaic.write(tmp_path / "shards", columns, [{name: given[name] for name in columns}])
    (found,) = read_mds(Folder(tmp_path), "shards/shard.00000.mds")
    assert (found.key, json.loads(found.meta)["caption"], found.payload) == ("k", "k", tensors())


def test_stock_readers_read_what_we_write(tmp_path: Path) -> None:
    root = tmp_path / "tar"
    dataset = write_dataset(root, 12, shard_bytes=8 << 10)
    stored = [list(read_shard(Folder(root), name)) for name in dataset.manifest.shards]
    files = list(write_mds(tmp_path / "mds", stored))
    assert [file.name for file in files] == [
        *(f"shard.{n:05d}.mds" for n in range(len(stored))),
        "index.json",
    ]
    found = mosaic.read(tmp_path / "mds", tmp_path)
    expected = [one for shard in stored for one in shard]
    assert [entry["key"] for entry in found] == [one.key for one in expected]
    assert [entry["json"] for entry in found] == [json.loads(one.meta) for one in expected]


def test_an_empty_shard_leaves_no_file(tmp_path: Path) -> None:
    one = Stored("a", 0, b'{"fps": 1}', tensors())
    names = [file.name for file in write_mds(tmp_path / "mds", [[], [one], []])]
    assert names == ["shard.00000.mds", "index.json"]


def test_a_failing_source_is_not_hidden_by_the_library(tmp_path: Path) -> None:
    def broken() -> Any:
        yield Stored("a", 0, b'{"fps": 1}', tensors())
        raise ShardError("shards/0.tar", "b", "checksum", 1, 2)

    with pytest.raises(ShardError, match="checksum"):
        list(write_mds(tmp_path / "mds", [broken()]))


def test_index_and_reader_take_shards_of_the_stock_library(tmp_path: Path) -> None:
    three(tmp_path)
    info = write_dataset(tmp_path / "other", 1, channels=2, text_width=5).info
    manifest = index(tmp_path, info)
    assert manifest.keys.tolist() == ["a", "x/b", "c.v1"]
    with Reader(open_dataset(tmp_path)) as reader:
        found = reader.read([2, 0, 1])
    assert [float(one.latents.mean()) for one in found] == [2, 0, 1]


def test_index_gives_the_manifest_that_convert_wrote(tmp_path: Path) -> None:
    from shards.dataset.convert import convert

    write_dataset(tmp_path / "tar", 12, shard_bytes=8 << 10)
    convert(tmp_path / "tar", tmp_path / "mds", "mds")
    path = tmp_path / "mds" / MANIFEST_NAME
    written = path.read_bytes()
    path.unlink()
    index(tmp_path / "mds")
    assert path.read_bytes() == written


@pytest.mark.parametrize("compression", ["zstd", "gz", "br:3", "snappy", "bz2"])
def test_compressed_shards_are_refused_with_the_way_out(tmp_path: Path, compression: str) -> None:
    mosaic.write(tmp_path / "shards", COLUMNS, [sample("a")], compression=compression)
    info = write_dataset(tmp_path / "other", 1, channels=2, text_width=5).info
    with pytest.raises(InputError, match=r"shard.00000.mds.*compressed.*decompress it to shard.00000.mds"):
        index(tmp_path, info)


def test_a_compressed_shard_that_was_unpacked_is_read(tmp_path: Path) -> None:
    import gzip

    packed = (
        mosaic.write(tmp_path / "shards", COLUMNS, [sample("a")], compression="gz") / "shard.00000.mds.gz"
    )
    (tmp_path / "shards" / "shard.00000.mds").write_bytes(gzip.decompress(packed.read_bytes()))
    write_info(tmp_path, write_dataset(tmp_path / "other", 1, channels=2, text_width=5).info)
    assert index(tmp_path).keys.tolist() == ["a"]


@pytest.mark.parametrize("keep", [0.0, 0.005, 0.05, 0.3, 0.7, 0.999])
def test_a_shard_cut_short_is_refused_with_its_name(tmp_path: Path, keep: float) -> None:
    path = three(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ShardError) as error:
        scan_mds(Folder(tmp_path), "shards/shard.00000.mds")
    assert str(error.value).startswith("shards/shard.00000.mds:")


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_of_the_shard_or_of_the_checksum(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    root = tmp_path_factory.mktemp("mds")
    path = three(root)
    name = "shards/shard.00000.mds"
    whole = scan_mds(Folder(root), name)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        rows = scan_mds(Folder(root), name)
    except (ShardError, InputError):
        return
    # What is left are bits that a scan cannot know: of a value, a key, a caption, or of what nobody reads.
    assert len(rows) == len(whole)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"key": "str", "json": "str"}, "safetensors as bytes"),
        ({"key": "str", "safetensors": "bytes"}, "json as str or bytes or json"),
        ({"key": "int", "json": "str", "safetensors": "bytes"}, "key as str or bytes"),
        ({"key": "str", "json": "pkl", "safetensors": "bytes"}, "json as str"),
    ],
)
def test_other_peoples_columns_are_named(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    given = sample("a") | ({"key": 3} if columns["key"] == "int" else {})
    mosaic.write(tmp_path / "shards", columns, [{name: given[name] for name in columns}])
    with pytest.raises(ShardError, match=f"columns: expected {message}"):
        scan_mds(Folder(tmp_path), "shards/shard.00000.mds")


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("", "is not a file's name"),
        ("a\0b", "is not a file's name"),
        ("/a", "leads out of its folder"),
        ("../a", "leads out of its folder"),
        (b"a\xff", "is not UTF-8 text"),
    ],
)
def test_keys_that_could_be_no_file_are_refused(tmp_path: Path, key: str | bytes, fault: str) -> None:
    columns = COLUMNS | {"key": "str" if isinstance(key, str) else "bytes"}
    mosaic.write(
        tmp_path / "shards", columns, [sample("a"), sample("b") | {"key": key}][isinstance(key, bytes) :]
    )
    with pytest.raises(InputError, match=rf"^shards/shard.00000.mds: key .* {fault}: write the shard again"):
        scan_mds(Folder(tmp_path), "shards/shard.00000.mds")


def test_samples_that_are_none_are_named(tmp_path: Path) -> None:
    mosaic.write(tmp_path / "shards", COLUMNS, [sample("a"), sample("b") | {"safetensors": b"123456789"}])
    with pytest.raises(ShardError, match="header claims") as error:
        scan_mds(Folder(tmp_path), "shards/shard.00000.mds")
    assert error.value.key == "b"


def test_without_the_library_the_command_names_what_to_install(tmp_path: Path) -> None:
    write_dataset(tmp_path / "tar", 1)
    script = (
        "import sys; sys.modules['streaming'] = None; sys.argv = ['ltx-shards', 'convert', *sys.argv[1:]]; "
        "from shards.cli import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        script,
        str(tmp_path / "tar"),
        "--to",
        "mds",
        "--out",
        str(tmp_path / "mds"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: MDS is written by mosaicml-streaming")
    assert "pip install --no-deps 'mosaicml-streaming" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mds").exists()
