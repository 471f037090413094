"""A folder that LTX-Video-Trainer preprocessed, to a dataset: the same numbers, trimmed, checked and paired."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from shards.counted import counted
from shards.dataset.info import DatasetInfo, Source, pack_embeds, write_info
from shards.dataset.manifest import Manifest, write_manifest
from shards.dataset.output import UNFINISHED_NAME, new_dataset, whole
from shards.errors import InputError
from shards.formats.header import reference_name
from shards.formats.meta import sample_json
from shards.formats.sample import payload
from shards.formats.tar import DEFAULT_SHARD_BYTES, ShardWriter
from shards.geometry import Bucket, Grid, Scale
from shards.prepare.failures import Failure, read_failures, reason_for, write_failures
from shards.prepare.importing.precomputed import (
    CONDITIONS,
    LATENTS,
    Contents,
    Found,
    Trio,
    read_sample,
    survey,
)
from shards.prepare.importing.pt import FileError, plain_numbers
from shards.prepare.tables.table import read_table, sample_keys
from shards.storage import Root, open_storage
from shards.stream import stream

LTX_SCALE = Scale(8, 32)
_REQUEST_NAME = ".import.json"  # in the dataset, says of what folder and options it was made
_MAX_TEXT_TOKENS = 256  # what LTX-Video-Trainer pads captions to


@dataclass(frozen=True)
class ImportOptions:
    """What the folder does not say, and what of it to take."""

    references: Sequence[str] | None = (
        None  # folders, in their order; None is reference_latents where there is one
    )
    fps: float = 24.0  # of files without a rate, as LTX-Video-Trainer takes them
    table: Path | None = None  # the dataset file: captions and media paths
    caption_column: str = "caption"
    media_column: str = "media_path"
    model: str | Path | None = None  # what the samples were encoded with
    shard_bytes: int = DEFAULT_SHARD_BYTES


@dataclass(frozen=True)
class ImportReport:
    """What was imported, what was left out and why, and what the user should know.

    `was_complete`: all of it was there before the call, which wrote nothing.
    """

    samples: int
    references: tuple[str, ...]
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    seconds: float
    was_complete: bool = False


class _Name(NamedTuple):
    key: str
    caption: str
    source: str


def import_precomputed(
    root: Path,
    out: Root,
    options: ImportOptions = ImportOptions(),
    *,
    on_sample: Callable[[int], None] = lambda total: None,
) -> ImportReport:
    """Write the samples of a ``.precomputed`` folder, or of the folder it is in, as a dataset into ``out``.

    Keys are those that ``encode`` gives where the table is known, else made of the files' names. What has no
    partner, or cannot be used, is left out and listed in ``out/failures.jsonl``. ``on_sample(total)`` is called
    after each sample read. What an interrupted import left in ``out`` is replaced, what a complete one of the same
    files and options wrote stays. The same folder gives the same bytes. Raises InputError when nothing can be
    imported, ``out`` holds something else, or the table, a folder or the model cannot be used.
    """
    started = time.perf_counter()
    if not (options.fps > 0 and math.isfinite(options.fps)):
        raise InputError(f"--fps {options.fps}: the rate of clips is a positive number")
    found = survey(root, options.references)
    names, notes = _names(found, options)
    request = _request(found, names, options)
    if done := _written(out, request):
        failures, seconds = read_failures(open_storage(out)), time.perf_counter() - started
        return ImportReport(len(done), found.taken, failures, (), seconds, was_complete=True)
    with new_dataset(out, "import") as storage:
        encoded_by = None if options.model is None else _describe(options.model)
        with ShardWriter(out, options.shard_bytes) as writer:
            result = _write_samples(found, names, options, encoded_by, writer, on_sample)
        failures = (*found.orphans, *result.failures)
        write_failures(storage, failures)
        if result.info is None:
            first = ": ".join(failures[0])
            raise InputError(f"{found.root}: none of its samples could be imported; the first, {first}")
        write_info(out, result.info)
        writer.finish_shard()
        storage.write(_REQUEST_NAME, request)
        write_manifest(out, Manifest.from_rows(writer.rows))
    if result.without_rate:
        notes.append(
            f"{counted(result.without_rate, 'file')} without a frame rate: {options.fps:g} was taken (--fps)"
        )
    seconds = time.perf_counter() - started
    return ImportReport(len(writer.rows), found.taken, failures, (*notes, *_pairing(found)), seconds)


def _request(found: Found, names: Mapping[str, _Name], options: ImportOptions) -> bytes:
    """What the dataset is made of, as JSON: the files by their names and sizes, what the table says, the options."""

    def size(name: str) -> int:
        path = found.root / name
        return path.stat().st_size if path.is_file() else -1

    digest = hashlib.sha256()
    for files in found.samples:
        sizes = [size(name) for name in (files.latents, files.condition, *files.references)]
        digest.update(json.dumps([*files, sizes, names[files.latents]]).encode())
    model = None if options.model is None else str(options.model)
    asked = {"model": model, "fps": options.fps, "shard_bytes": options.shard_bytes}
    return json.dumps({"files": digest.hexdigest()[:16], "references": found.taken, **asked}).encode()


def _written(out: Root, request: bytes) -> Manifest | None:
    """The manifest of ``out`` where a call with the same request was complete, and its shards are there."""
    storage = open_storage(out)
    if not storage.stat(_REQUEST_NAME) or storage.read(_REQUEST_NAME) != request:
        return None
    if (manifest := whole(out)) is None:
        return None
    storage.remove(UNFINISHED_NAME)  # of a call that was killed after its last step
    return manifest


class _Result(NamedTuple):
    info: DatasetInfo | None  # None without a sample
    failures: list[Failure]
    without_rate: int


def _write_samples(
    found: Found,
    names: Mapping[str, _Name],
    options: ImportOptions,
    info: DatasetInfo | None,
    writer: ShardWriter,
    on_sample: Callable[[int], None],
) -> _Result:
    """Read and add every sample; ``info`` is the model's, or made of the first sample."""
    failures: list[Failure] = []
    without_rate = 0

    def load(files: Trio) -> Contents | FileError:
        try:
            return read_sample(found.root, files)
        except FileError as error:
            return error

    with plain_numbers(), stream(found.samples, load, depth=8, name="import", threads=4) as loaded:
        for files, contents in zip(found.samples, loaded, strict=True):
            on_sample(len(found.samples))
            try:
                if isinstance(contents, FileError):
                    raise contents
                described = info or DatasetInfo(
                    contents.latents.shape[0], contents.prompt_embeds.shape[1], LTX_SCALE
                )
                _check_fit(contents, described)
                name, fps = names[files.latents], contents.fps or options.fps
                writer.add(name.key, _meta(name, contents, fps, described.scale), _payload(contents))
            except (FileError, InputError) as error:
                failures.append(Failure(files.latents, str(error).removeprefix(f"{files.latents}: ")))
                continue
            info = described
            without_rate += contents.fps is None
    return _Result(info if len(failures) < len(found.samples) else None, failures, without_rate)


def _check_fit(contents: Contents, info: DatasetInfo) -> None:
    """Raise FileError for a sample that cannot be in the dataset."""
    channels, width = contents.latents.shape[0], contents.prompt_embeds.shape[1]
    for index, reference in enumerate(contents.references):
        if reference.shape[0] != channels:
            raise FileError(f"{reference_name(index)} has {reference.shape[0]} channels, latents {channels}")
    if (channels, width) != (info.channels, info.text_width):
        raise FileError(
            f"latents of {channels} channels and text of width {width}, where the dataset has {info.channels} and "
            f"{info.text_width}"
        )


def _meta(name: _Name, contents: Contents, fps: float, scale: Scale) -> dict[str, Any]:
    frames, height, width = scale.pixels(Grid(*contents.latents.shape[1:]))
    return sample_json(
        caption=name.caption,
        source=name.source,
        fps=fps,
        width=width,
        height=height,
        frames=frames,
        bucket=Bucket(width, height, frames),
    )


def _payload(contents: Contents) -> bytes:
    """The tensors of a sample as it is stored. Raises FileError for tensors that cannot be."""
    tensors = {"latents": contents.latents, "prompt_embeds": contents.prompt_embeds}
    for index, reference in enumerate(contents.references):
        tensors[reference_name(index)] = reference
    try:
        return payload(tensors)
    except (ValueError, RuntimeError) as error:
        raise FileError(reason_for(error)) from error


def _names(found: Found, options: ImportOptions) -> tuple[dict[str, _Name], list[str]]:
    """Key, caption and source of every latents file, and what to say about them."""
    stems = {
        files.latents: files.latents.removeprefix(f"{LATENTS}/").removesuffix(".pt")
        for files in found.samples
    }
    table = options.table
    if table is None:
        keys = sample_keys(list(stems.values()))
        names = {file: _Name(key, "", file) for file, key in zip(stems, keys, strict=True)}
        return names, ["the files hold no captions: give the dataset file with --dataset to keep them"]
    rows = read_table(table, options.caption_column, options.media_column, None)
    media = [os.path.relpath(row.media, table.parent) for row in rows]
    known = {os.path.splitext(path)[0]: row for path, row in zip(media, rows, strict=True)}
    unknown = [stem for stem in stems.values() if stem not in known]
    others = dict(zip(unknown, sample_keys([*media, *unknown])[len(media) :], strict=True))
    names = {}
    for file, stem in stems.items():
        row = known.get(stem)
        names[file] = _Name(row.key, row.caption, row.source) if row else _Name(others[stem], "", file)
    notes = []
    if unknown:
        notes.append(
            f"{counted(len(unknown), 'sample')} not in {table}, so without a caption; the first is {unknown[0]}"
        )
    if absent := known.keys() - set(stems.values()):
        notes.append(
            f"{counted(len(absent), 'clip')} of {table} without a sample here; the first is {min(absent)}"
        )
    return names, notes


def _pairing(found: Found) -> list[str]:
    """What the folder as a whole gives reason to doubt, or to ask for."""
    notes = []
    left = {name: count for name, count in found.references.items() if name not in found.taken}
    if left:
        listed = ", ".join(f"{name} ({counted(count, 'file')})" for name, count in left.items())
        notes.append(f"not taken: {listed}; add --reference-dir NAME for reference latents")
    alone = sum(orphan.source.startswith(f"{CONDITIONS}/") for orphan in found.orphans)
    if alone:
        notes.append(
            f"{counted(alone, 'caption')} without latents: LTX-Video-Trainer gives latents the names of other clips "
            "when it passes over one that is too short (its issue 59), so look at some samples with `ltx-shards decode`"
        )
    return notes


def _describe(model: str | Path) -> DatasetInfo:
    """dataset.json of samples that ``model`` encoded, with the embedding of the empty caption."""
    import torch

    from shards.prepare.encode.models import fingerprint, load_text_encoder, load_tokenizer, load_vae
    from shards.prepare.encode.text import encode_prompt
    from shards.prepare.encode.vae import vae_scale

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    vae = load_vae(model, torch.bfloat16)
    encoder = load_text_encoder(model, dtype)
    text = Source(str(model), fingerprint(encoder), type(encoder).__name__)
    null, _ = encode_prompt(load_tokenizer(model), encoder.to(device), "", _MAX_TEXT_TOKENS)
    return DatasetInfo(
        channels=vae.config.latent_channels,
        text_width=null.shape[1],
        scale=vae_scale(vae),
        vae=Source(str(model), fingerprint(vae), type(vae).__name__),
        text_encoder=text,
        null_prompt_embeds=pack_embeds(null),
    )
