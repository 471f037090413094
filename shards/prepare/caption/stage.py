"""A pass over a listing: captions for what has none, by any number of workers, into one table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.prepare.caption.asking import ask, find_killers
from shards.prepare.caption.captioner import Captioner
from shards.prepare.caption.doubt import Doubt
from shards.prepare.caption.listing import Listing
from shards.prepare.caption.options import CaptionOptions, check
from shards.prepare.caption.rounds import Rounds, digest
from shards.prepare.caption.unit import caption_unit
from shards.prepare.failures import FAILURES_NAME, Failure, write_failures
from shards.prepare.tables.rows import table_bytes, write_rows
from shards.prepare.work.job import Job
from shards.prepare.work.progress import progress_bar
from shards.prepare.work.trial import mark_deadly, marked_deadly
from shards.prepare.work.workers import ALONE, Worker
from shards.storage import open_storage

# Clips of a unit: more where many are captioned at a time, since the last ones of a unit are few.
_UNIT, _UNIT_OF_MANY = 16, 256


@dataclass(frozen=True)
class CaptionReport:
    """What a pass did, by the work of all workers: rows it gave a caption, and those whose own was `kept`.

    `clips_per_s` leaves out the time that the model took to load. `model` and `sees` are None where nothing
    was left to do.
    """

    out: Path
    captioned: int
    kept: int
    failures: tuple[Failure, ...]
    seconds: float
    clips_per_s: float
    model: str | None
    sees: str | None


def caption(
    listing: Callable[[], Listing],
    options: CaptionOptions,
    open_captioner: Callable[[], Captioner],
    *,
    overwrite: bool = False,
    worker: Worker = ALONE,
) -> CaptionReport:
    """Caption what `listing()` names without a caption and write its table, as one of several workers.

    The captions made so far are kept in a hidden folder beside the table, by the options: whatever is killed,
    the same call with any number of workers goes on there and writes the same table. Clips that get no
    caption are listed in NAME.failures.jsonl beside the table, and tried again by the next call. The model is
    opened only if there is something to do. `listing` is called again when the table is written, so that
    changes made to it meanwhile are kept. With `overwrite` each call captions all clips anew, unless it goes on
    with one that was killed; the other workers' part in that begins with the first one's.

    Raises `InputError` when nothing can be captioned at all, and when a server is gone.
    """
    check(options)
    began = time.perf_counter()
    work = _Pass(listing, options, open_captioner, overwrite, worker)
    work.run()
    if worker.index == 0:
        work.write_table()
    captioned, kept = work.count_rows()
    failures = work.failures()
    if failures and not captioned and not kept:
        raise InputError(
            f"{work.listing.out}: none of {len(failures)} clips got a caption; the first, {failures[0].source}: "
            f"{failures[0].reason}"
        )
    seconds = time.perf_counter() - began
    opened = work.opened
    return CaptionReport(
        out=work.listing.out,
        captioned=captioned,
        kept=kept,
        failures=failures,
        seconds=seconds,
        clips_per_s=work.tried / work.busy_s if work.busy_s else 0.0,
        model=opened.name if opened else None,
        sees=opened.sees if opened else None,
    )


def failures_path(out: Path) -> Path:
    """The file beside the table `out` that lists what got no caption and why."""
    return out.with_name(f"{out.stem}.{FAILURES_NAME}")


class _Pass:
    """One worker's way through the rounds of a pass."""

    def __init__(
        self,
        listing: Callable[[], Listing],
        options: CaptionOptions,
        open_captioner: Callable[[], Captioner],
        overwrite: bool,
        worker: Worker,
    ) -> None:
        self.listing = listing()
        self.opened: Captioner | None = None
        self.tried = 0  # clips, by all workers, while this one took part
        self.busy_s = 0.0  # with that
        self._list = listing
        self._options = options
        self._open = open_captioner
        self._overwrite = overwrite
        self._worker = worker
        out = self.listing.out
        self._storage = open_storage(out.parent)
        folder = f".{out.name}.caption/{digest(asdict(options))}"
        self._rounds = Rounds(self._storage, folder, out.parent, worker, overwrite)

    def run(self) -> None:
        """Do rounds until every clip that is wanted has a caption or was tried in vain."""
        tried: set[str] = set()
        while (clips := self._next(tried)) is not None:
            self._do(clips)
            tried.update(clips if self._rounds.ours else ())
            self._rounds.take_finished()

    def count_rows(self) -> tuple[int, int]:
        """Rows of the listing that get a caption, and those that keep the one they had when this began."""
        listing, captions = self.listing, self._rounds.captions
        had = [listing.has_caption(row) for row in listing.rows]
        got = [
            row[listing.media] in captions and (self._overwrite or not has)
            for row, has in zip(listing.rows, had, strict=True)
        ]
        return sum(got), sum(has and not new for has, new in zip(had, got, strict=True))

    def failures(self) -> tuple[Failure, ...]:
        """What is wanted and has no caption, with the last reason."""
        return _failures(self.listing, self._overwrite, self._rounds.captions, self._rounds.reasons)

    def write_table(self) -> None:
        """Write the table and the list of failures, unless they are what they should be already."""
        self._write(self._rounds.captions, self._rounds.reasons)

    def _next(self, tried: set[str]) -> list[str] | None:
        """The clips of the round to do now, beginning one if need be; None when nothing is left."""
        rounds = self._rounds
        while (clips := rounds.open()) is None:
            if not rounds.may_begin():
                return rounds.open()
            wanted = [
                media
                for media in self.listing.uncaptioned(self._overwrite)
                if media not in rounds.captions
                and media not in tried
                # What failed before is for one worker alone, or each that comes late would try it once more.
                and (self._worker.index == 0 or media not in rounds.reasons)
            ]
            if not wanted:
                return None
            rounds.begin(wanted)
        return clips

    def _do(self, clips: Sequence[str]) -> None:
        if self.opened is None:
            self.opened = self._open()
        captioner = self.opened
        size = _UNIT_OF_MANY if self._options.at_server else _UNIT
        identity = {
            "work": "caption",
            **asdict(self._options),
            "model": captioner.name,
            "sees": captioner.sees,
            "clips": digest(clips),
        }
        path = self._rounds.path
        job = Job(self._storage, path, -(-len(clips) // size), identity)
        folder = self.listing.out.parent
        answers = partial(ask, captioner, folder=folder, options=self._options)
        doubt = Doubt(captioner)
        deaths = f".{self.listing.out.name}.caption/deadly"
        died = marked_deadly(self._storage, deaths, clips)
        began = time.perf_counter()
        with progress_bar(quiet=self._worker.index > 0) as progress:
            bar = progress.add_task("Captioning", total=len(clips))
            before: int | None = None

            def on_units(done: int, _: int) -> None:
                nonlocal before
                count = min(done * size, len(clips))
                before = count if before is None else before
                progress.update(bar, completed=count)

            def do(unit: int, careful: bool = False) -> dict[str, Any]:
                chosen = clips[unit * size : (unit + 1) * size]
                kept = f"{path}/answered/{unit:06d}.json"
                tried = [media for media in chosen if careful or media in died]
                killers = find_killers(tried, folder, self._options)
                mark_deadly(self._storage, deaths, killers)
                found = partial(answers, killers=killers)
                on_clip = partial(progress.advance, bar)
                return caption_unit(found, chosen, doubt, self._storage, kept, on_clip, careful)

            job.run(
                self._worker,
                do,
                self._finish,
                on_units,
                lambda unit: f"{clips[unit * size]} and those after it",
                careful=partial(do, careful=True),
            )
        self.tried += len(clips) - (before or 0)
        self.busy_s += time.perf_counter() - began

    def _finish(self, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        captions = {media: text for result in results for media, text in result["captions"].items()}
        failures = {media: reason for result in results for media, reason in result["failures"].items()}
        self._rounds.finish(captions)
        self._write({**self._rounds.captions, **captions}, {**self._rounds.reasons, **failures})
        for entry in self._storage.list(f"{self._rounds.path}/answered"):
            self._storage.remove(entry.path)
        return {"captioned": len(captions), "failures": failures}

    def _write(self, captions: Mapping[str, str], reasons: Mapping[str, str]) -> None:
        listing = self._list()
        failures = _failures(listing, self._overwrite, captions, reasons)
        beside = failures_path(listing.out)
        write_failures(self._storage, failures, beside.name)
        rows = listing.captioned(captions, self._overwrite)
        if not rows:
            return
        if not listing.out.is_file() or listing.out.read_bytes() != table_bytes(listing.out, rows):
            write_rows(listing.out, rows)


def _failures(
    listing: Listing, overwrite: bool, captions: Mapping[str, str], reasons: Mapping[str, str]
) -> tuple[Failure, ...]:
    """What is wanted and has no caption, with the reason, after the files that no table can name."""
    wanted = listing.uncaptioned(overwrite)
    tried = (Failure(name, reasons[name]) for name in wanted if name not in captions and name in reasons)
    return (*listing.unusable, *tried)
