"""The trial of all nodes: each by itself before torch.distributed starts, then the network between them.

Everything is told through the ranks' store, which works also where the process group does not.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering, MissingRanks
from dist_trainer.job import start_of
from dist_trainer.logs import append
from dist_trainer.preflight import clock, code, data, device, figures, network, room, storage
from dist_trainer.preflight.finding import Finding, error_of
from dist_trainer.preflight.judges import devices as device_judge
from dist_trainer.preflight.judges import hosts as host_judge
from dist_trainer.preflight.judges import network as network_judge
from dist_trainer.preflight.limit import Outcome, try_all
from dist_trainer.rundir import RunFolder
from dist_trainer.world import hostname

LIMIT_S = (
    40.0  # of a node's own parts; a GPU's first touch loads much from a file system that all nodes share
)
NETWORK_S = 60.0  # of the network, which hundreds of ranks take their time to set up
_GRACE_S = 5.0  # for what is between a trial and its report
_SHARED_S = 10.0


@dataclass
class Trial:
    """A trial under way. `hosts`: of each rank. On rank 0 alone: what all ranks reported, and the warnings."""

    run: RunFolder
    hosts: list[str]
    limit: float
    began: float
    recording: bool
    reports: list[dict[str, Outcome]] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)

    @property
    def leaders(self) -> list[int]:
        """The first rank of each host: it tries what is its host's, not its own."""
        return [self.hosts.index(host) for host in dict.fromkeys(self.hosts)]


def alone(config: RunConfig, gathering: Gathering, limit: float = LIMIT_S, recording: bool = True) -> Trial:
    """Try devices, code, data, storage and clocks of all nodes; needs no process group.

    Raises, alike on every rank, InputError for what the nodes share and PreflightFailed for what is one node's own,
    which is `recording` put into the run's bad_nodes; MissingRanks for a rank that is silent past the limits.
    """
    world, began = gathering.world, time.monotonic()
    limit = min(limit, gathering.timeout_s)
    token, existed = uuid.uuid4().hex, Path(config.output_dir).exists()
    hosts = gathering.collect("start", hostname(os.environ))
    token, hosts = json.loads(gathering.share("preflight: hosts", json.dumps([token, hosts])))
    trial = Trial(RunFolder(Path(config.output_dir)), hosts, limit, began, recording)
    trial.reports = [{} for _ in hosts]
    root, leads = trial.run.root, world.rank in trial.leaders
    try:
        with _silence_recorded(trial, gathering):
            own: dict[str, Callable[[], Any]] = {"device": lambda: device.try_device(world.device)}
            if leads:
                own |= {
                    "code": code.versions,
                    "data": lambda: data.try_data(config),
                    "storage": lambda: storage.try_writing(root, token, world.rank),
                }
            deadline = time.monotonic() + limit
            outcomes = try_all(limit, own)
            if world.is_main and not any(one.fault for one in outcomes.values()):
                # For the size of a checkpoint a hub may be asked, which may take its time: not where all is over.
                outcomes |= try_all(deadline - time.monotonic(), {"room": lambda: room.room(config)})
            _report(trial, gathering, outcomes, limit)
            _settle(trial, gathering, _judged_alone(trial) if world.is_main else [])
            _report(trial, gathering, _meet_others(trial, gathering, token) if leads else {}, _SHARED_S)
            _settle(
                trial, gathering, host_judge.together(hosts, trial.reports, root) if world.is_main else []
            )
    finally:
        if world.is_main:
            try_all(_SHARED_S, {"clear": lambda: storage.clear(root, token, existed)})
    return trial


def together(trial: Trial, gathering: Gathering, limit: float = NETWORK_S) -> dict[str, str]:
    """Try the network of a process group that has just started; the figures of the whole trial, on rank 0.

    Raises as `alone`.
    """
    world, hosts, limit = gathering.world, trial.hosts, min(limit, gathering.timeout_s)
    doing = [""]
    with _silence_recorded(trial, gathering):
        if world.size > 1:

            def exercise() -> dict[str, Any]:
                return network.exercise(
                    world, hosts, lambda now: doing.__setitem__(0, now), gathering.timeout_s
                )

            found = try_all(limit, {"network": exercise})["network"]
            if found.fault:
                found = Outcome(fault=f"{doing[0]}: {found.fault}", user=found.user, late=found.late)
            _report(trial, gathering, {"network": found}, limit)
            _settle(trial, gathering, network_judge.network(hosts, trial.reports) if world.is_main else [])
    if not world.is_main:
        return {}
    pairs = network_judge.pairs(hosts, trial.reports)
    return figures.figures(hosts, trial.reports, pairs, time.monotonic() - trial.began)


def _judged_alone(trial: Trial) -> list[Finding]:
    found = device_judge.devices(trial.hosts, trial.reports)
    return found + host_judge.alone(trial.hosts, trial.reports, trial.run.root)


def _meet_others(trial: Trial, gathering: Gathering, token: str) -> dict[str, Outcome]:
    """A host's part in what takes two: whether it sees what was written elsewhere, and its clock."""
    rank, ranks = gathering.world.rank, trial.leaders
    store = gathering.store("preflight/clock")
    sought = ranks[1:] if rank == 0 else ranks[:1]
    tried: dict[str, Callable[[], Any]] = {
        "seen": lambda: storage.unseen(trial.run.root, token, sought, _SHARED_S)
    }
    if rank == 0:
        tried["clock"] = lambda: clock.answer(store, ranks[1:], _SHARED_S)
    else:
        tried["clock"] = lambda: clock.ask(store, rank, _SHARED_S)
    return try_all(_SHARED_S + _GRACE_S, tried)


def _report(trial: Trial, gathering: Gathering, outcomes: dict[str, Outcome], limit: float) -> None:
    """Bring this rank's outcomes to rank 0. Raises MissingRanks for a rank that brings none much after `limit`."""
    own = json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()})
    for rank, text in enumerate(gathering.collect("preflight", own, limit + 2 * _GRACE_S)):
        trial.reports[rank] |= {name: Outcome(**outcome) for name, outcome in json.loads(text).items()}


def _settle(trial: Trial, gathering: Gathering, findings: Sequence[Finding]) -> None:
    """Hear rank 0's findings; keep the warnings, raise the others."""
    trial.warnings += [finding for finding in findings if finding.kind == "warning"]
    grave = json.dumps([asdict(finding) for finding in findings if finding.kind != "warning"])
    heard = [Finding(**one) for one in json.loads(gathering.share("preflight", grave, trial.limit))]
    if not heard:
        return
    causes = {finding.host: finding.text for finding in reversed(heard) if finding.kind == "node"}
    hosts = set(trial.hosts)
    if len(hosts) > 1 and causes.keys() >= hosts:
        # What all have is no node's own, and a job that keeps away from all nodes never starts.
        causes = {}
    if gathering.world.rank == next((rank for rank, host in enumerate(trial.hosts) if host not in causes), 0):
        _record(trial, causes)
    # Who ends first may end the job: not before it is written down.
    with suppress(MissingRanks):
        gathering.meet("preflight: recorded", _GRACE_S)
    raise error_of(heard)


@contextmanager
def _silence_recorded(trial: Trial, gathering: Gathering) -> Iterator[None]:
    """A rank that does not come to a meeting within its limit is its host's fault, unless most hosts do not."""
    try:
        yield
    except MissingRanks as error:
        causes = {trial.hosts[rank]: str(error) for rank in error.ranks}
        # Rank 0 knows who is silent; when it is so itself, all others know.
        heard = [rank for rank, host in enumerate(trial.hosts) if host not in causes]
        knows = gathering.world.is_main or gathering.world.rank in heard[:1]
        if knows and 2 * len(causes) <= len(set(trial.hosts)):
            _record(trial, causes)
        raise


def _record(trial: Trial, causes: Mapping[str, str]) -> None:
    """Write bad nodes down: host -> cause."""
    if not trial.recording:
        return
    job, restart = start_of(os.environ)
    place = {"time": time.time(), "job": job, "restart": restart}
    for host, cause in causes.items():
        entry = place | {"host": host, "cause": cause}
        try_all(_GRACE_S, {"record": partial(append, trial.run.bad_nodes, entry)})
