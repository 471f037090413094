"""The tiny model folder that tests share, written once per process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from dist_trainer.tiny import write_tiny_model


@functools.cache
def tiny_model() -> Path:
    """Folder of the tiny LTX pipeline (seed 0). Read-only: a test that changes it copies it first."""
    folder = Path(tempfile.mkdtemp(prefix="tiny_model_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny_model(folder)
