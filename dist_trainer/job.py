"""The job that this process belongs to, as a run's logs name it. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping

LOCAL = "local"  # the job of what is started outside Slurm


def start_of(environ: Mapping[str, str]) -> tuple[str, int]:
    """The job this process belongs to (LOCAL outside Slurm), and how often it was queued again before this start."""
    return environ.get("SLURM_JOB_ID", LOCAL), int(environ.get("SLURM_RESTART_COUNT") or 0)
