"""The checks over all samples at once: what no shard shows by itself, such as duplicates and outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shards.dataset.manifest import Manifest
from shards.dataset.selection import join, select
from shards.doctor.checkup import STRAY, Checkup
from shards.doctor.examination import DTYPES
from shards.doctor.finding import EXAMPLES, KINDS, Findings

_SLOWEST, _FASTEST = 1.0, 240.0  # frames per second of anything filmed
_OFF = 4.0  # times the median rate

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The whole samples of the shards, N, in the order they would have in a manifest."""

    table: Manifest
    numbers: Numbers  # [N] row of the manifest as it is, STRAY where it has none
    latents: npt.NDArray[np.uint64]  # [N] hash of the latents' bytes
    clips: npt.NDArray[np.uint64]  # [N] hash of where the clip is from, 0 unknown
    dtypes: npt.NDArray[np.uint8]  # [N] of the latents, index into DTYPES

    @classmethod
    def of(cls, found: Checkup) -> Candidates:
        """Those of one shard."""
        whole = found.whole
        return cls(
            Manifest.from_rows([sample.found.row for sample in whole], check=False),
            np.array([sample.number for sample in whole], np.int64),
            np.array([sample.found.latents for sample in whole], np.uint64),
            np.array([sample.found.clip for sample in whole], np.uint64),
            np.array([sample.found.dtype for sample in whole], np.uint8),
        )

    @classmethod
    def join(cls, parts: Sequence[Candidates]) -> Candidates:
        """Those of all shards: the rows of the manifest in its order, then the others in that of the shards."""
        table = join([part.table for part in parts], check=False)
        numbers = np.concatenate([part.numbers for part in parts])
        order = np.argsort(np.where(numbers == STRAY, np.iinfo(np.int64).max, numbers), kind="stable")
        columns = (
            np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("numbers", "latents", "clips", "dtypes")
        )
        return cls(select(table, order), *columns)


REASONS = tuple(KINDS)
_Report = Callable[..., None]


def survey(samples: Candidates, text_limit: int, findings: Findings) -> npt.NDArray[np.int16]:
    """Add what is wrong to ``findings``; [N] the reason to drop each sample, index into ``REASONS``, -1 for none."""
    drop = np.full(len(samples.table), -1, np.int16)

    def report(kind: str, wrong: Mask | Numbers, detail: Callable[[int], str], dropped: bool = False) -> None:
        rows = np.flatnonzero(wrong) if wrong.dtype == bool else wrong
        for row in rows.tolist()[:EXAMPLES]:
            findings.add(kind, _shard(samples.table, row), samples.table.keys[row], detail(row))
        findings.count(kind, len(rows) - EXAMPLES)
        if dropped:
            drop[rows[drop[rows] < 0]] = REASONS.index(kind)

    if len(samples.table):
        _single(samples, text_limit, report)
        _references(samples, report)
        _duplicates(samples, report)
    return drop


def fitting(target: npt.NDArray[np.int32], reference: npt.NDArray[np.int32]) -> Mask:
    """Whether training accepts references of these latent grids, F H W [N, 3], with these targets.

    Height and width of the target must be multiples of the reference's. Frames count from the first one,
    which both have: F-1 must be a multiple of F'-1; a reference of a single frame fits any target.
    """
    large, small = target.astype(np.int64).copy(), reference.astype(np.int64).copy()
    large[:, 0] -= 1
    small[:, 0] -= 1
    single = small[:, 0] == 0
    large[single, 0] = small[single, 0] = 1
    return ((large >= small) & (large % np.maximum(small, 1) == 0)).all(axis=1)


def _single(samples: Candidates, text_limit: int, report: _Report) -> None:
    table = samples.table
    report("text", table.text_tokens == 0, lambda row: "0 tokens", dropped=True)
    report("text limit", table.text_tokens == text_limit, lambda row: f"{table.text_tokens[row]} tokens")
    video = table.grid[:, 0] > 1
    usual = float(np.median(table.fps[video])) if video.any() else 1.0
    odd = (table.fps < max(_SLOWEST, usual / _OFF)) | (table.fps > min(_FASTEST, usual * _OFF))
    report(
        "odd rate",
        video & odd,
        lambda row: f"{table.fps[row]:g} fps, half of the videos are at {usual:g} or below",
    )
    counts = np.bincount(samples.dtypes, minlength=len(DTYPES))
    common = int(counts.argmax())
    report(
        "dtype",
        samples.dtypes != common,
        lambda row: f"{DTYPES[samples.dtypes[row]]}, most are {DTYPES[common]}",
    )


def _references(samples: Candidates, report: _Report) -> None:
    table = samples.table
    there = np.asarray(table.references.any(axis=2))
    if not there.size:
        return
    fit = np.ones(len(table), bool)
    for number in range(there.shape[1]):
        fit &= ~there[:, number] | fitting(table.grid, table.references[:, number])
    report(
        "reference size",
        ~fit,
        lambda row: (
            f"target {table.grid[row].tolist()}, references {[list(g) for g in table.references_of(row)]}"
        ),
        dropped=True,
    )
    some = np.asarray(there.any(axis=1))
    if some.any() and not some.all():
        report("some references", ~some, lambda row: f"{int(some.sum())} of {len(some)} samples have one")


def _duplicates(samples: Candidates, report: _Report) -> None:
    table = samples.table
    later, first = _repeats(table.ids)
    report("key", later, lambda row: f"first in {_shard(table, first[row])}", dropped=True)
    single = np.ones(len(table), bool)
    single[later] = False
    copies, origin = _repeats(table.checksum, single)
    report("copy", copies, lambda row: f"of {table.keys[origin[row]]!r}")
    single[copies] = False
    twins, twin = _repeats(samples.latents, single)
    report("same latents", twins, lambda row: f"as {table.keys[twin[row]]!r}")
    single[twins] = False
    clips, clip = _repeats(samples.clips, single & (samples.clips != 0))
    report("same clip", clips, lambda row: f"as {table.keys[clip[row]]!r}")


def _repeats(values: npt.NDArray[np.uint64], among: Mask | None = None) -> tuple[Numbers, dict[int, int]]:
    """Rows whose value an earlier row has, sorted, and for the first few of them that earlier row."""
    rows = np.arange(len(values)) if among is None else np.flatnonzero(among)
    order = rows[np.argsort(values[rows], kind="stable")]
    ordered = values[order]
    same = np.concatenate([[False], ordered[1:] == ordered[:-1]]) if len(order) else np.zeros(0, bool)
    # The first of a group of equal values is its earliest row: the sort is stable.
    heads = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    later, first = order[same], heads[same]
    by_row = np.argsort(later, kind="stable")
    return later[by_row], dict(
        zip(later[by_row].tolist()[:EXAMPLES], first[by_row].tolist()[:EXAMPLES], strict=True)
    )


def _shard(table: Manifest, row: int) -> str:
    return table.shards[table.shard[row]]
