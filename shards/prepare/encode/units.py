"""One unit of work: some rows of the table into one shard, and a record of what became of each."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_64_intdigest

from shards.dataset.left_out import read_left_out
from shards.formats.meta import sample_json
from shards.formats.row import Row as Stored
from shards.formats.sample import payload
from shards.formats.tar import write_shard
from shards.geometry import Grid
from shards.prepare.encode.ahead import Standstill, running_ahead
from shards.prepare.encode.assign import Rules, share_kept
from shards.prepare.encode.cut import Decoded, Reading, decode, drop
from shards.prepare.encode.encoders import Encoders, hardware
from shards.prepare.encode.latents import batches, encode_batch
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.stale import ATTEMPTS, DEADLY, file_sizes, shard_name
from shards.prepare.encode.text import prompt_of
from shards.prepare.failures import Failure
from shards.prepare.tables.table import Row
from shards.prepare.work.shift import abandon
from shards.prepare.work.trial import deadly, mark_deadly
from shards.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

Sample = tuple[str, dict[str, Any], bytes]


@dataclass
class _Tally:
    """What became of the rows of a unit, counted as they go by."""

    failures: list[Failure] = field(default_factory=list)
    # Samples of each bucket, and the sums over them of the shares of picture and time that are kept.
    buckets: dict[str, list[float]] = field(default_factory=dict)
    pictures: set[str] = field(default_factory=set)  # keys of rows of videos
    cut: set[str] = field(default_factory=set)  # keys of rows
    uncaptioned: dict[str, str] = field(default_factory=dict)  # their sources by their keys


def encode_unit(
    storage: Storage,
    number: int,
    rows: Sequence[Row],
    encoders: Encoders,
    rules: Rules,
    options: EncodeOptions,
    on_row: Callable[[], None],
    doubtful: Sequence[Row] = (),
) -> dict[str, Any]:
    """Write the samples of `rows` for shard `number`; none where no row can be encoded. Plain values for JSON.

    The tar lies in ATTEMPTS, under a name of its own, until `publish` gives it its place. `on_row` is called as
    rows go by. The same rows and encoders give the same shard. Of `rows`, the `doubtful` ones are first decoded in
    another process, so that one that kills its process is a failure like others.
    """
    sizes = file_sizes(rows)
    read = partial(
        decode,
        rules=rules,
        seed=options.seed,
        reshape_mode=options.reshape_mode,
        reference_downscale=options.reference_downscale,
    )
    killers = deadly(partial(drop, read), doubtful, options.patience_s)
    mark_deadly(storage, DEADLY, [doubtful[index].source for index in killers])
    bad = {doubtful[index].key: reason for index, reason in killers.items()}
    tally = _Tally()
    attempt = f"{ATTEMPTS}/{number:06d}.{secrets.token_hex(4)}.tar"
    try:
        with closing(_samples(rows, partial(_read, read, bad), encoders, options, tally, on_row)) as samples:
            first = next(samples, None)
            written = [] if first is None else write_shard(storage, attempt, chain([first], samples))
    except Standstill as error:
        row: Row = error.item  # type: ignore[assignment]
        abandon(
            f"{row.source}: nothing came of it for {options.patience_s / 60:g} minutes, so this worker ends. Another "
            "goes on with its rows, or the same command does"
        )
    return {
        "attempt": attempt if written else None,
        "rows": [_as_list(row) for row in written],
        "failures": [list(entry) for entry in tally.failures],
        "bytes": _size(storage, attempt) if written else 0,
        "buckets": tally.buckets,
        "pictures": len(tally.pictures),
        "cut_captions": len(tally.cut),
        "empty_captions": list(tally.uncaptioned.values()),
        "sizes": sizes,
        "hardware": hardware(encoders.device),
    }


def publish(storage: Storage, number: int, made: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Put the tar of the recorded attempt in its place as shard `number`, and take away another that was made.

    So a shard and its record agree, whoever else did the unit too. May be called again, and by several.
    """
    if made["attempt"] and made["attempt"] != recorded["attempt"]:
        storage.remove(made["attempt"])
    name = shard_name(number)
    if recorded["attempt"] is None:
        storage.remove(name)  # of rows that could be encoded once
        return
    # Where it is gone it was put in place already.
    with suppress(FileNotFoundError):
        storage.move(recorded["attempt"], name)


def stored_rows(number: int, result: dict[str, Any]) -> list[Stored]:
    """Rows of the manifest out of the result of unit `number`."""
    return [_from_list(shard_name(number), values) for values in result["rows"]]


def without_left_out(storage: Storage, rows: Sequence[Stored]) -> list[Stored]:
    """Rows of the manifest, but those whose bytes, as they are in the shards now, repair left out."""
    places = {entry.place for entry in read_left_out(storage)}
    named = {(shard, key) for shard, key, _ in places}

    def is_left_out(row: Stored) -> bool:
        data = bytearray(row.nbytes)
        storage.fill(row.shard, row.offset, memoryview(data))
        return (row.shard, row.key, f"{xxh3_64_intdigest(data):016x}") in places

    return [row for row in rows if (row.shard, row.key) not in named or not is_left_out(row)]


def _size(storage: Storage, path: str) -> int:
    """Bytes of a file that was just written."""
    entry = storage.stat(path)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "the shard went away as soon as it was written", path)
    return entry.size


def _read(read: Reading, bad: Mapping[str, str], row: Row) -> Generator[Decoded | Failure, None, None]:
    """Decode a row, unless it is known to be deadly."""
    if row.key in bad:
        yield Failure(row.source, bad[row.key])
    else:
        yield from read(row)


def _samples(
    rows: Sequence[Row],
    read: Reading,
    encoders: Encoders,
    options: EncodeOptions,
    tally: _Tally,
    on_row: Callable[[], None],
) -> Generator[Sample, None, None]:
    threads, patience_s = options.decode_threads, options.patience_s
    # Decoding goes on in other threads while the networks work: both leave the interpreter lock.
    with running_ahead(rows, read, threads=threads, patience_s=patience_s, name="decode") as parts:
        texts = encoders.embed(prompt_of(row.caption, options.id_token) for row in rows)
        vae = encoders.ready_vae()
        for batch in batches(_successes(parts, tally, on_row), options.vae_batch):
            encoded = encode_batch(vae, batch, options.seed, options.vae_batch)
            for sample, tensors in zip(batch, encoded, strict=True):
                row = sample.clip.row
                if not all(bool(latents.isfinite().all()) for latents in tensors.values()):
                    reason = f"the VAE gave numbers that are not finite in {vae.dtype}"
                    tally.failures.append(Failure(row.source, reason))
                    continue
                prompt = prompt_of(row.caption, options.id_token)
                text = texts[prompt]
                if text.cut:
                    tally.cut.add(row.key)
                if not row.caption:
                    tally.uncaptioned[row.key] = row.source
                if sample.clip.info.frames > sample.clip.bucket.frames == 1:
                    tally.pictures.add(row.key)
                sums = tally.buckets.setdefault(str(sample.clip.bucket), [0, 0.0, 0.0])
                sums[:] = [a + b for a, b in zip(sums, (1, *share_kept(sample.clip)), strict=True)]
                yield _sample(sample, prompt, {**tensors, "prompt_embeds": text.embeds})


def _successes(
    parts: Iterator[tuple[Row, Decoded | Failure]], tally: _Tally, on_row: Callable[[], None]
) -> Iterator[Decoded]:
    current = None
    for row, part in parts:
        if row is not current:
            current = row
            on_row()
        if isinstance(part, Failure):
            tally.failures.append(part)
        else:
            yield part


def _sample(sample: Decoded, prompt: str, tensors: dict[str, Tensor]) -> Sample:
    info = sample.clip.info
    meta = sample_json(
        caption=prompt,
        source=sample.clip.row.source,
        fps=sample.fps,
        width=info.width,
        height=info.height,
        frames=info.frames,
        bucket=sample.clip.bucket,
    )
    return sample.window.key, {**meta, "start": sample.window.start}, payload(tensors)


def _as_list(row: Stored) -> list[Any]:
    return [getattr(row, name) for name in Stored._fields if name != "shard"]


def _from_list(shard: str, values: Sequence[Any]) -> Stored:
    names = [name for name in Stored._fields if name != "shard"]
    fields = dict(zip(names, values, strict=True))
    fields["grid"] = Grid(*fields["grid"])
    fields["references"] = tuple(Grid(*grid) for grid in fields["references"])
    return Stored(shard=shard, **fields)
