"""What a run says when it fails: one explanation over all ranks, and an exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback

from dist_trainer import dist
from dist_trainer.dist import Gathering, MissingRanks
from dist_trainer.preflight.finding import PreflightFailed
from dist_trainer.rundir import StillHeld
from dist_trainer.stop import SIGNALS
from dist_trainer.watch.watch import Watch
from dist_trainer.world import World, presumed
from shards.errors import InputError, ShardError

_FORESEEN = (InputError, ShardError, MissingRanks, PreflightFailed, StillHeld)
# Seconds that rank 0 waits for the others to report their end. Until torch.distributed starts, all that come will.
_BEFORE_START_S, _AFTER_START_S = 30.0, 5.0
_TO_SPEAK_S = 20.0  # to find out who is gone, and to say so


def fail(
    error: Exception, world: World | None, gathering: Gathering | None, watch: Watch | None = None
) -> int:
    """Explain an error once over all ranks: the first rank to fail speaks, the others only say that they end.

    `world`: None where the environment does not tell this rank's place.
    """
    code = 2 if isinstance(error, InputError) else 1
    unheard = False
    if world and not gathering and code == 2:
        # Ranks that found nothing wrong hear of it, instead of waiting for this one.
        try:
            gathering = dist.connect(world, _BEFORE_START_S)
        except MissingRanks:
            unheard = True
        except InputError:
            pass  # every rank finds the same
    world = world or presumed(os.environ)
    for number in SIGNALS:
        # srun tells all to end when the first has: neither the word of this one nor its code may be lost by that.
        signal.signal(number, signal.SIG_IGN)
    if gathering is None:
        # Nobody to agree with: rank 0, or the likely first of those that do not find it, or who alone knows.
        if world.is_main or unheard or (isinstance(error, MissingRanks) and world.rank == 1):
            _tell(f"error: {_explained(error)}")
        return code
    lingers_s = _AFTER_START_S if dist.started() or code != 2 else _BEFORE_START_S
    if watch:
        watch.main_ends(lingers_s + _TO_SPEAK_S)
    known = gathering.first_to_fail()
    if known is None:
        _tell_of_rank_0(error, world, watch)
        return code
    first, mine = known
    if mine:
        _speak(error, gathering, watch)
    elif not isinstance(error, InputError):
        here = "" if isinstance(error, _FORESEEN) else f" (here: {_brief(error)})"
        _tell(f"rank {world.rank} ends: rank {first} failed or is gone{here}")
    gathering.linger(mine, lingers_s)
    if watch and not mine and _may_be_felt(error):
        # The one that speaks looks first who is gone.
        watch.give_time()
    return code


def _speak(error: Exception, gathering: Gathering, watch: Watch | None) -> None:
    """Say why the run ends. An error of torch.distributed may only be how this rank feels that another one is gone."""
    gone = watch.gone() if watch and _may_be_felt(error) else ""
    cause = f"{gone}; here: {_brief(error)}" if gone else _brief(error)
    if gone:
        _tell(f"error: {cause}")
    else:
        late = watch.behind() if watch and _may_be_felt(error) else ""
        _tell(f"error: {_explained(error)}" + (f"\nbehind the others: {late}" if late else ""))
    if watch and (gone or isinstance(error, MissingRanks)):
        watch.pronounce(cause, _traced(error))


def _tell_of_rank_0(error: Exception, world: World, watch: Watch | None) -> None:
    """The store is gone, and rank 0 with it: one of the others says so, unless rank 0 has said why before."""
    here = "" if isinstance(error, _FORESEEN) else f"; here: {_brief(error)}"
    if watch and not watch.heard_of_failure:
        cause = f"{watch.lost_main()}{here}"
        if watch.claim(cause):
            _tell(f"error: {cause}")
            watch.write_stacks(f"{cause}\n{_traced(error)}")
            watch.give_time()
            return
    _tell(f"rank {world.rank} ends: rank 0 failed or is gone{here}")


def _may_be_felt(error: Exception) -> bool:
    return isinstance(error, RuntimeError) and not isinstance(error, _FORESEEN)


def _explained(error: Exception) -> str:
    if isinstance(error, _FORESEEN):
        return str(error)
    return f"{_brief(error)}\n{_traced(error)}"


def _traced(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
