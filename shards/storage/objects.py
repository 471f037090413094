"""A dataset in an object store: S3, Google Cloud Storage, Azure, or files behind a web server (read-only).

Credentials and endpoints come from the environment variables of each provider's own tools (docs/data.md).
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, NotSupportedError
from obstore.store import AzureStore, HTTPStore, from_url

from shards.errors import InputError
from shards.storage.entry import Entry, is_temporary
from shards.storage.masked import masked

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

T = TypeVar("T")
SCHEMES = ("s3", "gs", "az", "http", "https")
# Resets, 5xx, 429 and bodies cut short are tried again for up to three minutes; `_insist` has what obstore leaves.
RETRY: RetryConfig = {
    "max_retries": 10,
    "retry_timeout": timedelta(minutes=3),
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=15), "base": 2},
}
READ_TIMEOUT = timedelta(seconds=30)  # without a byte
_INSIST_AFTER_S = (0.1, 0.3, 0.9)
_PART = 8 << 20  # bytes of one part of an upload; S3 takes 10,000 of them
_PARTS_AT_ONCE = 8
# In the text, because a listing has no error of its own for them. Where no credentials are set, the last one, the
# metadata service that machines of a cloud have, is asked for some.
_DENIED = ("status code: 401", "status code: 403", "169.254.169.254", "metadata.google.internal")
_PAST_END = ("status code: 416", "Wanted range starting at")
_NO_ANSWER = "error sending request"
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL; AWS_SKIP_SIGNATURE=true if public",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}


class ObjectStorage:
    """The objects below a URL: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, http(s)://host/path.

    Every call is tried again on passing faults (`RETRY`). What stays wrong is a FileNotFoundError for an object
    that is not there, else an InputError; both name the object's URL and the cause. Safe to use from several
    threads, not after a fork.
    """

    def __init__(self, url: str, retry: RetryConfig = RETRY) -> None:
        """Raises InputError for a URL that cannot be one. Nothing is read yet."""
        self.name = masked(url)
        self._scheme = url.partition("://")[0]
        if self._scheme not in SCHEMES:
            raise InputError(f"{self.name}: {self._scheme}:// is not known; use one of {', '.join(SCHEMES)}")
        try:
            self._store = _open(self._scheme, url, retry)
        except (BaseError, ValueError) as error:
            raise InputError(f"{self.name}: not a usable address: {_cause(error)}") from error

    def read(self, path: str) -> bytes:
        """All bytes of an object."""
        with self._asked(path):
            return bytes(obstore.get(self._store, path).bytes())

    def write(self, path: str, data: bytes) -> None:
        """Put an object in place; nobody sees a part of it."""
        self._check_writable(path)
        self._upload(path, data)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        """Open a temporary local file that is uploaded at the end of the block."""
        self._check_writable(path)
        with tempfile.TemporaryFile() as file:
            yield file
            file.flush()
            self._upload(path, _opened(file))

    def create(self, path: str, data: bytes) -> bool:
        """Put an object in place unless there is one."""
        self._check_writable(path)
        # When the answer to a put is lost, the next try finds the object of the first: the mark tells whose it is.
        mark = uuid.uuid4().hex
        with self._asked(path, writing=True):
            try:
                obstore.put(self._store, path, data, mode="create", attributes={"creator": mark})
            except AlreadyExistsError:
                try:
                    found = obstore.get(self._store, path, options={"head": True})
                except FileNotFoundError:
                    return False
                return found.attributes.get("creator") == mark
        return True

    def list(self, prefix: str = "") -> list[Entry]:
        """Objects under a folder; temporary ones are left out. Raises InputError for a web server."""
        if self._scheme.startswith("http"):
            raise InputError(
                f"{self.name}: a web server does not list its files; use a copy elsewhere for this"
            )
        folder = prefix.rstrip("/") or None
        with self._asked(prefix):
            found = _insist(lambda: [meta for chunk in obstore.list(self._store, folder) for meta in chunk])
        entries = (_entry(meta) for meta in found)
        return sorted(entry for entry in entries if not is_temporary(entry.path))

    def stat(self, path: str) -> Entry | None:
        """One object, None when it is absent."""
        try:
            with self._asked(path):
                return _entry(obstore.head(self._store, path))
        except FileNotFoundError:
            return None

    def move(self, path: str, target: str) -> None:
        """Put an object in place under another name: a copy that the store makes, whole or not at all."""
        self._check_writable(path)
        with self._asked(path):
            _insist(lambda: obstore.copy(self._store, path, target))
        self.remove(path)

    def remove(self, path: str) -> None:
        """Take an object away, if it is there."""
        self._check_writable(path)
        try:
            with self._asked(path):
                obstore.delete(self._store, path)
        except FileNotFoundError:
            pass

    def sweep(self, folder: str, age: float = 0.0) -> None:
        """Take away the clock's probes, which lie at the root; what was not uploaded whole was never there."""
        if folder or self._scheme.startswith("http"):
            return
        with self._asked(folder):
            found = _insist(lambda: obstore.list_with_delimiter(self._store)["objects"])
        latest = self.clock() - age if found and age else math.inf
        for entry in map(_entry, found):
            if is_temporary(entry.path) and entry.modified < latest:
                self.remove(entry.path)

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """A temporary download, at a path that holds in this process alone."""
        with tempfile.TemporaryFile() as file:
            with self._asked(path):
                for chunk in obstore.get(self._store, path).stream(min_chunk_size=_PART):
                    file.write(chunk)
            file.flush()
            yield _opened(file)

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        """Read into `view` from byte `offset`: one request for just these bytes."""
        if not len(view):
            return 0
        with self._asked(path):
            try:
                data = obstore.get_range(self._store, path, start=offset, length=len(view))
            except NotSupportedError:
                raise InputError(
                    f"{self.name}: this server does not answer byte ranges: serve the dataset with nginx or from an "
                    "object store, or copy it here"
                ) from None
            except GenericError as error:
                # Servers refuse a range that begins at or after the end, and some others.
                beyond = any(mark in str(error) for mark in _PAST_END)
                if beyond and obstore.head(self._store, path)["size"] <= offset:
                    return 0
                raise
        # Unlike an assignment to the view, numpy's copy of a large array lets other threads run.
        np.copyto(np.frombuffer(view, np.uint8)[: len(data)], np.frombuffer(memoryview(data), np.uint8))
        return len(data)

    def clock(self) -> float:
        """Now, by the store's clock, to a second: the time of a probe object put once. A web server has none: ours."""
        return time.monotonic() + self._clock_ahead

    @cached_property
    def _clock_ahead(self) -> float:
        """The store's time less this machine's monotonic one."""
        if self._scheme.startswith("http"):
            return time.time() - time.monotonic()
        probe = f".clock.{uuid.uuid4().hex}.tmp"
        before = time.monotonic()
        self.write(probe, b"")
        try:
            with self._asked(probe):
                return _entry(obstore.head(self._store, probe)).modified - before
        finally:
            self.remove(probe)

    def _upload(self, path: str, data: bytes | Path) -> None:
        with self._asked(path, writing=True):
            _insist(
                lambda: obstore.put(self._store, path, data, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
            )

    def _check_writable(self, path: str) -> None:
        if self._scheme.startswith("http"):
            raise InputError(
                f"{self._url(path)}: a web server is read-only here; write to s3://, gs:// or az://"
            )

    def _url(self, path: str) -> str:
        return f"{self.name.rstrip('/')}/{path}"

    @contextmanager
    def _asked(self, path: str, writing: bool = False) -> Iterator[None]:
        """Errors of the store as this project's, with the object's URL."""
        try:
            yield
        except FileNotFoundError as error:
            # A write finds the bucket absent, which is the user's mistake.
            kind = InputError if writing else FileNotFoundError
            raise kind(f"{self._url(path)}: {_cause(error)}") from error
        except (BaseError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            cause = _cause(error)
            if any(mark in cause for mark in _DENIED):
                cause = f"access denied ({cause}); {self._credentials()}"
            elif cause.endswith(_NO_ANSWER):
                cause = f"no server answers there: check the address and the network ({cause})"
            raise InputError(f"{self._url(path)}: {cause}") from error

    def _credentials(self) -> str:
        names = _CREDENTIALS.get(self._scheme)
        return f"check the environment variables {names}" if names else "the server wants a login"


def _open(scheme: str, url: str, retry: RetryConfig) -> ObjectStore:
    # A limit on a whole request would cut large downloads on slow lines; one that stands still is given up.
    client: ClientConfig = {"timeout": "1h", "read_timeout": READ_TIMEOUT}
    if scheme.startswith("http"):
        client["allow_http"] = scheme == "http"
        return HTTPStore(url, client_options=client, retry_config=retry)
    # Giving any option of the client hides those of the environment, so this one is passed on by hand.
    prefix = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}[scheme]
    client["allow_http"] = os.environ.get(f"{prefix}_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")
    if scheme == "az":
        account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
        if not account:
            raise ValueError("the environment variable AZURE_STORAGE_ACCOUNT_NAME is not set")
        return AzureStore.from_url(url, account_name=account, client_options=client, retry_config=retry)
    return from_url(url, client_options=client, retry_config=retry)


def _insist(call: Callable[[], T]) -> T:
    """Call again after an answer of the server that was cut short, which obstore only does for reads.

    An upload whose last answer was lost is complete, and then an error of its own: there is nothing to finish.
    """
    for wait_s in _INSIST_AFTER_S:
        try:
            return call()
        except (GenericError, FileNotFoundError) as error:
            if isinstance(error, GenericError) and "response body" not in str(error):
                raise
            time.sleep(wait_s)
    return call()


def _opened(file: IO[bytes]) -> Path:
    """A path to an open file that has no name: one with a name would stay if this process is killed."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _entry(meta: Mapping[str, Any]) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _cause(error: Exception) -> str:
    """One line of an error of obstore, whose text goes on with a dump of its structures."""
    line = masked(" ".join(str(error).partition("\n\nDebug source")[0].split()))
    return line if len(line) <= 400 else f"{line[:400]}..."
