from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from dist_trainer.watch.ending import Ending


@pytest.fixture
def ending() -> Iterator[Ending]:
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGUSR1)}
    found = Ending()
    yield found
    found.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_thread_hears_of_it_while_the_main_one_is_in_a_call_that_does_not_return(ending: Ending) -> None:
    told: list[bool] = []

    def look() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        told.append(ending.told())
        release.release()

    release = threading.Lock()
    release.acquire()
    threading.Thread(target=look).start()
    with release:
        assert told == [True]
    assert ending.told(), "for ever"


def test_other_signals_do_not_count(ending: Ending) -> None:
    os.kill(os.getpid(), signal.SIGUSR1)
    assert not ending.told()
