"""What a run says when it fails: one explanation over all ranks, and an exit code."""

from __future__ import annotations

import sys
import traceback

from dist_trainer import dist
from dist_trainer.dist import Gathering, MissingRanks
from dist_trainer.world import World
from shards.errors import InputError, ShardError

_FORESEEN = (InputError, ShardError, MissingRanks)
# Seconds that rank 0 waits for the others to report their end. Until torch.distributed starts, all that come will.
BEFORE_START_S, _AFTER_START_S = 30.0, 3.0


def fail(error: Exception, world: World, gathering: Gathering | None) -> int:
    """Explain an error once over all ranks: the first rank to fail speaks, the others only say that they end."""
    code = 2 if isinstance(error, InputError) else 1
    if gathering is None:
        # Nobody to agree with: rank 0, or the likely first of those that do not find it.
        if world.is_main or (isinstance(error, MissingRanks) and world.rank == 1):
            _tell(f"error: {_explained(error)}")
        return code
    speaker = gathering.first_to_fail()
    if speaker == world.rank:
        late = gathering.behind()
        _tell(f"error: {_explained(error)}" + (f"\nbehind the others: {late}" if late else ""))
    else:
        here = "" if isinstance(error, _FORESEEN) else f" (here: {_brief(error)})"
        if not isinstance(error, InputError):
            _tell(f"rank {world.rank} ends: rank {speaker} failed or is gone{here}")
    unheard = gathering.linger(
        speaker == world.rank, _AFTER_START_S if dist.started() or code != 2 else BEFORE_START_S
    )
    if unheard and not isinstance(error, _FORESEEN):
        _tell(f"not heard of again: {unheard}")
    return code


def _explained(error: Exception) -> str:
    if isinstance(error, _FORESEEN):
        return str(error)
    return f"{_brief(error)}\n{''.join(traceback.format_exception(error))}"


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
