"""One unit of work: some rows of the table into one shard, and a record of what became of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from shards.formats import SHARDS
from shards.formats.meta import sample_json
from shards.formats.row import Row as Stored
from shards.formats.sample import payload
from shards.formats.tar import scan_shard, write_shard
from shards.geometry import Grid
from shards.prepare.encode.ahead import running_ahead
from shards.prepare.encode.assign import Rules
from shards.prepare.encode.cut import Decoded, decode
from shards.prepare.encode.encoders import Encoders
from shards.prepare.encode.latents import batches, encode_batch
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.text import prompt_of
from shards.prepare.failures import Failure
from shards.prepare.tables.table import Row
from shards.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

Sample = tuple[str, dict[str, Any], bytes]


@dataclass
class _Tally:
    """What became of the rows of a unit, counted as they go by."""

    failures: list[Failure] = field(default_factory=list)
    buckets: Counter[str] = field(default_factory=Counter)
    cut: set[str] = field(default_factory=set)  # keys of rows
    uncaptioned: set[str] = field(default_factory=set)


def encode_unit(
    storage: Storage,
    number: int,
    rows: Sequence[Row],
    encoders: Encoders,
    rules: Rules,
    options: EncodeOptions,
    on_row: Callable[[], None],
) -> dict[str, Any]:
    """Write the samples of `rows` into shard `number`; none where no row can be encoded. Plain values for JSON.

    `on_row` is called as rows go by. The same rows and encoders give the same shard and the same result.
    """
    tally = _Tally()
    name = f"{SHARDS}/{number:06d}.tar"
    with closing(_samples(rows, encoders, rules, options, tally, on_row)) as samples:
        first = next(samples, None)
        written = [] if first is None else _write(storage, name, chain([first], samples))
    return {
        "rows": [_as_list(row) for row in written],
        "failures": [list(entry) for entry in tally.failures],
        "buckets": dict(tally.buckets),
        "cut_captions": len(tally.cut),
        "empty_captions": len(tally.uncaptioned),
    }


def stored_rows(number: int, result: dict[str, Any]) -> list[Stored]:
    """Rows of the manifest out of the result of unit `number`."""
    return [_from_list(f"{SHARDS}/{number:06d}.tar", values) for values in result["rows"]]


def _write(storage: Storage, name: str, samples: Iterable[Sample]) -> list[Stored]:
    try:
        return write_shard(storage, name, samples)
    except FileNotFoundError:
        # This worker stood still so long that another did the unit, ended the job and cleared what we had begun.
        return scan_shard(storage, name)


def _samples(
    rows: Sequence[Row],
    encoders: Encoders,
    rules: Rules,
    options: EncodeOptions,
    tally: _Tally,
    on_row: Callable[[], None],
) -> Generator[Sample, None, None]:
    read = partial(
        decode,
        rules=rules,
        seed=options.seed,
        reshape_mode=options.reshape_mode,
        reference_downscale=options.reference_downscale,
    )
    # Decoding goes on in other threads while the networks work: both leave the interpreter lock.
    with running_ahead(rows, read, threads=options.decode_threads, name="decode") as parts:
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
                    tally.uncaptioned.add(row.key)
                tally.buckets[str(sample.clip.bucket)] += 1
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
