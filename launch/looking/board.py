"""TensorBoard over a run or several, and the tunnel to it."""

from __future__ import annotations

import getpass
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from shards.errors import InputError

PORT = 6006
_LOCALHOST = "localhost"
_EVENTS = "events.out.tfevents.*"
_TRIES = 20


def check_events(folder: Path) -> None:
    """Raise InputError unless there are TensorBoard events of a run in `folder`, or of runs in it."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give a run's folder (its output_dir), or one that holds runs"
        )
    # A search through all of it might meet a dataset.
    for depth in ("", "tensorboard/", "*/tensorboard/", "*/*/tensorboard/"):
        if next(folder.glob(depth + _EVENTS), None):
            return
    raise InputError(
        f"{folder}: no TensorBoard events; they come with the first step, unless tensorboard.enabled is false"
    )


def free_port(wanted: int | None, bind: str) -> int:
    """The port wanted, else the first free one from 6006 on. Raises InputError where that is taken."""
    for port in [wanted] if wanted else range(PORT, PORT + _TRIES):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((bind, port))
            except OSError as error:
                reason = error
            else:
                return port
    raise InputError(f"--port {wanted or PORT}: {reason.strerror} on {bind}; give another --port")


def tunnel(port: int, environ: Mapping[str, str]) -> str:
    """The command for a user's own machine after which http://localhost:PORT there is TensorBoard here.

    Inside a Slurm job it goes through the host that the job was submitted from.
    """
    user, here = getpass.getuser(), socket.gethostname()
    login = environ.get("SLURM_SUBMIT_HOST", here)
    jump = f"-J {user}@{login} " if login != here else ""
    return f"ssh -N -L {port}:{_LOCALHOST}:{port} {jump}{user}@{here}"


def serve(folder: Path, port: int, bind: str = _LOCALHOST) -> int:
    """Run TensorBoard until Ctrl-C; its exit code."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        str(port),
        "--host",
        bind,
    ]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0
