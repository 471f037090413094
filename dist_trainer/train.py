"""One training process: parse, join, build, run, close. Launchers start one per rank."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dist_trainer import dist
from dist_trainer.checkpoints.saving import heeding_room
from dist_trainer.config import RunConfig, load
from dist_trainer.dist import Gathering
from dist_trainer.job import start_of
from dist_trainer.model.deepspeed_config import deepspeed_config
from dist_trainer.model.engine import check_settings
from dist_trainer.output import print_on
from dist_trainer.preflight.report import tell
from dist_trainer.preflight.trial import alone, together
from dist_trainer.run import run, say
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE, Requests, Wish, ends_at
from dist_trainer.watch import progress
from dist_trainer.watch.failure import fail
from dist_trainer.watch.watch import Watch
from dist_trainer.world import World, discover

LEAVING_S = 60.0  # for the end of torch.distributed, when all work is done


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; its exit code: 0 when trained or stopped for good, 85 to come back, 2 for bad input, else 1."""
    # What is loaded stays: no collection, nor those that DeepSpeed asks for as it starts, need look at it again.
    gc.freeze()
    parser = argparse.ArgumentParser(
        prog="dist_trainer.train", description="Train LTX-Video from a YAML config."
    )
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file"
    )
    parser.add_argument(
        "--local_rank", type=int, default=None, help="set by the deepspeed launcher; not needed"
    )
    parsed = parser.parse_args(arguments)
    world = gathering = watch = None
    try:
        world = discover(os.environ)
        config = load(parsed.config, parsed.overrides)
        check_settings(deepspeed_config(config, on_gpu=False))
        requests = Requests(Path(config.output_dir), world.is_main, ends_at(os.environ))
        with requests.listening():
            gathering = dist.connect(world, config.deepspeed.timeout_minutes * 60)
            folder, steps = RunFolder(Path(config.output_dir)), config.optimization.steps
            if why := requests.needless(folder, steps, gathering):
                say(world, why)
                gathering.close()
                return 0
            watch = watching(config, gathering)
            assemble(config, gathering)
            with heeding_room(Path(config.output_dir)):
                wish = run(config, world, gathering, requests)
            watch.leave(LEAVING_S)
            gathering.close()
            dist.leave()
            # A signal more must not hide the exit code.
            return _come_back(world) if wish is Wish.COME_BACK else 0
    except Exception as error:
        return fail(error, world, gathering, watch)
    finally:
        if watch:
            watch.stop()


def assemble(config: RunConfig, gathering: Gathering) -> None:
    """Start torch.distributed; with health.preflight, try the nodes before it and their network after it."""
    progress.doing("trying the nodes")
    trial = alone(config, gathering) if config.health.preflight else None
    dist.start(gathering)
    if trial:
        figures = together(trial, gathering)
        if gathering.world.is_main:
            tell(figures, trial.warnings)


def watching(config: RunConfig, gathering: Gathering) -> Watch:
    """The watch over the ranks, begun."""
    health = config.health
    stacks = RunFolder(Path(config.output_dir)).stacks
    watch = Watch(gathering, health.silent_seconds, health.hang_minutes * 60, stacks, start_of(os.environ)[0])
    watch.start()
    return watch


def _come_back(world: World) -> int:
    """The exit code that asks to be queued again, from rank 0 alone, which ends when the others have.

    A launcher ends everybody with the first bad code, and what it had to kill hides the code.
    """
    if not world.is_main:
        sys.stdout.flush()
        os._exit(0)
    time.sleep(1.0 if world.size > 1 else 0.0)
    return COME_BACK_CODE


def entry(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `main` as a whole process. Its end waits for no thread or collective that may never end, and no signal that
    is late hides its exit code.
    """
    print_on()
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    entry()
