"""Whether a dataset's latents come from the VAE of the model to train, told by its class and its weights' hash."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from shards.dataset.info import INFO_NAME, Source
from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.source import part

if TYPE_CHECKING:
    from dist_trainer.dist import Gathering


def check_vae(source: str, kind: str, datasets: Iterable[Dataset], gathering: Gathering) -> None:
    """Raise InputError, alike on every rank, when another VAE than that of the model `source` encoded a dataset.

    `kind`: class of the VAE whose latents the model takes; the dataset of another model family names another one.
    Rank 0 alone reads the weights and tells the others. Where there is nothing to compare (a model without a VAE,
    a dataset that names none) it prints a note. Raises InputError on rank 0 for a VAE that cannot be loaded.
    """
    refusal = mismatches(source, kind, datasets) if gathering.world.is_main else ""
    refusal = gathering.share("VAE of the dataset", refusal)
    if refusal:
        raise InputError(refusal)


def mismatches(source: str, kind: str, datasets: Iterable[Dataset]) -> str:
    """The first `mismatch` of datasets; empty where there is none. Those of one VAE are compared once."""
    distinct: dict[Source, Dataset] = {}
    for one in datasets:
        distinct.setdefault(one.info.vae, one)
    return next(filter(None, (mismatch(source, kind, one) for one in distinct.values())), "")


def mismatch(source: str, kind: str, dataset: Dataset) -> str:
    """Why the dataset does not fit the model, in one line; empty where it does, or nobody can tell.

    Arguments, notes and errors as for `check_vae`.
    """
    encoded = dataset.info.vae
    strange = encoded.kind not in ("", kind)
    unknown = "whether its latents fit this model's VAE is not checked"
    if not encoded.fingerprint and not strange:
        return _note(f"{dataset.root}/{INFO_NAME} has no fingerprint of a VAE; {unknown}")
    reason = _without_vae(source)
    if reason and not strange:
        return _note(f"{dataset.root} was encoded by the VAE of {encoded.source}; {unknown}: {reason}")
    found = f"of unknown fingerprint ({reason})" if reason else _fingerprint(source)
    if found == encoded.fingerprint and not strange:
        return ""
    theirs, ours = (encoded.kind, kind) if strange else ("VAE", "VAE")
    return (
        f"{dataset.root}: latents were encoded by the {theirs} {encoded.fingerprint or 'of unknown fingerprint'} "
        f"(of {encoded.source}), but model.model_source {source} has the {ours} {found}; encode the clips again "
        "with this model, or train the model they were encoded for"
    )


def _fingerprint(source: str) -> str:
    import torch

    from shards.prepare.encode.models import fingerprint, load_vae

    return fingerprint(load_vae(source, torch.bfloat16))


def _without_vae(source: str) -> str:
    """Why there is no VAE to be had for a model; empty where there is one."""
    local = Path(source).expanduser()
    if local.exists():
        return "" if (local / "vae").is_dir() else f"{source} has no vae/"
    try:
        part(source, "vae")
    except InputError as error:
        return str(error)
    return ""


def _note(message: str) -> str:
    print(f"note: {message}", flush=True)
    return ""
