"""Where the parts of a model lie: a local folder, a hub repository, or a released version by name."""

from __future__ import annotations

from pathlib import Path

from shards.errors import InputError

# Versions that were released as one file only take their transformer from it and everything else from the
# repository of the release whose VAE they share.
SINGLE_FILES = "Lightricks/LTX-Video"
_SHARED = "Lightricks/LTX-Video-0.9.5"
VERSIONS: dict[str, tuple[str, str | None]] = {
    "LTXV_2B_0.9.0": (SINGLE_FILES, None),
    "LTXV_2B_0.9.1": ("Lightricks/LTX-Video-0.9.1", None),
    "LTXV_2B_0.9.5": (_SHARED, None),
    "LTXV_2B_0.9.6_DEV": (_SHARED, "ltxv-2b-0.9.6-dev-04-25.safetensors"),
    "LTXV_2B_0.9.6_DISTILLED": (_SHARED, "ltxv-2b-0.9.6-distilled-04-25.safetensors"),
    "LTXV_13B_097_DEV": ("Lightricks/LTX-Video-0.9.7-dev", None),
    "LTXV_13B_097_DISTILLED": ("Lightricks/LTX-Video-0.9.7-distilled", None),
}

LATEST = "LTXV_13B_097_DEV"
_SETTING = "model.model_source"


def part(source: str | Path, name: str, setting: str = _SETTING) -> Path:
    """Folder (or single .safetensors file) of a part of a model: transformer, vae, text_encoder, tokenizer.

    `source` is a local folder in diffusers' layout, a .safetensors file (transformer only), a hub id, or a version
    name of VERSIONS. Hub parts are downloaded into the hub's own cache; only the files of the part asked for.
    Raises InputError when it cannot be found; `setting` is what the user set it by, for the message.
    """
    text = str(source)
    local = Path(text).expanduser()
    if local.is_dir():
        if (local / name).is_dir():
            return local / name
        raise InputError(
            f"{setting}: {text}: folder has no {name}/; give a model folder as diffusers writes it"
        )
    if local.suffix == ".safetensors" and local.is_file() and name == "transformer":
        return local
    repository, single_file = VERSIONS.get(text, (text, None))
    if text not in VERSIONS and not is_hub_id(text):
        raise InputError(
            f"{setting}: {text}: no such folder, and not a hub id (owner/name) or a version name"
        )
    if name == "transformer" and single_file:
        return _download_file(SINGLE_FILES, single_file, setting)
    return _download_folder(repository, name, setting)


def transformer_config(source: str | Path) -> Path:
    """config.json of a model's transformer; for a single .safetensors file, the one beside it or of its release.

    From the hub it is fetched alone, before any weights. Raises InputError when it cannot be found.
    """
    text = str(source)
    local = Path(text).expanduser()
    if local.exists() or text not in VERSIONS:
        if not local.exists() and is_hub_id(text):
            return _download_file(text, "transformer/config.json", _SETTING)
        found = part(source, "transformer")
        return found / "config.json" if found.is_dir() else found.with_name("config.json")
    return _download_file(VERSIONS[text][0], "transformer/config.json", _SETTING)


def is_hub_id(text: str) -> bool:
    """Whether a text may name a repository of the hub, told from its look alone."""
    return text.count("/") == 1 and not text.startswith((".", "/", "~")) and not text.endswith("/")


def _download_folder(repository: str, name: str, setting: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repository, allow_patterns=[f"{name}/*"])) / name
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{setting}: {repository}: no such local folder, and {name}/ cannot be had from the hub: {reason}"
        ) from error
    if not folder.is_dir():
        # Offline, a snapshot is whatever parts of it were fetched before.
        raise InputError(
            f"{setting}: {repository}: the repository, or its copy in the local cache, has no {name}/; "
            "fetch it once on a machine with a network"
        )
    return folder


def _download_file(repository: str, filename: str, setting: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, filename))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{setting}: {repository}: no such local folder, and {filename} cannot be had from the hub: "
            f"{reason}"
        ) from error
