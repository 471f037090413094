from __future__ import annotations

from typing import Any

from dist_trainer.preflight.finding import Finding
from dist_trainer.preflight.judges.devices import devices
from dist_trainer.preflight.limit import Outcome

HOSTS = ["a", "a", "b", "b", "c", "c"]


def gpu(uuid: str, **other: Any) -> dict[str, Any]:
    memory = {"memory": 80e9, "free": 79e9}
    return {"kind": "cuda", "name": "H100", "uuid": uuid, "visible": 2, "speed": 6e14, **memory, **other}


def judged(changed: dict[int, Outcome | dict[str, Any]], hosts: list[str] = HOSTS) -> list[Finding]:
    outcomes = {rank: Outcome(gpu(f"gpu-{rank}")) for rank in range(len(hosts))}
    outcomes |= {rank: one if isinstance(one, Outcome) else Outcome(one) for rank, one in changed.items()}
    return devices(hosts, [{"device": outcomes[rank]} for rank in range(len(hosts))])


def test_sound_devices_bring_no_findings() -> None:
    assert judged({}) == []
    assert judged({0: {"kind": "cpu", "name": "CPU", "visible": 0, "speed": 0.0}}, ["a"]) == []


def test_a_device_that_fails_is_its_nodes_fault_even_where_all_do() -> None:
    for hosts in (HOSTS, ["a"], ["a", "b"]):
        found = judged(dict.fromkeys(range(len(hosts)), Outcome(fault="computes wrong")), hosts)
        assert [(one.kind, one.host) for one in found] == [("node", host) for host in hosts]
    assert found[1].text == "b (rank 1): device: computes wrong; have this node looked at"


def test_devices_of_most_nodes_that_are_late_are_no_nodes_fault() -> None:
    late, wrong = Outcome(fault="did not end within 40 s", late=True), Outcome(fault="computes wrong")
    assert [(one.kind, one.host) for one in judged({1: late, 2: late, 3: late, 4: wrong})] == [
        ("failure", ""),
        ("node", "c"),
    ]
    for changed, hosts in (({3: late}, HOSTS), ({0: late}, ["a"]), ({1: late}, ["a", "b"])):
        assert [one.kind for one in judged(changed, hosts)] == ["node"]


def test_a_node_without_its_gpus_is_left_out() -> None:
    cpu = {"kind": "cpu", "name": "CPU", "visible": 0, "speed": 0.0}
    [found] = [one for one in judged({2: cpu, 3: cpu}) if one.kind != "warning"]
    assert (found.kind, found.host) == ("node", "b")
    assert "b: computes on cpu, but cuda on a" in found.text


def test_two_ranks_on_one_gpu_are_the_users_fault_where_all_nodes_have_them_else_the_nodes() -> None:
    [found] = judged({3: gpu("gpu-2", visible=1)})
    assert (found.kind, found.host) == ("node", "b")
    assert "b: ranks 2, 3 share one GPU of 2 visible" in found.text
    twice = {rank: gpu("one", visible=1) for rank in range(6)}
    found, *_ = judged(twice)
    assert found.kind == "input"
    assert "start one process per GPU" in found.text


def test_a_slow_used_or_other_gpu_is_warned_of() -> None:
    found = judged(
        {1: gpu("1", speed=2e14), 2: gpu("2", free=9e9), 4: gpu("4", name="A100"), 5: gpu("5", name="A100")}
    )
    assert {one.kind for one in found} == {"warning"}
    texts = " ".join(one.text for one in found)
    assert "a (rank 1): its GPU computes at 33% of the median" in texts
    assert "b (rank 2): 71 GB of its GPU's memory are in use" in texts
    assert "c: device A100, but H100 on a" in texts
