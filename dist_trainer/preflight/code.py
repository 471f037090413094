"""Which code a host would run: our own by its bytes, that of others by its version."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("torch", "deepspeed", "diffusers", "peft", "transformers", "safetensors", "numpy")
_OURS = ("shards", "dist_trainer", "launch")
_DRIVER = Path("/proc/driver/nvidia/version")
ROOT = Path(__file__).resolve().parents[2]
DRIVER = "driver"


def versions() -> dict[str, str]:
    """Name of a part -> its version or hash, "" where it is absent."""
    found = {"code": sources(ROOT), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    if torch.version.cuda:
        found |= {"CUDA": torch.version.cuda, "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    if _DRIVER.is_file():
        match = re.search(r"\s(\d+\.[\d.]+)\s", _DRIVER.read_text(encoding="utf-8"))
        found[DRIVER] = match[1] if match else ""
    return found


def sources(root: Path) -> str:
    """Hash over the source files of our packages below `root`: their paths and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for package in _OURS for path in (root / package).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
