"""The trial of the nodes, run by real ranks; the name Slurm gives a task's node makes several of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.config import RunConfig, load
from dist_trainer.dist import Gathering, MissingRanks
from dist_trainer.logs import read_log
from dist_trainer.preflight.code import ROOT
from dist_trainer.preflight.trial import alone
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from tests.support.bench import Bench, assert_refused
from tests.support.forked import Ended
from tests.support.gatherings import at_once, over_tcp
from tests.support.runs import environment, free_port, lines, ranks

HOSTS = ("node1", "node2", "node3")

pytestmark = pytest.mark.timeout(300)


class Nodes(Bench):
    """A tiny run of a step on three nodes of one rank each; the nodes may be given different settings."""

    def on(self, *own: list[str], **settings: object) -> Ended:
        """Run with the settings of each node; fields of a Launch."""
        blocks, port = {"optimization": {"steps": 1}, "health": {"preflight": True}}, free_port()
        environ = [
            {**ranks(len(own), rank, port), "SLURMD_NODENAME": HOSTS[rank], "SLURM_JOB_ID": "7"}
            for rank in range(len(own))
        ]
        arguments = [[str(self.config(**blocks)), *some] for some in own]
        return self.run(size=len(own), blocks=blocks, arguments=arguments, environ=environ, **settings)

    def bad(self) -> list[tuple[str, str, int]]:
        """Host, job and restart of the bad nodes that the run has recorded."""
        return [
            (one["host"], one["job"], one["restart"]) for one in read_log(RunFolder(self.output).bad_nodes)
        ]


@pytest.fixture
def nodes(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Nodes:
    made = Nodes(tmp_path, model_folder, paired_dataset)
    made.config(optimization={"steps": 1})
    return made


def test_a_job_says_in_one_line_that_all_is_well_and_trains(nodes: Nodes) -> None:
    ended = nodes.on([], [], [])
    assert ended.codes == [0, 0, 0], str(ended)
    # On a busy machine the line on a slow pair may follow.
    [line] = [line for line in ended.stdout[0].splitlines() if line.startswith("preflight: nodes")]
    for figure in (
        r"nodes 3; devices 3 x CPU, each computes right",
        r"all-reduce [\d.]+ [KMG]B/s over 3 ranks",
        r"slowest pair [\d.]+ [KMG]B/s, node\d and node\d",
        r"clocks within \S+ s",
        r"run folder written at [\d.]+ [KMG]B/s",
        r"free \S+ [GTP]B, a checkpoint takes [\d.]+ MB",
        r"dataset [0-9a-f]{12} on all nodes",
    ):
        assert re.search(figure, line), line
    assert "preflight:" not in ended.stdout[1] + ended.stdout[2]
    assert len(lines(nodes.output / "metrics.jsonl")) == 1
    assert not (nodes.output / ".preflight").exists()
    assert not nodes.bad()


def test_a_node_that_does_not_see_the_dataset_is_recorded_and_ends_the_job_as_a_crash(nodes: Nodes) -> None:
    ended = nodes.on([], [], ["data.preprocessed_data_root=/nowhere"])
    assert_refused(
        ended, "node3: data.preprocessed_data_root: dataset folder /nowhere does not exist", code=1
    )
    assert ended.codes == [1, 1, 1]
    assert nodes.bad() == [("node3", "7", 0)]
    assert not (nodes.output / ".preflight").exists()
    assert not (nodes.output / "metrics.jsonl").exists()


def test_what_all_nodes_miss_is_bad_input_and_no_nodes_fault(nodes: Nodes) -> None:
    gone = ["data.preprocessed_data_root=/nowhere"]
    ended = nodes.on(gone, gone)
    assert_refused(ended, "error: data.preprocessed_data_root: dataset folder /nowhere does not exist")
    assert ended.codes == [2, 2]
    assert not nodes.output.exists()


def test_a_hub_is_asked_after_what_is_here_was_looked_at(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a checkpoint is told by the model's config.json, which may be on a hub."""
    asked: list[str] = []

    def room(config: RunConfig) -> dict[str, int]:
        asked.append(config.data.preprocessed_data_root)
        return {"one": 1, "all": 1, "free": 2}

    monkeypatch.setattr("dist_trainer.preflight.room.room", room)
    for root in ("/nowhere", str(nodes.dataset.root)):
        config = load(nodes.root / "config.yaml", [f"data.preprocessed_data_root={root}"])
        _, gatherings = over_tcp(1)
        at_once(lambda gathering, config=config: alone(config, gathering), gatherings)
    assert asked == [str(nodes.dataset.root)]


def test_where_each_node_has_a_fault_of_its_own_none_is_recorded(nodes: Nodes) -> None:
    """A job that keeps away from all its nodes may find no others."""
    (nodes.root / "file").touch()
    ended = nodes.on(["data.preprocessed_data_root=/nowhere"], [f"output_dir={nodes.root}/file/run"])
    assert_refused(ended, "2 findings of the preflight", code=1)
    for fault in ("node1: data.preprocessed_data_root: ", "node2: output_dir: "):
        assert fault in "".join(ended.stderr)
    assert not nodes.bad()


def test_a_file_system_that_hangs_on_a_node_is_waited_for_to_a_limit(nodes: Nodes) -> None:
    hangs = nodes.copy_of_dataset()
    (hangs / "dataset.json").unlink()
    os.mkfifo(hangs / "dataset.json")  # whoever opens it waits for a writer
    ended = nodes.on(
        ["--limit=6"],
        [f"data.preprocessed_data_root={hangs}", "--limit=6"],
        ["--limit=6"],
        module="dist_trainer.preflight",
    )
    assert_refused(ended, "node2: did not end within", code=1)


def test_rank_0_with_a_bad_run_folder_is_recorded_by_another(nodes: Nodes) -> None:
    (nodes.root / "file").touch()
    ended = nodes.on([f"output_dir={nodes.root}/file/run"], [], [])
    assert_refused(ended, "node1: output_dir: ", "Not a directory", code=1)
    assert nodes.bad() == [("node1", "7", 0)]


def test_nodes_with_different_folders_are_refused(nodes: Nodes) -> None:
    ended = nodes.on([], [f"output_dir={nodes.root}/other"])
    assert_refused(ended, "node2 and node1 see different folders", "every host needs the same folder")


def test_a_damaged_sample_is_a_nodes_fault_where_others_read_it_well(nodes: Nodes) -> None:
    other, manifest = nodes.copy_of_dataset(), nodes.dataset.manifest
    shard = other / manifest.shards[manifest.shard[0]]
    content = bytearray(shard.read_bytes())
    content[int(manifest.offset[0] + manifest.nbytes[0]) - 1] ^= 1
    shard.write_bytes(content)
    ended = nodes.on([], [f"data.preprocessed_data_root={other}"])
    assert_refused(ended, "node2: reads ", repr(manifest.keys[0]), "others read it well", code=1)
    assert nodes.bad() == [("node2", "7", 0)]


def test_health_preflight_turns_it_off(nodes: Nodes) -> None:
    off = "health.preflight=false"
    ended = nodes.on([off], [off, "data.preprocessed_data_root=/nowhere"])
    assert_refused(ended, "error: data.preprocessed_data_root: dataset folder /nowhere does not exist")
    assert not nodes.bad()


def test_a_rank_that_falls_silent_is_named_and_recorded(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, (_, gatherings) = load(nodes.root / "config.yaml"), over_tcp(2)
    monkeypatch.setenv("SLURMD_NODENAME", "node1")

    def act(gathering: Gathering) -> None:
        if gathering.world.rank == 1:
            gathering.collect("start", "node2")
            gathering.share("preflight: hosts", "")
        else:
            alone(config, gathering, limit=1)

    [error, _] = at_once(act, gatherings)
    assert isinstance(error, MissingRanks)
    assert "missing rank 1 (" in str(error)
    assert nodes.bad() == [("node2", "local", 0)]


def test_one_byte_of_other_code_on_a_node_is_named_with_both_values(nodes: Nodes) -> None:
    other = nodes.root / "code"
    for package in ("shards", "dist_trainer", "launch"):
        shutil.copytree(ROOT / package, other / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "launch" / "__init__.py").open("a") as file:
        file.write("\n")
    port, command = free_port(), [sys.executable, "-m", "dist_trainer.preflight", nodes.root / "config.yaml"]
    started = [
        subprocess.Popen(
            command,
            env=environment(**ranks(2, rank, port), PYTHONPATH=str(root), SLURMD_NODENAME=HOSTS[rank]),
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, root in enumerate((ROOT, other))
    ]
    printed = "".join(process.communicate(timeout=200)[0] for process in started)
    assert [process.returncode for process in started] == [1, 1], printed
    assert re.search(r"error: preflight: node2: code [0-9a-f]{12}, but [0-9a-f]{12} on node1", printed), (
        printed
    )
    assert not nodes.output.exists(), "standing alone it records nothing"
