from __future__ import annotations

import threading
import time

import pytest

from dist_trainer.preflight.clock import answer, ask
from tests.support.gatherings import over_tcp


@pytest.mark.parametrize("ahead", [0.0, 5.0, -3600.0])
def test_a_clock_that_is_off_is_told_from_the_way_of_the_answer(ahead: float) -> None:
    _, [main, *others] = over_tcp(3)
    found: dict[int, tuple[float, float]] = {}
    threads = [
        threading.Thread(target=lambda g=g: found.update({g.world.rank: ask(g.store("c"), g.world.rank, 20)}))
        for g in others
    ]
    for thread in threads:
        thread.start()
    answer(main.store("c"), [1, 2], 20, now=lambda: time.time() - ahead)
    for thread in threads:
        thread.join()
    for offset, unsure in found.values():
        assert abs(offset - ahead) <= unsure + 1e-3
        assert unsure < 10
    assert len(found) == 2
