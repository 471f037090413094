"""The figures of a trial in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dist_trainer.preflight.limit import Outcome

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def size(count: float) -> str:
    """Bytes in words."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def figures(
    hosts: Sequence[str],
    reports: Sequence[Mapping[str, Outcome]],
    pairs: Mapping[tuple[str, str], float],
    seconds: float,
) -> dict[str, str]:
    """Name of a part -> what was measured; parts that were not tried are left out."""
    values = [{name: one.value for name, one in report.items() if not one.fault} for report in reports]
    names = Counter(value["device"]["name"] for value in values if "device" in value)
    devices = " + ".join(f"{count} x {name}" for name, count in names.items())
    found = {"nodes": f"{len(set(hosts))}", "devices": f"{devices}, each computes right"}
    if speeds := [value["network"]["sum"] for value in values if value.get("network")]:
        found["all-reduce"] = f"{size(min(speeds))}/s over {len(hosts)} ranks"
    if pairs:
        (one, other), speed = min(pairs.items(), key=lambda pair: pair[1])
        found["slowest pair"] = f"{size(speed)}/s, {one} and {other}"
    if offsets := [abs(value["clock"][0]) for value in values if value.get("clock")]:
        found["clocks"] = f"within {max(offsets):.2g} s"
    if writes := [value["storage"]["speed"] for value in values if "storage" in value]:
        found["run folder"] = f"written at {size(min(writes))}/s by each node"
    found |= _room(values[0])
    prints = [value["data"]["fingerprint"] for value in values if "data" in value]
    if prints:
        found["dataset"] = f"{prints[0][:12]} on all nodes"
    if "code" in values[0]:
        found["code"] = f"{values[0]['code']['code']}, torch {values[0]['code']['torch']} on all nodes"
    return found | {"took": f"{seconds:.1f} s"}


def _room(values: Mapping[str, Any]) -> dict[str, str]:
    if not values.get("room"):
        return {}
    return {"free": f"{size(values['room']['free'])}, a checkpoint takes {size(values['room']['one'])}"}
