"""Who this process is among the ranks, from what its launcher set."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shards.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class World:
    """This process's place: global rank, number of ranks, rank on its host."""

    rank: int
    size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0 of the whole world (not of a host)."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """The device this rank computes on."""
        import torch

        if torch.cuda.is_available():
            return torch.device("cuda", self.local_rank % torch.cuda.device_count())
        return torch.device("cpu")


def discover(environ: Mapping[str, str]) -> World:
    """Read the place of this process from what its launcher set.

    Understands RANK/WORLD_SIZE/LOCAL_RANK (deepspeed, torchrun), SLURM_PROCID/SLURM_NTASKS/SLURM_LOCALID
    (srun, one task per rank) and nothing at all (alone). Raises InputError for half-set or contradictory values.
    """
    slurm_step = environ.get("SLURM_STEP_ID") is not None and "SLURM_PROCID" in environ
    if "RANK" in environ or "WORLD_SIZE" in environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    elif slurm_step:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    else:
        return World(0, 1, 0)
    try:
        rank, size = int(environ[names[0]]), int(environ[names[1]])
        local_rank = int(environ.get(names[2], "0" if size == 1 else ""))
    except (KeyError, ValueError):
        seen = ", ".join(f"{name}={environ.get(name, '(unset)')}" for name in names)
        raise InputError(
            f"environment: the launcher must set {', '.join(names)} to integers; found {seen}"
        ) from None
    if not 0 <= rank < size:
        raise InputError(f"environment: {names[0]}={rank} is not below {names[1]}={size}")
    return World(rank, size, local_rank)


def presumed(environ: Mapping[str, str]) -> World:
    """The rank a process claims to be where `discover` refuses its environment: enough to choose who complains."""
    claimed = environ.get("RANK", environ.get("SLURM_PROCID", ""))
    rank = int(claimed) if claimed.isascii() and claimed.isdigit() else 0
    return World(rank, rank + 1, 0)


def hostname(environ: Mapping[str, str]) -> str:
    """The name Slurm knows this machine by, else its own."""
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def address(environ: Mapping[str, str], world: World) -> tuple[str, int]:
    """Host and port of rank 0's store: MASTER_ADDR and MASTER_PORT, else from the Slurm job, else a free local port."""
    if "MASTER_ADDR" in environ and "MASTER_PORT" in environ:
        port = environ["MASTER_PORT"]
        if not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise InputError(f"environment: MASTER_PORT={port} is not a port number")
        return environ["MASTER_ADDR"], int(port)
    if world.size == 1:
        return "127.0.0.1", 0
    if "SLURM_JOB_ID" in environ and "SLURM_JOB_NODELIST" in environ:
        # As slurm/lib/run.sh, which tells why; two ways of counting could meet.
        return _first_host(environ["SLURM_JOB_NODELIST"]), 16000 + int(environ["SLURM_JOB_ID"]) % 16000
    raise InputError("environment: MASTER_ADDR and MASTER_PORT must be set when WORLD_SIZE is above 1")


def _first_host(nodelist: str) -> str:
    command = ["scontrol", "show", "hostnames", nodelist]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise InputError(
            f"environment: {' '.join(command)} does not name a host ({error}); set MASTER_ADDR and MASTER_PORT"
        ) from error
