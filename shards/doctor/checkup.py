"""The checks of one shard: its structure, and every sample against its checksum, its row and common sense."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from shards.dataset.info import DatasetInfo
from shards.dataset.manifest import Manifest
from shards.doctor.examination import Examined, Problem, Unfit, examine
from shards.errors import InputError, MissingMember, ShardError
from shards.formats.mds import read_mds
from shards.formats.members import walk
from shards.formats.row import Row, Stored
from shards.formats.shard import format_of
from shards.formats.tar import read_stored
from shards.formats.text import printable
from shards.geometry import Grid
from shards.hashing import sample_id
from shards.storage import Storage

STRAY = -1


class Broken(NamedTuple):
    """A sample that must not be trained. ``row`` of the manifest, or STRAY; no checksum where no bytes are."""

    row: int
    key: str
    checksum: int | None
    kind: str
    detail: str


class Whole(NamedTuple):
    """A sample fit to be trained. ``number`` of its row in the manifest, or STRAY."""

    number: int
    found: Examined


@dataclass
class Checkup:
    """What the checks of one shard found, a few numbers a sample and no payload."""

    shard: str
    problems: list[Problem] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    whole: list[Whole] = field(default_factory=list)
    sized: int = 0  # samples whose json names a bucket
    left_out: int = 0  # strays that the list of left-out samples has
    nbytes: int = 0


@dataclass(frozen=True, eq=False)
class Records:
    """What the dataset says of its samples; ``left_out``: those of its shards that the manifest leaves out."""

    manifest: Manifest
    info: DatasetInfo
    left_out: Collection[tuple[str, str, str]]


def check_shard(storage: Storage, name: str, rows: list[int], records: Records) -> Checkup:
    """Look at a shard that exists; ``rows`` of the manifest are said to be in it. Payloads are read once."""
    return _ShardCheck(storage, name, rows, records).run()


class _ShardCheck:
    def __init__(self, storage: Storage, name: str, rows: list[int], records: Records) -> None:
        self.storage, self.name = storage, name
        self.manifest = manifest = records.manifest
        self.info, self.left_out = records.info, records.left_out
        self.found = Checkup(name)
        self.places = {(manifest.keys[row], int(manifest.offset[row])): row for row in reversed(rows)}
        self.keys: dict[str, list[int]] = {}
        for row in rows:
            self.keys.setdefault(manifest.keys[row], []).append(row)
        self.open = dict.fromkeys(rows)  # rows not met yet, in order
        self.differing: list[tuple[Broken, Whole]] = []  # by checksum alone
        self.confirmed = 0
        self.damaged = False

    def run(self) -> Checkup:
        try:
            with _samples(self.storage, self.name) as samples:
                for sample in samples:
                    self.take(sample)
        except Exception as error:  # whatever a shard does to its reader, the others are looked at
            self.damaged = True
            self.note("unreadable", "", _reason(error))
        for row in self.open:
            self.look_up(row)
        self.judge_differing()
        self.found.whole.sort(key=lambda whole: whole.number if whole.number != STRAY else len(self.manifest))
        return self.found

    def note(self, kind: str, key: str, detail: str) -> None:
        self.found.problems.append(Problem(kind, key, detail))

    def take(self, sample: Stored | ShardError) -> None:
        """One sample of the shard, or what is wrong in its place."""
        if isinstance(sample, ShardError) and not isinstance(sample, MissingMember):
            self.damaged = True
            self.note("structure", sample.key, f"{sample.what}: {sample.found}")
            return
        key = printable(sample.key)
        if isinstance(sample, MissingMember):
            row, checksum, digits = self.claim(key, STRAY), 0, ""
        else:
            row = self.claim(key, sample.offset)
            self.found.nbytes += len(sample.payload)
            checksum = xxhash.xxh3_64_intdigest(sample.payload)
            digits = f"{checksum:016x}"
        if row == STRAY and (self.name, key, digits) in self.left_out:
            self.found.left_out += 1
        elif isinstance(sample, MissingMember):
            self.broken(row, key, None, "members", f"{sample.expected}: {sample.found}")
        else:
            self.judge(row, sample, checksum)

    def claim(self, key: str, offset: int) -> int:
        """The manifest's row of a sample: that of its place, else one of its key."""
        row = self.places.get((key, offset), STRAY)
        if row not in self.open:
            row = next((other for other in self.keys.get(key, ()) if other in self.open), STRAY)
        self.open.pop(row, None)
        return row

    def look_up(self, row: int) -> None:
        """A row that the walk through the shard did not meet, by its own place."""
        manifest, key = self.manifest, self.manifest.keys[row]
        twin = self.places[key, int(manifest.offset[row])]
        if twin != row:
            self.broken(row, key, None, "key", f"rows {twin} and {row} are the same")
            return
        if not self.damaged:
            self.broken(row, key, None, "row", self.name)
            return
        offset, nbytes = int(manifest.offset[row]), int(manifest.nbytes[row])
        if offset < 0 or nbytes < 0:
            self.broken(row, key, None, "row", f"{nbytes} bytes from byte {offset}")
            return
        try:
            entry = self.storage.stat(self.name)
            # A byte is asked for even where the file ends: a disk that fails says so.
            buffer = bytearray(min(nbytes, max(1, (entry.size if entry else 0) - offset)))
            count = self.storage.fill(self.name, offset, memoryview(buffer))
        except (OSError, InputError) as error:
            self.broken(row, key, None, "unreadable", _reason(error))
            return
        if count < nbytes:
            self.broken(row, key, None, "cut", f"{count} of {nbytes} bytes")
            return
        self.found.nbytes += count
        payload = bytes(buffer)
        self.judge(row, Stored(key, offset, b"", payload), xxhash.xxh3_64_intdigest(payload))

    def broken(self, row: int, key: str, checksum: int | None, kind: str, detail: str) -> None:
        self.found.broken.append(Broken(row, key, checksum, kind, detail))

    def judge(self, row: int, stored: Stored, checksum: int) -> None:
        """Sort a sample into whole and broken."""
        key = printable(stored.key)
        differs = row != STRAY and checksum != int(self.manifest.checksum[row])
        expected = (
            f"{self.manifest.checksum[row]:016x} in the manifest, found {checksum:016x}" if differs else ""
        )
        rate = float(self.manifest.fps[row]) if row != STRAY else None
        try:
            found = examine(self.name, stored, checksum, self.info, rate)
        except Unfit as error:
            kind, detail = ("checksum", expected) if differs else error.args
            self.broken(row, key, checksum, kind, detail)
            return
        except Exception as error:  # what damaged bytes raise is not limited to a few kinds
            self.broken(row, key, checksum, "tensors", _reason(error))
            return
        if row != STRAY:
            found.problems.extend(self.compare(row, found.row))
        if differs:
            self.differing.append((Broken(row, key, checksum, "checksum", expected), Whole(row, found)))
            return
        self.confirmed += row != STRAY
        self.accept(Whole(row, found))

    def accept(self, whole: Whole) -> None:
        if whole.number == STRAY:
            self.note("stray", whole.found.row.key, "")
        self.found.sized += whole.found.sized
        self.found.problems += whole.found.problems
        self.found.whole.append(whole)

    def judge_differing(self) -> None:
        """Damage moves no sample: where none is as the manifest says and some lie elsewhere, it was written again."""
        moved = any(
            problem.kind == "place" for _, whole in self.differing for problem in whole.found.problems
        )
        if moved and not self.confirmed and not self.damaged:
            for broken, whole in self.differing:
                self.note("stale", broken.key, broken.detail)
                self.accept(whole)
            return
        self.found.broken += [broken for broken, _ in self.differing]

    def compare(self, row: int, found: Row) -> Iterator[Problem]:
        """How a row of the manifest differs from its sample."""
        manifest, key = self.manifest, found.key
        if (number := int(manifest.ids[row])) != sample_id(key):
            yield Problem("id", key, f"{number:016x} in the manifest")
        if (place := int(manifest.offset[row])) != found.offset or int(manifest.nbytes[row]) != found.nbytes:
            yield Problem("place", key, f"offset {place} in the manifest, {found.offset} in {self.name}")
        said = (
            Grid(*manifest.grid[row].tolist()),
            *manifest.references_of(row),
            int(manifest.text_tokens[row]),
        )
        if said != (found.grid, *found.references, found.text_tokens):
            sizes = [list(part) if isinstance(part, tuple) else part for part in said]
            yield Problem("shape", key, f"{sizes} in the manifest, latents {list(found.grid)}")
        if float(manifest.fps[row]) != found.fps:
            yield Problem("rate", key, f"{manifest.fps[row]} in the manifest, {found.fps} in the json")


def _reason(error: Exception) -> str:
    """Why something could not be read, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = next(iter(str(error).splitlines()), "")
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


@contextmanager
def _samples(storage: Storage, name: str) -> Iterator[Iterator[Stored | ShardError]]:
    """The samples of a shard of either format; in place of one that is not whole, what is wrong with it."""
    if format_of(name) != "tar":
        yield _until_damage(read_mds(storage, name))
        return
    with storage.local(name) as path, open(path, "rb") as file:

        def walked() -> Iterator[Stored | ShardError]:
            found = walk(file, name)
            for members in found.samples:
                if found.damage and (members.json is None or members.tensors is None):
                    continue  # the other member is behind the damage
                try:
                    yield read_stored(file, name, members)
                except ShardError as error:
                    yield error
            if found.damage:
                yield found.damage

        yield walked()


def _until_damage(samples: Iterator[Stored]) -> Iterator[Stored | ShardError]:
    try:
        yield from samples
    except ShardError as error:
        yield error
