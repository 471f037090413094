"""A real Slurm of four nodes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.slurm import Cluster, cluster, missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The cluster; one for the session."""
    if reason := missing():
        pytest.skip(reason)
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running
