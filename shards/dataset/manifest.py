"""The manifest: the table of all samples of a dataset, one row each, stored as ``manifest.parquet``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import InputError
from shards.formats.header import MOST
from shards.formats.row import Row
from shards.formats.text import key_fault
from shards.geometry import UNIT_PATCH, Grid, Patch
from shards.hashing import sample_id
from shards.storage import Root, open_storage

MANIFEST_NAME = "manifest.parquet"
_SIDES = ("frames", "height", "width")
_UNUSUAL = r"^$|^/|\.\.|\x00"  # all keys, and some more, in which `key_fault` may find one
_VERSION_KEY, VERSION = "ltx_shards_manifest", 1
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("id", pa.uint64()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("nbytes", pa.int64()),
        ("checksum", pa.uint64()),
        *[(name, pa.int32()) for name in _SIDES],
        *[(f"reference_{name}", pa.list_(pa.int32())) for name in _SIDES],
        ("text_tokens", pa.int32()),
        ("fps", pa.float64()),
    ],
    metadata={_VERSION_KEY: str(VERSION)},
)


# Least and greatest value of the columns: what a reader can ask a file for, and a model can take.
_RANGES: dict[str, tuple[float, float]] = {
    "offset": (0, 2**62),
    "nbytes": (0, MOST),
    **dict.fromkeys(_SIDES, (1, MOST)),
    "text_tokens": (0, MOST),
    "fps": (np.nextafter(0, 1), np.finfo(np.float64).max),
}


class NewerVersion(InputError):
    """A manifest of a later version of this code."""


class RepeatedKey(InputError):
    """Two samples have the same key; the message says where they are."""


@dataclass(frozen=True, eq=False)
class Manifest:
    """Columns of N samples; see each field for its dtype and unit."""

    keys: np.ndarray  # object [N] of str
    ids: np.ndarray  # uint64 [N], hash of the key
    shards: tuple[str, ...]  # paths relative to the dataset's folder
    shard: np.ndarray  # int32 [N], index into `shards`
    offset: np.ndarray  # int64 [N], bytes from the start of the shard to the safetensors payload
    nbytes: np.ndarray  # int64 [N], length of the payload
    checksum: np.ndarray  # uint64 [N], xxh3_64 of the payload
    grid: np.ndarray  # int32 [N, 3], latent F, H, W
    references: np.ndarray  # int32 [N, R, 3], latent F, H, W; zeros where a sample has fewer than R, the most
    text_tokens: np.ndarray  # int32 [N]
    fps: np.ndarray  # float64 [N], frames per second

    @classmethod
    def from_rows(cls, rows: Sequence[Row], check: bool = True) -> Manifest:
        """Build the table, in the order given; without ``check``, whatever the rows are.

        Raises InputError when a key appears twice, two keys hash to the same id, or channel counts or text
        widths differ between samples.
        """
        if check:
            _check_agreement(rows)
        columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True)) if rows else {}
        count = len(rows)

        def numbers(values: Iterable[Any], dtype: npt.DTypeLike, width: int = 1) -> np.ndarray:
            return np.fromiter(values, dtype, count * width)

        shards = tuple(dict.fromkeys(columns.get("shard", ())))
        number = {name: index for index, name in enumerate(shards)}
        keys = columns.get("key", ())
        manifest = cls(
            keys=_objects(keys),
            ids=numbers(map(sample_id, keys), np.uint64),
            shards=shards,
            shard=numbers(map(number.__getitem__, columns.get("shard", ())), np.int32),
            offset=numbers(columns.get("offset", ()), np.int64),
            nbytes=numbers(columns.get("nbytes", ()), np.int64),
            checksum=numbers(columns.get("checksum", ()), np.uint64),
            grid=numbers(chain.from_iterable(columns.get("grid", ())), np.int32, 3).reshape(-1, 3),
            references=_padded(columns.get("references", ())),
            text_tokens=numbers(columns.get("text_tokens", ()), np.int32),
            fps=numbers(columns.get("fps", ()), np.float64),
        )
        if check:
            check_unique(manifest)
        return manifest

    def __len__(self) -> int:
        return len(self.keys)

    def target_tokens(self, patch: Patch = UNIT_PATCH) -> np.ndarray:
        """Tokens of each sample's latents, int64 [N]. Raises InputError where the patch does not divide."""
        return _tokens(self.grid, patch, self.keys)

    def tokens(self, patch: Patch = UNIT_PATCH) -> np.ndarray:
        """L of each sample, int64 [N]: target plus reference tokens."""
        references = (_tokens(grids, patch, self.keys) for grids in np.moveaxis(self.references, 1, 0))
        return sum(references, self.target_tokens(patch))

    def references_of(self, row: int) -> list[Grid]:
        """Latent grids of a sample's references."""
        return [Grid(*grid) for grid in self.references[row].tolist() if any(grid)]

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest over ids, checksums and geometry, whatever the order and shards of the samples."""
        order = np.lexsort((self.checksum, self.ids))
        digest = hashlib.sha256()
        for column in (self.ids, self.checksum, self.grid, self.references, self.text_tokens, self.fps):
            digest.update(column[order].astype(column.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()[:32]


def _objects(values: Sequence[str]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _padded(references: Sequence[tuple[Grid, ...]]) -> np.ndarray:
    most = max((len(grids) for grids in references), default=0)
    table = np.zeros((len(references), most, 3), np.int32)
    for row, grids in enumerate(references) if most else ():
        if grids:
            table[row, : len(grids)] = grids
    return table


def _tokens(grid: np.ndarray, patch: Patch, keys: np.ndarray) -> np.ndarray:
    sizes = np.array([patch.temporal, patch.spatial, patch.spatial], np.int64)
    wrong = (grid % sizes).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"sample {keys[row]!r}: latent grid {tuple(int(n) for n in grid[row])} is not divisible "
            f"by the model's patch {tuple(patch)}; encode it at another size"
        )
    return np.prod(grid.astype(np.int64) // sizes, axis=1)


def _check_agreement(rows: Sequence[Row]) -> None:
    for name in ("channels", "text_width"):
        if len(set(map(attrgetter(name), rows))) < 2:
            continue
        row = next(row for row in rows if getattr(row, name) != getattr(rows[0], name))
        raise InputError(
            f"{row.shard}: sample {row.key!r} has {name} {getattr(row, name)}, but "
            f"{rows[0].key!r} in {rows[0].shard} has {getattr(rows[0], name)}; "
            "one dataset comes from one model"
        )


def check_unique(manifest: Manifest) -> None:
    """Raise InputError when a key appears twice or two keys have one id."""
    order = np.argsort(manifest.ids, kind="stable")
    same = np.flatnonzero(manifest.ids[order][1:] == manifest.ids[order][:-1])
    if not len(same):
        return
    earliest = same[int(np.argmin(order[same + 1]))]
    first, second = int(order[earliest]), int(order[earliest + 1])
    where = f"{manifest.shards[manifest.shard[first]]} and {manifest.shards[manifest.shard[second]]}"
    if manifest.keys[first] == manifest.keys[second]:
        raise RepeatedKey(f"key {manifest.keys[first]!r} appears twice, in {where}")
    raise InputError(
        f"keys {manifest.keys[first]!r} and {manifest.keys[second]!r} in {where} hash to one id; rename one"
    )


def write_manifest(root: Root, manifest: Manifest) -> None:
    """Write ``root/manifest.parquet`` atomically; equal manifests give equal bytes."""
    names = _objects(manifest.shards)
    columns: list[Any] = [
        manifest.keys,
        manifest.ids,
        names[manifest.shard] if len(manifest) else names,
        manifest.offset,
        manifest.nbytes,
        manifest.checksum,
        *np.ascontiguousarray(manifest.grid.T),
        *_lists(manifest.references),
        manifest.text_tokens,
        manifest.fps,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=_SCHEMA)
    with open_storage(root).writer(MANIFEST_NAME) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=1 << 20)


def _lists(references: np.ndarray) -> list[pa.Array]:
    """One list column per side of the references; a sample's lists are as long as it has references."""
    there = references.any(axis=2)
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    sides = references[there].T
    return [
        pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(side))) for side in sides
    ]


def _table_of_lists(sides: Sequence[pa.ChunkedArray]) -> np.ndarray:
    """The inverse of `_lists`, int32 [N, R, 3]."""
    arrays = [side.combine_chunks() for side in sides]
    counts = [array.value_lengths().to_numpy(zero_copy_only=False) for array in arrays]
    if any((other != counts[0]).any() for other in counts[1:]):
        raise ValueError("the columns reference_frames, _height and _width have lists of different lengths")
    most = int(counts[0].max(initial=0))
    grids = np.stack([array.flatten().to_numpy() for array in arrays], axis=1)
    if (grids < 1).any():
        raise ValueError("the columns reference_frames, _height and _width have sides below 1")
    table = np.zeros((len(counts[0]), most, 3), np.int32)
    there = np.arange(most) < counts[0][:, None]
    table[there] = grids
    return table


def read_manifest(root: Root) -> Manifest:
    """Read ``root/manifest.parquet``.

    Raises InputError when it is missing, damaged, of a newer version, lacks a column, or has a value that no
    sample can have: a shard or a key outside the dataset's folder, a size or a rate that is none; OSError where
    the storage does not give it.
    """
    path = f"{root}/{MANIFEST_NAME}"
    advice = f"rebuild it with `ltx-shards index {root}`"
    try:
        data = open_storage(root).read(MANIFEST_NAME)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: {advice}") from None
    try:
        table = pq.read_table(pa.BufferReader(data))
        version = int((table.schema.metadata or {}).get(_VERSION_KEY.encode(), VERSION))
        if version > VERSION:
            raise NewerVersion(
                f"{path} has version {version}, this code reads up to {VERSION}: update ltx-dist-trainer"
            )
        columns = {field.name: table[field.name].cast(field.type) for field in _SCHEMA}
        if empty := [name for name, column in columns.items() if column.null_count]:
            raise ValueError(f"column {empty[0]} has rows without a value")
        manifest = _from_columns(columns)
    except InputError:
        raise
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable manifest ({error}): {advice}") from error
    if outside := [name for name in manifest.shards if key_fault(name)]:
        raise InputError(f"{path} names a shard outside the dataset's folder: {outside[0]}: {advice}")
    if fault := _fault(manifest):
        raise InputError(f"{path}: {fault}: {advice}")
    return manifest


def _from_columns(columns: dict[str, pa.ChunkedArray]) -> Manifest:
    """The table of columns without nulls. Raises ValueError where they do not fit each other."""
    shard = columns["shard"].combine_chunks().dictionary_encode()
    if isinstance(shard, pa.ChunkedArray):
        shard = shard.combine_chunks() if shard.num_chunks != 1 else shard.chunk(0)
    plain = [name for name in columns if name not in ("key", "shard") and not name.startswith("reference")]
    values = {name: columns[name].to_numpy() for name in plain}
    return Manifest(
        keys=_objects(columns["key"].to_pylist()),
        ids=values["id"],
        shards=tuple(shard.dictionary.to_pylist()),
        shard=shard.indices.to_numpy().astype(np.int32),
        offset=values["offset"],
        nbytes=values["nbytes"],
        checksum=values["checksum"],
        grid=np.stack([values[side] for side in _SIDES], axis=1),
        references=_table_of_lists([columns[f"reference_{side}"] for side in _SIDES]),
        text_tokens=values["text_tokens"],
        fps=values["fps"],
    )


def _fault(manifest: Manifest) -> str:
    """What the first row says that no sample can have, column by column; empty for a manifest without one."""
    # The rule is asked of few: one call for each of a million keys would take as long as the rest.
    unusual = pc.match_substring_regex(pa.array(manifest.keys, pa.string()), _UNUSUAL)
    for row in np.flatnonzero(unusual).tolist():
        if why := key_fault(manifest.keys[row]):
            return f"row {row}: key {manifest.keys[row]!r} {why}"
    values = dict(zip(_SIDES, manifest.grid.T, strict=True)) | vars(manifest)
    for name, (least, most) in _RANGES.items():
        wrong = ~((values[name] >= least) & (values[name] <= most))
        if wrong.any():
            row = int(np.argmax(wrong))
            return f"row {row}, sample {manifest.keys[row]!r}: {name} is {values[name][row]}"
    return ""
