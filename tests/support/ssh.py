"""Hosts that answer to ssh on this machine: each has a name, a hosts file, processes and an sshd of its own.

All are on 127.0.0.1, on ports of their own; killing a host is what the crash of a machine is. Needs root and Debian's
packages openssh-server and pdsh. The keys are made for the test; nothing outside its folder is written.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.runs import free_port

PACKAGES = "openssh-server pdsh"
_PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh", "unshare")
_UP_S, _DOWN_S = 20.0, 5.0
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
_SPACES = ("unshare", "--mount", "--propagation", "private")
# The shell stays as the first process of the host, which has to reap orphans.
_HOST = """
mount --bind "$1/hosts_$2" /etc/hosts && mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs /run || exit 1
mkdir -p -m 755 /run/sshd && hostname "$2" || exit 1
$(command -v sshd) -D -e -f "$1/sshd_$2" & wait $!
"""
# ssh looks for a user's settings in the home of the password file alone; the system's can be put over for one process.
_USER = 'mount --bind "$0" /etc/ssh/ssh_config && exec "$@"'
_SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {root}/key
AuthorizedKeysFile {root}/key.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
MaxStartups 100
"""
_SSH = """
Host {name}
  HostName 127.0.0.1
  Port {port}
  IdentityFile {root}/key
  IdentitiesOnly yes
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  LogLevel ERROR
"""


def missing() -> str:
    """Why there can be no such hosts here, and the command that helps; empty where there can."""
    absent = [name for name in _PROGRAMS if not shutil.which(name, path=_PATH)]
    if absent:
        return f"{', '.join(absent)} not installed: apt-get install --no-install-recommends {PACKAGES}"
    if os.geteuid() != 0:
        return "hosts on one machine need root"
    if subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], check=False).returncode:
        return "this machine does not let hosts have namespaces of their own (unshare)"
    return ""


class Hosts:
    """Running hosts; `names` are theirs. Made by `hosts`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, tuple(names)
        self._ports = {name: free_port() for name in names}
        self._spaces: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self, command: Sequence[str], env: Mapping[str, str], output: Path, cwd: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command outside the hosts, whose ssh reaches them by name; its output goes to a file.

        The process is the command's own, the leader of a session.
        """
        with output.open("wb") as out:
            return subprocess.Popen(
                [*_SPACES, "bash", "-c", _USER, str(self.root / "ssh_config"), *command],
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self, name: str, program: str = "") -> dict[int, str]:
        """Command lines of a host's processes that hold `program`, by process id as seen from here."""
        init = self._init(name)
        space = os.readlink(f"/proc/{init}/ns/pid")
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if os.readlink(folder / "ns" / "pid") == space and line and program in line:
                    found[int(folder.name)] = line
        return found

    def kill(self, name: str) -> None:
        """All of a host's processes are gone at once, its sshd too."""
        space = self._spaces.pop(name, None)
        if space is None:
            return
        for child in _children(space.pid):  # the first process of the host: the others end with it
            os.kill(child, signal.SIGKILL)
        space.wait(_DOWN_S)

    def up(self) -> None:
        """Start all; returns once each answers. Raises AssertionError when one does not."""
        self.root.mkdir(parents=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.root / "key")],
            check=True,
            timeout=_UP_S,
        )
        config = "".join(
            _SSH.format(name=name, port=port, root=self.root) for name, port in self._ports.items()
        )
        (self.root / "ssh_config").write_text(config)
        for name in self.names:
            self._start(name)
        for name, port in self._ports.items():
            _answers(name, port, self.root / f"{name}.log")

    def down(self) -> None:
        """Kill all, with everything that runs on them."""
        for name in self.names:
            self.kill(name)

    def _start(self, name: str) -> None:
        others = "".join(f"127.0.0.1 {other}\n" for other in self.names if other != name)
        # Its own name first: that is what a reverse lookup gives.
        (self.root / f"hosts_{name}").write_text(f"127.0.0.1 {name}\n127.0.0.1 localhost\n{others}")
        (self.root / f"sshd_{name}").write_text(_SSHD.format(port=self._ports[name], root=self.root))
        spaces = (*_SPACES, "--uts", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")
        with (self.root / f"{name}.log").open("wb") as log:
            self._spaces[name] = subprocess.Popen(
                [*spaces, "bash", "-c", _HOST, "host", str(self.root), name],
                env={"PATH": f"{_PATH}:/usr/local/bin:/usr/bin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _init(self, name: str) -> int:
        return _children(self._spaces[name].pid)[0]


@contextmanager
def hosts(root: Path, *names: str) -> Iterator[Hosts]:
    """Hosts with their state below the new folder `root`; gone after the block."""
    made = Hosts(root, names)
    try:
        made.up()
        yield made
    finally:
        made.down()


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _answers(name: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + _UP_S
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        assert time.monotonic() < deadline, f"{name} does not answer: {log.read_text()}"
        time.sleep(0.05)
