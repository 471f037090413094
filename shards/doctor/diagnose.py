"""Is a dataset sound: every sample read once, and compared with its row, its description and all the others."""

from __future__ import annotations

import base64
import binascii
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards.counted import counted
from shards.dataset.encoding import is_encoded
from shards.dataset.info import INFO_NAME, DatasetInfo, read_info
from shards.dataset.left_out import read_left_out
from shards.dataset.manifest import MANIFEST_NAME, Manifest, NewerVersion, read_manifest
from shards.dataset.opened import check_folder
from shards.dataset.selection import select
from shards.doctor.changes import Changes
from shards.doctor.checkup import Checkup, Records, check_shard
from shards.doctor.content import all_finite, bits_of
from shards.doctor.diagnosis import Diagnosis
from shards.doctor.finding import Findings
from shards.doctor.survey import Candidates, survey
from shards.errors import InputError
from shards.formats import SHARDS
from shards.formats.header import read_header
from shards.formats.shard import find_shards
from shards.storage import Root, Storage, is_url, is_web, open_storage
from shards.stream import stream

TEXT_LIMIT = 256  # tokens that `encode` cuts captions at


def diagnose(
    root: Root,
    *,
    text_limit: int = TEXT_LIMIT,
    threads: int | None = None,
    on_shard: Callable[[int], None] = lambda total: None,
) -> Diagnosis:
    """Check the dataset in a folder or at a URL, several shards at once. Nothing is written.

    ``text_limit``: tokens that the text encoder cuts captions at. ``threads`` defaults to the CPU count;
    ``on_shard(total)`` is called after each shard. At a web server, which lists no files, only the shards of the
    manifest are looked at. Memory grows by some 600 bytes a sample. Raises InputError
    when there is no dataset, its ``dataset.json`` cannot be read, it has no shards or ``threads`` is below 1.
    """
    if not is_url(root):
        check_folder(Path(root))
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: the number of shards read at once is at least 1")
    storage, findings, changes = open_storage(root), Findings(), Changes()
    seen = storage.stat(MANIFEST_NAME)
    info, manifest = read_info(root), _manifest(root, findings)
    table = manifest or Manifest.from_rows([])
    sizes = _named(storage, table) if is_web(root) else find_shards(storage)
    if not sizes:
        raise InputError(f"{root}/{SHARDS} holds no shard: there is nothing to look at")
    rows = _rows_by_shard(table)
    _missing_shards(table, rows, sizes, findings, changes)
    records = Records(table, info, {entry.place for entry in read_left_out(storage)})
    workers = threads or os.cpu_count() or 1

    def check(name: str) -> tuple[Checkup, Candidates]:
        found = check_shard(storage, name, rows.get(name, []), records)
        return found, Candidates.of(found)

    parts, checkups = [], []
    with stream(sizes, check, depth=2 * workers, name="doctor", threads=workers) as results:
        for found, part in results:
            parts.append(part)
            checkups.append((found.nbytes, found.left_out, found.sized))
            _note(found, findings, changes)
            on_shard(len(sizes))
    nbytes, passed_over, sized = np.sum(checkups, axis=0).tolist()
    _check_description(info, findings, sized)
    samples = Candidates.join(parts)
    drop = survey(samples, text_limit, findings)
    changes.survey(samples, drop)
    return Diagnosis(
        root,
        info,
        findings,
        manifest,
        seen,
        select(samples.table, drop < 0),
        changes,
        len(sizes),
        nbytes,
        passed_over,
        is_encoded(storage),
    )


def _manifest(root: Root, findings: Findings) -> Manifest | None:
    try:
        return read_manifest(root)
    except NewerVersion:
        raise
    except InputError as error:
        findings.add("manifest", MANIFEST_NAME, "", str(error))
        return None


def _named(storage: Storage, table: Manifest) -> dict[str, int]:
    """Size in bytes of the shards that the manifest names and that are there: a web server lists no others."""
    found = map(storage.stat, table.shards)
    return {entry.path: entry.size for entry in found if entry}


def _rows_by_shard(manifest: Manifest) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    order = np.argsort(manifest.shard, kind="stable")
    cuts = np.searchsorted(manifest.shard[order], np.arange(1, len(manifest.shards)))
    for name, part in zip(manifest.shards, np.split(order, cuts), strict=True) if manifest.shards else ():
        rows[name] += part.tolist()
    return rows


def _missing_shards(
    table: Manifest,
    rows: dict[str, list[int]],
    sizes: dict[str, int],
    findings: Findings,
    changes: Changes,
) -> None:
    for name in table.shards:
        if name in sizes:
            continue
        findings.add("shard", name, "", counted(len(rows[name]), "sample"))
        for row in rows[name]:
            changes.dropped(name, table.keys[row], "its shard is not there")


def _note(found: Checkup, findings: Findings, changes: Changes) -> None:
    """Count what one shard's checks found."""
    for problem in found.problems:
        findings.add(problem.kind, found.shard, problem.key, problem.detail)
    for broken in found.broken:
        findings.add(broken.kind, found.shard, broken.key, broken.detail)
    changes.checkup(found)


def _check_description(info: DatasetInfo, findings: Findings, sized: int) -> None:
    """dataset.json by itself, and its scale against what ``sized`` samples say of their size."""
    if sized and findings.of("bucket").count == sized:
        detail = f"its scale {info.scale.temporal}x{info.scale.spatial} gives no sample the size that its json names"
        findings.add("description", INFO_NAME, "", detail)
    for name in ("vae", "text_encoder"):
        if not getattr(info, name).fingerprint:
            findings.add("fingerprint", INFO_NAME, "", name)
    if info.null_prompt_embeds is None:
        findings.add("null", INFO_NAME)
        return
    try:
        payload = base64.b64decode(info.null_prompt_embeds, validate=True)
        entry = read_header(payload)["prompt_embeds"]
        if len(entry.shape) != 2 or entry.shape[1] != info.text_width:
            raise ValueError(f"shape {list(entry.shape)}, text_width {info.text_width}")
        if not all_finite(bits_of(payload, entry), entry.dtype):
            raise ValueError("numbers that are not finite")
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        findings.add("description", INFO_NAME, "", f"null_prompt_embeds: {error}")
