"""What a job asks of Slurm: nodes, devices, time, and where in the queue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from shards.errors import InputError

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d+){0,2})")
_GPUS = re.compile(r"(?:(?P<kind>[\w.-]+):)?(?P<count>\d+)", re.ASCII)
_WORD = re.compile(r"[a-z][a-z0-9-]*")
# One word of sbatch's, on one line: a second line of the batch script would be a command.
_VALUE = re.compile(r"[^\x00-\x1f\x7f]+")
_OURS = {
    "nodes": "--nodes",
    "ntasks-per-node": "--tasks-per-node",
    "gpus-per-node": "--gpus-per-node",
    "cpus-per-task": "--cpus-per-task",
    "time": "--time",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "exclude": "--exclude",
    "dependency": "--dependency",
    "signal": "--lead",
    "chdir": "the folder where you call",
    "array": "--sweep",
    "job-name": "the run's folder",
    "output": "the run's logs",
    "error": "the run's logs",
    "open-mode": "the run's logs",
    "requeue": "what every job has",
    "no-requeue": "what no job has",
    "export": "the environment where you call",
}


@dataclass(frozen=True)
class Resources:
    """One task for each GPU of each node; without GPUs `tasks_per_node` (1) tasks that compute on the CPU.

    `time` is written as sbatch takes it, `lead_s` are seconds before its end at which the job is told to save. `sbatch`
    holds any other of sbatch's options by name without dashes, "" for one that takes no value. `site` is a file such as
    slurm/site.sh, read by the job's first shell. `gpu_type` is the cluster's word for one kind of its GPUs. Raises
    InputError for what sbatch could not take.
    """

    nodes: int = 1
    gpus_per_node: int = 8
    tasks_per_node: int | None = None
    cpus_per_task: int = 8
    time: str = "24:00:00"
    lead_s: int = 300
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    dependency: str | None = None
    sbatch: Mapping[str, str] = field(default_factory=dict)
    site: str | None = None
    gpu_type: str | None = None

    def __post_init__(self) -> None:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise InputError(
                f"--tasks-per-node {self.tasks_per_node}: there is one task for each of --gpus-per-node "
                f"{self.gpus_per_node}; leave it out, or train on the CPU with --gpus-per-node 0"
            )
        for name in ("partition", "account", "qos", "constraint", "exclude", "dependency"):
            value = getattr(self, name)
            if value is not None and not _VALUE.fullmatch(value):
                raise InputError(f"--{name} {value!r}: write one line of sbatch's --{name}")
        for word, value in self.sbatch.items():
            if not _WORD.fullmatch(word) or (value and not _VALUE.fullmatch(value)):
                raise InputError(
                    f"--sbatch {word}={value!r}: write an option of sbatch as name=value, or name"
                )
            if word in _OURS:
                raise InputError(f"--sbatch {word}: {_OURS[word]} decides it")
        minutes = self.minutes
        if self.lead_s >= 60 * minutes:
            raise InputError(
                f"--time {self.time}: the job would be told to save {self.lead_s} s before its end, at once; "
                "give it more time, or a smaller --lead"
            )

    @property
    def tasks(self) -> int:
        """Tasks of a node."""
        return self.gpus_per_node or self.tasks_per_node or 1

    @property
    def ranks(self) -> int:
        """Tasks of the job: the processes that train."""
        return self.nodes * self.tasks

    @property
    def minutes(self) -> int:
        """`time` in minutes, rounded up."""
        return minutes(self.time)

    def parameters(self) -> dict[str, Any]:
        """The same as parameters of submitit's SlurmExecutor."""
        given = {
            name: getattr(self, name)
            for name in ("partition", "account", "qos", "constraint", "exclude", "dependency")
            if getattr(self, name) is not None
        }
        if self.gpus_per_node:
            kind = f"{self.gpu_type}:" if self.gpu_type else ""
            given["gpus_per_node"] = f"{kind}{self.gpus_per_node}"
        more: dict[str, Any] = {word: value or True for word, value in self.sbatch.items()}
        if self.dependency:
            # A job that waits for one that failed would wait for ever.
            more["kill-on-invalid-dep"] = "yes"
        return given | {
            "nodes": self.nodes,
            "ntasks_per_node": self.tasks,
            "cpus_per_task": self.cpus_per_task,
            "time": self.minutes,
            "signal_delay_s": self.lead_s,
            "additional_parameters": {"requeue": True, **more},
            # srun does not take it over from sbatch since Slurm 22.05: a task would be bound to one CPU.
            "srun_args": [f"--cpus-per-task={self.cpus_per_task}"],
        }

    def record(self) -> dict[str, Any]:
        """As plain values, for a log; `read` takes them back."""
        return asdict(self)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> Resources:
        """Resources out of what `record` gave; words of another version of this program are passed over."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in known})


def gpus(text: str) -> tuple[int, str | None]:
    """How many GPUs, and their kind, out of 8 or h100:8 as sbatch takes it. Raises InputError for anything else."""
    match = _GPUS.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--gpus-per-node {text}: write their number as 8, or with their kind as h100:8")
    return int(match["count"]), match["kind"]


def minutes(text: str) -> int:
    """A time as sbatch takes it (90, 90:00, 24:00:00, 2-12, 2-12:30, 2-12:30:00) in minutes, rounded up.

    Raises InputError for anything else, also for no time at all.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--time {text}: write minutes, or hours:minutes:seconds as 24:00:00 or 2-12:00:00")
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minute, second = [*parts, 0, 0][:3]
        seconds = ((int(match["days"]) * 24 + hours) * 60 + minute) * 60 + second
    elif len(parts) == 3:
        seconds = (parts[0] * 60 + parts[1]) * 60 + parts[2]
    else:
        seconds = parts[0] * 60 + (parts[1] if len(parts) == 2 else 0)
    if seconds == 0:
        raise InputError(f"--time {text}: a job needs some time")
    return -(-seconds // 60)
