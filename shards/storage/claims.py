"""Who works on what: a small file per piece of work, renewed while its holder lives, through storage alone."""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from shards.errors import InputError
from shards.storage import Storage

LEASE_S = 60.0
_RENEWALS = 8  # in the time of a lease


class Death(NamedTuple):
    """A holder that did not end its work: when another noticed, and the array job of that one ("": none)."""

    at: float  # by the storage's clock
    launch: str


@dataclass(frozen=True)
class Holder:
    """A process that holds a claim.

    `boot` tells one start of a machine and one set of process numbers on it from any other; `started` tells a
    process from a later one of the same number; `nonce` tells this claim from any other. `deaths` are those
    of earlier holders of the same claim.
    """

    host: str
    boot: str
    pid: int
    started: int
    nonce: str
    deaths: tuple[Death, ...] = ()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class Held(NamedTuple):
    """A claim as found: its holder (None: unreadable), whether it can be taken over, deaths up to now."""

    holder: Holder | None
    stale: bool
    deaths: tuple[Death, ...]


class Claims:
    """The claims of this process under `folder` of a storage ("": its root).

    A claim is stale when it was not renewed for `lease` seconds by the storage's own clock, or at once where its
    holder was a process of this machine that is gone. As a context manager: a thread renews what is held
    inside, and what is still held at the end is released.

    Claims save work, they do not guard it: after a long pause of its process, or in the moment in which two
    take over from a dead one, a piece of work may be done twice. Whoever lost a claim finds that out at the
    next renewal and lets it go.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        lease: float = LEASE_S,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.lease = lease
        self._storage = storage
        self._folder = folder
        self._launch = _launch(os.environ if environment is None else environment)
        self._began = storage.clock()
        self._held: dict[str, Holder] = {}
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._renewing = threading.Thread(target=self._renew_all, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for name in list(self._held):
            self.release(name)

    def take(self, name: str) -> bool:
        """Claim what nobody holds; False where somebody does, dead or alive."""
        mine = _myself()
        if not self._storage.create(self._path(name), _to_bytes(mine)):
            return False
        self._held[name] = mine
        return True

    def look(self, name: str, now: float) -> Held | None:
        """The claim as it is, None where there is none. `now` is a recent time of the storage's clock."""
        # Read, then looked at: where it changes hands in between it is found fresh.
        holder = self._holder(name)
        entry = self._storage.stat(self._path(name))
        if entry is None:
            return None
        stale = now - entry.modified > self.lease or (holder is not None and _is_gone(holder))
        deaths = holder.deaths if holder else ()
        return Held(holder, stale, (*deaths, Death(now, self._launch)) if stale else deaths)

    def take_over(self, name: str, found: Held) -> bool:
        """Claim what a dead process holds; False where another was quicker."""
        if self._holder(name) != found.holder:
            return False
        mine = replace(_myself(), deaths=found.deaths)
        try:
            self._storage.write(self._path(name), _to_bytes(mine))
        except FileNotFoundError:
            return False
        # Others that found the same claim stale write within this time; the last one has it.
        time.sleep(self.lease / 60)
        if not self._is_mine(name, mine):
            return False
        self._held[name] = mine
        return True

    def holds(self, name: str) -> bool:
        """Whether this process holds a claim, as far as it knows."""
        return name in self._held

    def keeps(self, name: str) -> bool:
        """Whether a claim is still ours by what the storage says."""
        mine = self._held.get(name)
        return mine is not None and self._is_mine(name, mine)

    def release(self, name: str) -> None:
        """Let go of a claim, if it is still ours."""
        # One that cannot be removed goes stale by itself; the error that brought us here matters more.
        with self._lock, suppress(OSError, InputError):
            mine = self._held.pop(name, None)
            if mine is not None and self._is_mine(name, mine):
                self._storage.remove(self._path(name))

    def recent_deaths(self, found: Held) -> int:
        """Holders that died since this process began, or in the same start of an array.

        Those of earlier runs do not count: whoever starts a job again wants it tried again.
        """
        return sum(death.at >= self._began or death.launch == self._launch != "" for death in found.deaths)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}" if self._folder else name

    def _holder(self, name: str) -> Holder | None:
        try:
            data = self._storage.read(self._path(name))
        except FileNotFoundError:
            return None
        try:
            return _from_bytes(data)
        except (ValueError, TypeError):
            return None

    def _is_mine(self, name: str, mine: Holder) -> bool:
        holder = self._holder(name)
        return holder is not None and holder.nonce == mine.nonce

    def _renew_all(self) -> None:
        while not self._ending.wait(self.lease / _RENEWALS):
            for name, mine in list(self._held.items()):
                # A full disk or a lost connection may pass. Until then others may take what we hold.
                with suppress(Exception):
                    self._renew(name, mine)

    def _renew(self, name: str, mine: Holder) -> None:
        with self._lock:
            if self._held.get(name) is not mine:
                return
            if self._is_mine(name, mine):
                self._storage.write(self._path(name), _to_bytes(mine))
            else:
                del self._held[name]


def _launch(environment: Mapping[str, str]) -> str:
    """A name for one start of an array, whose tasks do not all begin together."""
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array} {environment.get('SLURM_RESTART_COUNT', '0')}" if array else ""


def _myself() -> Holder:
    pid = os.getpid()
    return Holder(socket.gethostname(), _boot(), pid, _started(pid) or 0, secrets.token_hex(8))


def _boot() -> str:
    """Equal for processes that see each other's numbers: the same start of a machine, the same container."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def _started(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where that cannot be read, or it is a zombie."""
    try:
        # The name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _is_gone(holder: Holder) -> bool:
    """Whether the holder was a process of this machine that lives no more."""
    if (holder.host, holder.boot) != (socket.gethostname(), _boot()):
        return False
    return _started(holder.pid) != holder.started


def _to_bytes(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode()


def _from_bytes(data: bytes) -> Holder:
    holder = Holder(**json.loads(data))
    return replace(holder, deaths=tuple(Death(*death) for death in holder.deaths))
