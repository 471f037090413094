"""Several datasets as one: their shards linked or copied beside each other, their manifests joined."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.counted import counted
from shards.dataset.encoding import check_encoded
from shards.dataset.info import DatasetInfo, write_info
from shards.dataset.left_out import read_left_out, write_left_out
from shards.dataset.manifest import MANIFEST_NAME, Manifest, write_manifest
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.output import missing_shard, writing
from shards.dataset.selection import by_shard, join, renamed
from shards.errors import InputError
from shards.formats import SHARDS
from shards.storage import Folder, Root, Storage, is_url, open_storage

_CHUNK = 8 << 20  # bytes
_HEAD = 64 << 10  # bytes that tell two shards of one size from each other


@dataclass(frozen=True)
class MergeReport:
    """What ``merge`` made; ``linked`` of the shards added take no space of their own.

    ``there``: the sources whose samples the target had already, all of them and with these bytes.
    """

    manifest: Manifest
    added: int
    linked: int
    there: tuple[Root, ...] = ()


class _Move(NamedTuple):
    source: Storage
    name: str
    target: str


def merge(
    roots: Sequence[Root],
    out: Root,
    *,
    copy: bool = False,
    threads: int = 8,
    on_shard: Callable[[int], None] = lambda total: None,
) -> MergeReport:
    """Add the samples of the datasets ``roots`` to the dataset ``out``, a new one or one that is there.

    The shards of the n-th become ``out/shards/<n>-...``: hard links where both are folders of one file system
    and ``copy`` is false, else copies. The manifest is written last, so ``out`` gains all samples or none, and
    the same call again completes one that was interrupted. A dataset that ``out`` holds already is passed over.
    ``on_shard(total)`` is called after each shard.

    Raises InputError when the datasets come from different models, naming both fingerprints, when a key is in
    two of them, when ``out`` is one of ``roots``, holds shards but no manifest or lacks some that its manifest
    names, when the encoding of one of them is unfinished, or when another command writes there now.
    """
    if not roots:
        raise InputError("merge: name the datasets to join")
    if any(_same_place(root, out) for root in roots):
        raise InputError(f"merge: {out} is both a source and the target; give --out another folder")
    for root in (*roots, out):
        check_encoded(open_storage(root))
    sources = [open_dataset(root) for root in roots]
    _check_together(sources)
    target = open_storage(out)
    with writing(target):
        existing = open_dataset(out) if target.stat(MANIFEST_NAME) else None
        there = tuple(source.root for source in sources if existing and _holds(existing, source))
        sources = [source for source in sources if source.root not in there]
        if existing:
            if gone := missing_shard(target, existing.manifest):
                raise _gone(target, gone)
            _check_together([existing, *sources])
            if not sources:
                return MergeReport(existing.manifest, 0, 0, there)
        parts, moves = _numbered(sources, target, existing)
        with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
            linked = 0
            for done in pool.map(lambda move: _place(move, target, copy), moves):
                linked += done
                on_shard(len(moves))
        _carry_left_out(moves, target)
        if existing is None:
            write_info(out, _description(sources))
        manifest = by_shard(join([*([existing.manifest] if existing else []), *parts]))
        write_manifest(out, manifest)
    return MergeReport(manifest, len(moves), linked, there)


def _same_place(root: Root, out: Root) -> bool:
    if is_url(root) or is_url(out):
        return str(root).rstrip("/") == str(out).rstrip("/")
    return Path(root).resolve() == Path(out).resolve()


def _holds(dataset: Dataset, part: Dataset) -> bool:
    """Whether a dataset has every sample of another, with the same bytes and rate."""
    ours, theirs = dataset.manifest, part.manifest
    order = np.argsort(ours.ids, kind="stable")
    rows = order[np.minimum(np.searchsorted(ours.ids, theirs.ids, sorter=order), len(order) - 1)]
    return all(
        bool((getattr(ours, name)[rows] == getattr(theirs, name)).all())
        for name in ("ids", "checksum", "fps")
    )


def _check_together(datasets: Sequence[Dataset]) -> None:
    for other in datasets[1:]:
        _check_model(datasets[0], other)
    _check_keys(datasets)


def _check_model(one: Dataset, other: Dataset) -> None:
    for name in ("vae", "text_encoder"):
        first, second = getattr(one.info, name).fingerprint, getattr(other.info, name).fingerprint
        if first != second:
            raise InputError(
                f"{one.root} and {other.root} come from different models: {name} fingerprint "
                f"{first or 'unknown'} and {second or 'unknown'}; encode both with the same model"
            )
    for name in ("channels", "text_width", "scale"):
        if (first := getattr(one.info, name)) != (second := getattr(other.info, name)):
            raise InputError(
                f"{one.root} and {other.root} come from different models: {name} {first} and {second}; "
                "encode both with the same model"
            )


def _check_keys(datasets: Sequence[Dataset]) -> None:
    """Raise InputError naming the first key that two datasets hold, and both of them."""
    ids = np.concatenate([dataset.manifest.ids for dataset in datasets])
    order = np.argsort(ids, kind="stable")
    twins = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if not len(twins):
        return
    earliest = twins[int(np.argmin(order[twins + 1]))]
    pair = order[[earliest, earliest + 1]].tolist()
    starts = np.cumsum([0, *(len(dataset.manifest) for dataset in datasets)])
    places = []
    for row in pair:
        dataset = datasets[number := int(np.searchsorted(starts, row, side="right")) - 1]
        inner = row - int(starts[number])
        places.append(
            (
                dataset.manifest.keys[inner],
                f"{dataset.root} ({dataset.manifest.shards[dataset.manifest.shard[inner]]})",
            )
        )
    (key, first), (_, second) = places
    raise InputError(
        f"key {key!r} is in {first} and in {second}: keys lie in the shards and must be unique, so leave one "
        f"dataset out, or encode it again from a table with other paths ({counted(len(twins), 'key')} in two)"
    )


def _numbered(
    sources: Sequence[Dataset], target: Storage, existing: Dataset | None
) -> tuple[list[Manifest], list[_Move]]:
    """The sources with their shards named as in the target, and how these get there.

    The numbers go on after those of the manifest, where the same merge may have been interrupted, or after all
    that are there where other shards have these numbers.
    """
    listed = {entry.path: entry.size for entry in target.list(SHARDS)}
    known = set(existing.manifest.shards) if existing else set()
    strays = {path: size for path, size in listed.items() if path not in known}
    for taken in (known, listed):
        first = _after(taken)
        parts = [_moved(dataset, first + number) for number, dataset in enumerate(sources)]
        moves = [move for dataset, part in zip(sources, parts, strict=True) for move in _moves(dataset, part)]
        ours = {move.target: move for move in moves}
        strange = [
            path
            for path, size in strays.items()
            if (existing is None or _number(path) >= first)
            and not (path in ours and _is_copy(ours[path], target, size))
        ]
        if existing is None and strange:
            raise InputError(
                f"{target.name}/{strange[0]} is in no manifest: run `ltx-shards index {target.name}` first, "
                "or give --out an empty folder"
            )
        if not strange:
            break
    return parts, moves


def _is_copy(move: _Move, target: Storage, size: int) -> bool:
    """Whether a shard in the target is that of the source: it has its size, and its first samples."""
    found = move.source.stat(move.name)
    if found is None or found.size != size:
        return False
    heads = bytearray(min(size, _HEAD)), bytearray(min(size, _HEAD))
    move.source.fill(move.name, 0, memoryview(heads[0]))
    target.fill(move.target, 0, memoryview(heads[1]))
    return heads[0] == heads[1]


def _after(names: Iterable[str]) -> int:
    return max((_number(name) + 1 for name in names), default=0)


def _number(name: str) -> int:
    match = re.match(rf"{SHARDS}/(\d+)-", name)
    return int(match[1]) if match else -1


def _moved(dataset: Dataset, number: int) -> Manifest:
    names = [f"{SHARDS}/{number:02d}-{name.removeprefix(SHARDS + '/')}" for name in dataset.manifest.shards]
    return renamed(dataset.manifest, names)


def _moves(dataset: Dataset, part: Manifest) -> list[_Move]:
    source = open_storage(dataset.root)
    return [_Move(source, *names) for names in zip(dataset.manifest.shards, part.shards, strict=True)]


def _place(move: _Move, target: Storage, copy: bool) -> bool:
    """Put one shard into the target; whether as a hard link."""
    if not copy and isinstance(move.source, Folder) and isinstance(target, Folder):
        file = target.root / move.target
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        try:
            temporary.unlink(missing_ok=True)
            os.link((move.source.root / move.name).resolve(), temporary)
            os.replace(temporary, file)
            return True
        except OSError:  # another file system, or one without hard links
            pass
        finally:
            # A rename onto another link to the same file does nothing at all.
            temporary.unlink(missing_ok=True)
    try:
        with (
            move.source.local(move.name) as path,
            open(path, "rb") as source,
            target.writer(move.target) as out,
        ):
            shutil.copyfileobj(source, out, _CHUNK)
    except FileNotFoundError:
        raise _gone(move.source, move.name) from None
    return False


def _gone(storage: Storage, shard: str) -> InputError:
    return InputError(
        f"{storage.name}/{shard} is not there, but {MANIFEST_NAME} names it: "
        f"put it back, or run `ltx-shards doctor {storage.name} --repair`"
    )


def _carry_left_out(moves: Sequence[_Move], target: Storage) -> None:
    """Samples that repair left out of a source stay left out."""
    sources = {move.source.name: move.source for move in moves}.values()
    lists = {source.name: read_left_out(source) for source in sources}
    if not any(lists.values()):
        return
    names = {(move.source.name, move.name): move.target for move in moves}
    entries = read_left_out(target)
    for source, found in lists.items():
        entries += [
            entry._replace(shard=names[source, entry.shard])
            for entry in found
            if (source, entry.shard) in names
        ]
    write_left_out(target, entries)


def _description(sources: Sequence[Dataset]) -> DatasetInfo:
    """Of equal models; the first that has the embedding of the empty caption."""
    return next((s.info for s in sources if s.info.null_prompt_embeds), sources[0].info)
