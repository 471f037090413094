"""A real Slurm on this machine: slurmctld, munge, and slurmd for several nodes, each in namespaces of its own.

A node has its own host name, hosts file, processes and /dev/shm, so that killing it is what the crash of a machine
is. Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; no systemd, no cgroups.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PACKAGES = "slurmctld slurmd slurm-client munge"
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged", "unshare")
_UP_S, _DOWN_S, _CALL_S = 30.0, 5.0, 120.0
_GPUS = 8  # of each node: character devices that lead nowhere, enough for Slurm to hand them out
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
# Ended jobs stay in the controller's memory for an hour, which is the accounting here.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdPidFile={root}/spool/%n/slurmd.pid
SlurmdSpoolDir={root}/spool/%n
SlurmdLogFile={root}/log/slurmd-%n.log
StateSaveLocation={root}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
BatchStartTimeout=20
MinJobAge=3600
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
FirstJobId={first_job}
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
"""
_PARTITIONS = """
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
"""
# submitit asks sacct alone, which needs a database; the controller knows the same of jobs this young.
_SACCT = """#!/bin/bash
ids= previous=
for word in "$@"; do [ "$previous" = -j ] && ids=${ids:+$ids,}$word; previous=$word; done
echo "JobID|State|NodeList"
[ -n "$ids" ] && squeue --noheader --array --states=all --jobs="$ids" --format='%i|%T|%N' 2>/dev/null
exit 0
"""
# The shell stays as the first process of the namespace, which has to reap orphans.
_NODE = """
mount --bind "$1/hosts/$2" /etc/hosts && mount -t tmpfs tmpfs /dev/shm && hostname "$2" || exit 1
slurmd -D -N "$2" & wait $!
"""


def missing() -> str:
    """Why no cluster can be had here, and the command that helps; empty where it can."""
    absent = [name for name in _PROGRAMS if not shutil.which(name, path=_PATH)]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install --no-install-recommends {PACKAGES}"
    if os.geteuid() != 0:
        return "a cluster on one machine needs root"
    if subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        return "this machine does not let nodes have namespaces of their own (unshare)"
    try:
        own = socket.gethostbyname(socket.gethostname().partition(".")[0])
    except OSError:
        own = "no address"
    return (
        ""
        if own.startswith("127.")
        else f"this machine's name leads to {own}, and must to 127.0.0.1 (/etc/hosts)"
    )


class Cluster:
    """A running cluster; `nodes` are their names. Made by `cluster`."""

    def __init__(self, root: Path, nodes: int, port: int) -> None:
        self.root = root
        self.nodes = tuple(f"node{number}" for number in range(1, nodes + 1))
        self._port = port
        self._inits: dict[str, subprocess.Popen[bytes]] = {}
        self._requeued: dict[str, float] = {}

    def environment(self, **more: str) -> dict[str, str]:
        """What Slurm's commands need to find this cluster, over this process's environment."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        return clean | {
            "SLURM_CONF": f"{self.root}/slurm.conf",
            "PATH": f"{self.root}/bin:{_PATH}",
            **more,
        }

    def call(self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run one of Slurm's commands; its output. Raises AssertionError with all it said when it fails."""
        environment = self.environment(**(env or {}))
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_CALL_S, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def submit(self, *words: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
        """`sbatch WORDS`; the job's number."""
        return self.call("sbatch", "--parsable", *words, cwd=cwd, env=env).partition(";")[0]

    def state(self, job: str) -> str:
        """State of a job, PENDING to CANCELLED."""
        return self.call("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T").split("\n")[0]

    def wait(
        self, job: str, *states: str, limit: float = 120.0, until: Callable[[], bool] = lambda: False
    ) -> str:
        """Wait until a job is in one of `states`, or `until` holds; its state. Requeued jobs start at once.

        Raises AssertionError past the limit.
        """
        deadline = time.monotonic() + limit
        while (state := self.state(job)) not in states and not until():
            assert time.monotonic() < deadline, f"job {job} is {state} after {limit:g} s\n{self.logs()}"
            self.start_requeued()
            time.sleep(0.4)
        return state

    def start_requeued(self) -> None:
        """Slurm lets a requeued job wait two minutes; not here.

        But past the second in which it ended: its node would take the new start's credential for the old one's.
        """
        listing = self.call("squeue", "--noheader", "--states=PENDING", "--format=%i %r")
        for line in listing.splitlines():
            job, _, reason = line.partition(" ")
            if (
                reason == "BeginTime"
                and time.monotonic() - self._requeued.setdefault(job, time.monotonic()) > 1.5
            ):
                self._requeued.pop(job, None)
                subprocess.run(
                    ["scontrol", "update", f"JobId={job}", "StartTime=now"],
                    env=self.environment(),
                    capture_output=True,
                    timeout=_CALL_S,
                    check=False,
                )

    def hosts(self, job: str) -> list[str]:
        """Names of the nodes a job runs on, in its order; none while it waits."""
        listed = self.call("squeue", "--noheader", "--jobs", job, "--format=%N")
        return self.call("scontrol", "show", "hostnames", listed).split() if listed else []

    def ranks(self, job: str, rank: int) -> list[int]:
        """Numbers of the processes that a job's step runs as its task `rank`, the first one first."""
        number = self.call("squeue", "--noheader", "--jobs", job, "--format=%A")
        wanted = {f"SLURM_JOB_ID={number}".encode(), f"SLURM_PROCID={rank}".encode()}
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                lines = set(path.read_bytes().split(b"\0"))
                # The batch script has these too, but no step.
                if wanted <= lines and any(line.startswith(b"SLURM_STEP_ID=") for line in lines):
                    found.append(int(path.parent.name))
        return sorted(found)

    def kill_rank(self, job: str, rank: int) -> None:
        """SIGKILL the process that a job's step runs as its task `rank`."""
        found = self.ranks(job, rank)
        assert found, f"job {job} has no process of task {rank} now"
        os.kill(found[0], signal.SIGKILL)

    def kill_node(self, name: str) -> None:
        """All of a node's processes are gone at once, and Slurm knows that the node is down."""
        self._end_node(name)
        self.call("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    @contextmanager
    def hidden(self, name: str, folder: Path) -> Iterator[None]:
        """On a node, and on no other, `folder` is empty inside the block."""
        child = (
            Path(f"/proc/{self._inits[name].pid}/task/{self._inits[name].pid}/children")
            .read_text()
            .split()[0]
        )
        # The node's /proc knows only processes of its own.
        enter = ("nsenter", f"--target={child}", "--mount", "--pid")
        subprocess.run([*enter, "mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, timeout=_CALL_S)
        try:
            yield
        finally:
            # Lazily: a process that is ending may still be in it.
            subprocess.run([*enter, "umount", "--lazy", str(folder)], check=True, timeout=_CALL_S)

    def start_node(self, name: str) -> None:
        """Start a node's daemon, in namespaces of its own."""
        (self.root / "spool" / name).mkdir(parents=True, exist_ok=True)
        command = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        with open(self.root / "log" / f"{name}.out", "ab") as log:
            self._inits[name] = subprocess.Popen(
                [*command, "--propagation", "private", "bash", "-c", _NODE, "node", str(self.root), name],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        parts = []
        for path in sorted((self.root / "log").glob("*.log")):
            tail = path.read_text(errors="replace").splitlines()[-8:]
            parts.append("\n".join((f"--- {path.name}", *tail)))
        return "\n".join(parts)

    def up(self) -> None:
        """Start everything; returns once all nodes are idle. Raises AssertionError when they do not come."""
        for name in ("run", "log", "state", "spool", "munge", "hosts", "dev", "bin"):
            (self.root / name).mkdir(parents=True)
        (self.root / "munge").chmod(0o711)
        self._write()
        self._start_munge()
        subprocess.run(["slurmctld", "-c"], env=self.environment(), check=True, timeout=_CALL_S)
        for name in self.nodes:
            self.start_node(name)
        deadline = time.monotonic() + _UP_S
        while self.call("sinfo", "--noheader", "-N", "-p", "main", "-o", "%T").split() != ["idle"] * len(
            self.nodes
        ):
            assert time.monotonic() < deadline, f"the nodes are not idle after {_UP_S:g} s\n{self.logs()}"
            time.sleep(0.1)

    def down(self) -> None:
        """Kill the nodes with all that runs on them, then the daemons."""
        for name in self.nodes:
            self._end_node(name)
        for name in ("slurmctld", "munged"):
            _stop(self.root / "run" / f"{name}.pid")

    def _end_node(self, name: str) -> None:
        unshare = self._inits.pop(name, None)
        if unshare is None:
            return
        children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text().split()
        for child in children:  # the first process of the namespace: the others end with it
            os.kill(int(child), signal.SIGKILL)
        unshare.terminate()
        unshare.wait(_DOWN_S)

    def _write(self) -> None:
        """slurm.conf, gres.conf, the devices, the hosts files and the stand-in for sacct."""
        host = socket.gethostname().partition(".")[0]
        conf = _CONF.format(
            host=host, port=self._port, root=self.root, first_job=100 * secrets.choice(range(100, 1000))
        )
        for number, name in enumerate(self.nodes, start=1):
            conf += (
                f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={self._port + number} CPUs=64 "
                f"RealMemory=2000000 Gres=gpu:{_GPUS} State=UNKNOWN\n"
            )
            others = "".join(f"127.0.0.1 {other}\n" for other in self.nodes if other != name)
            # Its own name first: that is what a reverse lookup gives.
            (self.root / "hosts" / name).write_text(f"127.0.0.1 {name}\n127.0.0.1 localhost {host}\n{others}")
        (self.root / "slurm.conf").write_text(conf + _PARTITIONS)
        for number in range(_GPUS):
            os.mknod(self.root / "dev" / f"nvidia{number}", 0o666 | 0o020000, os.makedev(1, 3))
        devices = f"{self.root}/dev/nvidia[0-{_GPUS - 1}]"
        (self.root / "gres.conf").write_text(f"Name=gpu File={devices} Flags=nvidia_gpu_env\n")
        sacct = self.root / "bin" / "sacct"
        sacct.write_text(_SACCT)
        sacct.chmod(0o755)

    def _start_munge(self) -> None:
        key = self.root / "munge" / "key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        run, log = self.root / "run", self.root / "log"
        options = {
            "key-file": key,
            "socket": self.root / "munge" / "socket",
            "pid-file": run / "munged.pid",
            "log-file": log / "munged.log",
            "seed-file": self.root / "munge" / "seed",
        }
        # Forced: it refuses a socket below a folder that only its owner may enter, which tests have.
        command = ["munged", "--force", *(f"--{name}={value}" for name, value in options.items())]
        subprocess.run(command, env=self.environment(), check=True, timeout=_CALL_S, capture_output=True)


@contextmanager
def cluster(root: Path, nodes: int = 4) -> Iterator[Cluster]:
    """A cluster with its state below the new folder `root`, up in a second; down after the block."""
    made = Cluster(root, nodes, _free_ports(nodes + 1))
    try:
        made.up()
        yield made
    finally:
        made.down()


def _free_ports(count: int) -> int:
    """The first of `count` ports that are free, below those of the batch scripts and of the system."""
    for first in range(10000 + os.getpid() % 400 * 8, 15900, 8):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no ports are free for a cluster")


def _stop(pid_file: Path) -> None:
    """End a daemon; kill it when it takes too long."""
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
    except (OSError, ValueError):
        return
    deadline = time.monotonic() + _DOWN_S
    while _lives(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    if _lives(pid):
        os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
