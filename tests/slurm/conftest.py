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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say once, at the end, how many tests had no cluster, and what to do about it."""
    reports = terminalreporter.stats.get("skipped", ())
    skipped = [report for report in reports if report.nodeid.startswith("tests/slurm/")]
    if skipped and (reason := missing()):
        line = f"{len(skipped)} tests on a real Slurm were skipped: {reason}"
        terminalreporter.write_line(f"{line}; then: make test-slurm", yellow=True, bold=True)
