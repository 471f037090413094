"""``dataset.json``: what the shards themselves do not say, above all the models they were encoded with."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from shards.dataset.encoding import check_encoded
from shards.dataset.manifest import MANIFEST_NAME
from shards.errors import InputError
from shards.formats.shard import find_shards
from shards.formats.text import parse_json
from shards.geometry import Scale
from shards.storage import Root, Storage, is_url, open_storage

if TYPE_CHECKING:
    import torch

INFO_NAME = "dataset.json"
VERSION = 1


@dataclass(frozen=True)
class Source:
    """Where a frozen model came from (hub id or folder name), a hash of its weights, and its class's name.

    Each is empty where it is not known, as for samples that somebody else has encoded.
    """

    source: str = ""
    fingerprint: str = ""
    kind: str = ""


@dataclass(frozen=True)
class DatasetInfo:
    """What the shards themselves do not say: the models the samples were encoded with."""

    channels: int  # latent channels C
    text_width: int  # width D of prompt_embeds
    scale: Scale  # compression of the VAE
    vae: Source = field(default_factory=Source)
    text_encoder: Source = field(default_factory=Source)
    null_prompt_embeds: str | None = None  # embedding of the empty caption, from `pack_embeds`
    version: int = VERSION

    def null_embeds(self) -> torch.Tensor:
        """Embedding of the empty caption [T, D]. Raises InputError if the dataset was written without one."""
        if self.null_prompt_embeds is None:
            raise InputError(f"{INFO_NAME} holds no null_prompt_embeds: encode the dataset again to add it")
        from shards.formats.sample import parse

        return parse(bytearray(base64.b64decode(self.null_prompt_embeds)))["prompt_embeds"]


def pack_embeds(prompt_embeds: torch.Tensor) -> str:
    """Text form of an embedding [T, D] for ``null_prompt_embeds``: base64 of a safetensors payload."""
    from safetensors.torch import save

    return base64.b64encode(save({"prompt_embeds": prompt_embeds.detach().cpu().contiguous()})).decode(
        "ascii"
    )


def write_info(root: Root, info: DatasetInfo) -> None:
    """Write ``root/dataset.json`` atomically."""
    values = asdict(info) | {"scale": info.scale._asdict()}
    data = json.dumps(values, indent=2, sort_keys=True) + "\n"
    open_storage(root).write(INFO_NAME, data.encode("utf-8"))


def read_info(root: Root) -> DatasetInfo:
    """Read ``root/dataset.json``. Raises InputError when it is missing, unreadable or of a newer version.

    Where it is missing because the encoding is unfinished, or because nothing is at the URL, that is said.
    """
    path, storage = f"{root}/{INFO_NAME}", open_storage(root)
    try:
        text = storage.read(INFO_NAME)
    except FileNotFoundError:
        check_encoded(storage)
        raise InputError(f"{path} is missing: {_cure(storage)}") from None
    try:
        values = parse_json(text)
        version = int(values["version"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path} is not a dataset description ({error!r}): restore it from a copy"
        ) from error
    if version > VERSION:
        raise InputError(
            f"{path} has version {version}, this code reads up to {VERSION}: update ltx-dist-trainer"
        )
    try:
        channels, text_width = int(values["channels"]), int(values["text_width"])
        scale = Scale(**{name: int(value) for name, value in values["scale"].items()})
        if min(channels, text_width, *scale) < 1:
            raise ValueError("channels, text_width and scale are at least 1")
        return DatasetInfo(
            channels=channels,
            text_width=text_width,
            scale=scale,
            vae=Source(**values["vae"]),
            text_encoder=Source(**values["text_encoder"]),
            null_prompt_embeds=values.get("null_prompt_embeds"),
            version=version,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path} lacks or garbles a field ({error!r}): restore it from a copy") from error


def _cure(storage: Storage) -> str:
    """What to do about a description that is not there."""
    if is_url(storage.name) and not storage.stat(MANIFEST_NAME) and not _has_shards(storage):
        return f"no dataset is there, as {MANIFEST_NAME} is missing too: check the URL"
    return (
        "it holds the VAE's compression ratios, which the shards do not record. Copy it from a dataset encoded with "
        f"the same model, or run `ltx-shards index {storage.name} --like OTHER_DATASET`"
    )


def _has_shards(storage: Storage) -> bool:
    try:
        return bool(find_shards(storage))
    except (InputError, FileNotFoundError):  # a web server, which lists nothing, or no such bucket
        return False
