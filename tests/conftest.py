"""Fixtures shared by all tests: one tiny model and one small dataset, written once a session."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from shards.dataset.opened import Dataset
from tests.support.datasets import GRIDS, write_dataset
from tests.support.servers import make_bucket, s3_environment, s3_server

_SLURM = "tests/slurm/"

# Before any test imports torch: every process computes with one thread, as launchers arrange it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The suite is for the CPU, also where there is a GPU; CUDA_VISIBLE_DEVICES=0 brings the tests of kernels back.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# A suite that passed passes again, also on a busy machine; HYPOTHESIS_PROFILE=explore looks for new examples instead.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=500, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a Slurm begin first: they wait more than they compute, while another process goes on with the rest."""
    items.sort(key=lambda item: not item.nodeid.startswith(_SLURM))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Where processes share the tests (make test), a file's are one's, and those of a Slurm, which share a cluster."""
    return _Together(config, log)


class _Together(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return _SLURM if nodeid.startswith(_SLURM) else nodeid.partition("::")[0]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """What a test does with signals ends with it: children of the next ones would inherit that they are ignored."""
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """A tiny LTX pipeline folder with random weights."""
    from tests.support.models import tiny_model

    return tiny_model()


@pytest.fixture(scope="session")
def paired_dataset(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Thirty samples of mixed sizes that fit the tiny model, each with a reference."""
    from tests.support.models import tiny_source

    sizes = json.loads((model_folder / "transformer" / "config.json").read_text())
    return write_dataset(
        tmp_path_factory.mktemp("dataset"),
        30,
        channels=sizes["in_channels"],
        text_width=sizes["caption_channels"],
        references=GRIDS,
        vae=tiny_source(),
    )


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Endpoint of an S3 API server in a process of its own."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket, which this process's environment leads to."""
    for name, value in s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    return make_bucket(s3, f"bucket-{uuid.uuid4().hex}")
