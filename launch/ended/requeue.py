"""A job's place in Slurm's queue: what Slurm says of it, and queueing it again without the nodes that are bad.

The same job comes back, from a batch script through `requeue`; from the supervisor of a submitit job through submitit's
own handler, which also keeps what that job runs next, or, where the supervisor was killed, through `requeue`. What
`ltx-launch resume` queues is another job, as it may ask for other resources.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from launch.ended.asking import ask_slurm
from shards.errors import InputError

_TRIES, _PAUSE_S = 12, 10.0  # a controller that is restarted does not answer for a while
_NO_NODE = re.compile(r"Node (\S+) not found")
_RUNS = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING")


@dataclass(frozen=True)
class Place:
    """A job as Slurm has it now: `state` PENDING to CANCELLED, `reason` why it waits or ended.

    `place` alone knows `restarts`, how often it was queued again, and `excluded`, hosts it keeps away from; `places` of
    launch.ended.squeue alone `start` and `end` as Slurm writes times (of a pending job: expected; "" where not known)
    and `nodes`, a list such as node[1-4].
    """

    state: str
    reason: str
    restarts: int = 0
    excluded: tuple[str, ...] = ()
    start: str = ""
    end: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        """Whether it is in the queue."""
        return self.state == "PENDING"

    @property
    def runs(self) -> bool:
        """Whether it has nodes."""
        return self.state in _RUNS

    @property
    def ours(self) -> bool:
        """Whether what becomes of the job is left to it: it runs, or its time is over. Else somebody cancels it.

        A job that is being ended says COMPLETING, whatever ends it; `scontrol requeue` would bring back one that its
        user has cancelled.
        """
        return self.state == "RUNNING" or (self.state == "COMPLETING" and self.reason == "TimeLimit")


def queued_as(environ: Mapping[str, str]) -> str:
    """The name of this process's job in Slurm's commands; 12_3 in an array, whose last task has the array's number."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ["SLURM_JOB_ID"]


def place(job: str) -> Place:
    """What Slurm says of a job now. Raises InputError when it does not answer, or does not know the job."""
    said = _scontrol("show", "job", "--oneliner", job)
    found = {key: re.search(rf"(?:^|\s){key}=(\S*)", said) for key in ("JobState", "Reason", "Restarts")}
    words = {key: match[1] if match else "" for key, match in found.items()}
    restarts = int(words["Restarts"]) if words["Restarts"].isdigit() else 0
    return Place(words["JobState"], words["Reason"], restarts, _hosts(said))


def requeue(job: str, exclude: Collection[str] = ()) -> None:
    """Queue a job that runs again; it will keep away from the hosts `exclude`.

    Slurm then ends the script that calls this, within KillWait seconds: it has to ignore SIGTERM until it is done.
    Raises InputError when Slurm refuses, and when the job is not left to itself: it may have been cancelled just now.
    """
    now = place(job)
    if not now.ours:
        raise InputError(f"job {job}: is being cancelled; not queued again")
    try:
        _scontrol("requeue", job)
    except InputError:  # which it also is when Slurm did it, but was late to say so
        if place(job).restarts <= now.restarts:
            raise
    keep_away(job, exclude)


def keep_away(job: str, hosts: Collection[str]) -> None:
    """Let a job that is queued again keep away from `hosts` also. Raises InputError when Slurm refuses.

    Of a list that names a host which the cluster has no more Slurm takes none: those are left out.
    Slurm takes this for pending jobs alone; one counts as such from the moment it is queued again, though its script
    still runs.
    """
    excluded = place(job).excluded
    if set(hosts) <= set(excluded):
        return
    unknown = gone({*excluded, *hosts})
    more = sorted(set(hosts) - set(excluded) - unknown)
    if more:
        known = [host for host in excluded if host not in unknown]
        try:
            _scontrol("update", f"JobId={job}", f"ExcNodeList={','.join((*known, *more))}")
        except InputError:
            if not set(more) <= set(place(job).excluded):
                raise


def gone(hosts: Collection[str]) -> set[str]:
    """Those of the hosts that the cluster has no more; none where Slurm does not say."""
    if not hosts:
        return set()
    answer = ask_slurm("scontrol", "show", "node", ",".join(sorted(hosts)))
    return set(_NO_NODE.findall(answer.printed + answer.error)) & set(hosts)


def names(hostlist: str) -> tuple[str, ...]:
    """The hosts of a list as Slurm writes it, such as node[1-4]."""
    return tuple(_scontrol("show", "hostnames", hostlist).split())


def _hosts(said: str) -> tuple[str, ...]:
    found = re.search(r"\sExcNodeList=(\S+)", said)
    return names(found[1]) if found and found[1] != "(null)" else ()


def _scontrol(*words: str) -> str:
    """What `scontrol WORDS` prints; asked again while the controller does not answer."""
    for tried in range(1, _TRIES + 1):
        answer = ask_slurm("scontrol", *words)
        if answer.code == 0:
            return answer.printed
        if tried == _TRIES or not answer.later:
            break
        time.sleep(_PAUSE_S)
    raise InputError(f"scontrol {' '.join(words)}: {answer.error}")
