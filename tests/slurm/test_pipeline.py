"""`ltx-launch pipeline` on a real Slurm: from clips to weights, and a chain whose first stage fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.clips import write_ramp
from tests.support.queueing import ltx_launch_on
from tests.support.runs import lines, tiny_config, write_config
from tests.support.slurm import Cluster

STEPS = 3
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
STAGES = ["prepare", "doctor", "train", "export"]

pytestmark = pytest.mark.timeout(600)


class Chain:
    """A queued chain: its folder, and the job of each stage."""

    def __init__(self, slurm: Cluster, folder: Path, printed: str) -> None:
        self.slurm, self.folder = slurm, folder
        rows = re.findall(rf"^({'|'.join(STAGES)}) +(\d+) ", printed, re.M)
        self.jobs = dict(rows)

    def state(self, stage: str) -> str:
        return self.slurm.wait(self.jobs[stage], *ENDED, limit=200)

    def printed(self) -> str:
        logs = sorted(
            log for log in (self.folder / "run" / "logs").rglob("*") if log.suffix in (".out", ".log")
        )
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')}" for log in logs)


@pytest.fixture(scope="module")
def chains(slurm: Cluster, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chain]:
    """Two chains, queued at once: one of clips that are there, one of a clip that is not."""
    root = tmp_path_factory.mktemp("chains")
    (root / "clips").mkdir()
    for number in range(4):
        write_ramp(root / "clips" / f"{number}.mp4", 12, 80, 64, number, fps=20 + number)
    commands = []
    for name, names in (("good", range(4)), ("bad", (5,))):
        table = root / "clips" / f"{name}.csv"
        table.write_text("caption,media_path\n" + "".join(f"clip {n},{n}.mp4\n" for n in names))
        blocks = {"optimization": {"steps": STEPS}, "health": {"preflight": False}}
        config = tiny_config(model_folder, root / name / "data", root / name / "run", **blocks)
        chain = ["pipeline", str(write_config(root / f"{name}.yaml", config)), f"--table={table}"]
        size = ["--buckets=64x64x9", "--workers=2", "--nodes=2", "--gpus-per-node=0", "--cpus-per-task=1"]
        commands.append([*chain, *size, "--encode=--rows-per-shard", "--encode=2"])
    first, second = ltx_launch_on(slurm, *commands).split("stage ")[1:]
    return {"good": Chain(slurm, root / "good", first), "bad": Chain(slurm, root / "bad", second)}


def test_a_chain_goes_from_clips_to_weights(chains: dict[str, Chain]) -> None:
    chain = chains["good"]
    assert list(chain.jobs) == STAGES
    for stage in STAGES:
        assert chain.state(stage) == "COMPLETED", chain.printed()
    assert len(list((chain.folder / "data").rglob("*.tar"))) == 2
    began, ended = lines(chain.folder / "run" / "logs" / "jobs.jsonl")[1:]
    assert (began["job"], began["ranks"], ended["code"]) == (chain.jobs["train"], 2, 0)
    assert ended["step"] == STEPS
    exports = chain.folder / "run" / "exports" / f"step_{STEPS:06d}"
    assert list(exports.rglob("*.safetensors"))
    assert (
        str(exports)
        in (chain.folder / "run" / "logs" / "submitit" / f"{chain.jobs['export']}_0_log.out").read_text()
    )


def test_nothing_waits_for_a_stage_that_failed(chains: dict[str, Chain]) -> None:
    chain = chains["bad"]
    assert [chain.state(stage) for stage in STAGES] == ["FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]
    assert "5.mp4" in chain.printed()
    assert "Traceback" not in chain.printed()
    assert [one["event"] for one in lines(chain.folder / "run" / "logs" / "jobs.jsonl")] == ["submitted"]
