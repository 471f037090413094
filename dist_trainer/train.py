"""One training process: parse, join, build, run, close. Launchers start one per rank."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

from dist_trainer import dist
from dist_trainer.board import Board
from dist_trainer.build import Data, build_data, build_engine, dtype_of, open_reader
from dist_trainer.checkpoints.due import expect_saves, save_as_asked
from dist_trainer.checkpoints.resume import resume
from dist_trainer.checkpoints.saving import heeding_room
from dist_trainer.config import RunConfig, dump, load, notices
from dist_trainer.dist import Gathering, MissingRanks
from dist_trainer.exporting.export import export
from dist_trainer.exporting.facts import keep_facts
from dist_trainer.feed.data import open_data, run_state
from dist_trainer.feed.feed import loader, micro_steps
from dist_trainer.loop import Events, train
from dist_trainer.metrics import StepMetrics
from dist_trainer.model.engine import Engine
from dist_trainer.model.family import vae_of
from dist_trainer.model.starting import decided_start
from dist_trainer.output import print_on
from dist_trainer.preflight.report import tell
from dist_trainer.preflight.trial import alone, together
from dist_trainer.provenance import check_vae
from dist_trainer.replaced import open_ledger
from dist_trainer.rundir import RunFolder, write_text
from dist_trainer.schedule import lr_at
from dist_trainer.skipped import open_skips
from dist_trainer.stop import COME_BACK_CODE, SIGNALS, Requests, Wish, ends_at
from dist_trainer.watch import progress
from dist_trainer.watch.failure import BEFORE_START_S, fail
from dist_trainer.watch.watch import Watch
from dist_trainer.world import World, discover, presumed
from shards.efficiency import advice, report
from shards.errors import InputError
from shards.stream import stream

EXPORT_S = 12 * 3600.0  # tens of GB on a slow disk; the watch sees an export that stands still
LEAVING_S = 60.0  # for the end of torch.distributed, when all work is done


def run(config: RunConfig, world: World, gathering: Gathering, requests: Requests) -> Wish:
    """Train as the config says, from the newest checkpoint of its output folder where there is one.

    Returns NONE when all steps are done, else why it stopped before.
    """
    folder = RunFolder(Path(config.output_dir))
    dataset = open_data(config)
    before = folder.read_state()
    state = run_state(config, dataset, world, before)
    if before:
        folder.check_same(before, state)
    check_vae(config.model.model_source, vae_of(config.model.model_source), dataset, gathering)
    data = build_data(config, dataset, state)
    agree(data, gathering)
    announce(config, data, world)
    progress.doing("loading the model")
    origin, read = decided_start(config, before, folder, gathering)
    engine = build_engine(config, world, read)
    steps = config.optimization.steps
    with ExitStack() as stack:
        if world.is_main:
            stack.enter_context(folder.hold(folder.follows(os.environ)))
        progress.doing("reading the checkpoint")
        start = resume(engine, folder, gathering)
        expect_saves(requests, folder, world)
        if start >= steps:
            say(world, f"already complete: {start} steps of {steps}; raise optimization.steps to go on")
        if world.is_main:
            folder.done.unlink(missing_ok=True)
            folder.begin(
                before or replace(state, started_from=asdict(origin) if origin else None), dump(config)
            )
            keep_facts(folder, dataset, references=config.conditioning.mode == "reference_video")
        gathering.meet("run folder")
        if not folder.appears():
            raise InputError(
                f"output_dir: {folder.root}: rank {world.rank} does not see it; every host needs the same folder"
            )
        limit = config.data.max_damaged_samples
        ledger = open_ledger(data.plan, dataset, limit, folder, start, gathering)
        skips = open_skips(dataset, config.health.max_skipped_steps, folder, start, gathering)
        board = open_board(config, folder, start, data) if world.is_main else None
        if board:
            stack.callback(board.close)
        reader = stack.enter_context(open_reader(config, dataset))
        load_pack = loader(reader, data.plan, dataset, data.feeding, pin=world.device.type == "cuda")
        items = micro_steps(data.plan, dataset, data.feeding, world, start, steps)
        fed = stack.enter_context(stream(items, load_pack, depth=3, name="feed", threads=2))

        events = open_events(config, engine, folder, board, requests, gathering, start)
        manifest = dataset.manifest
        dtype = dtype_of(config)
        wish = train(engine, fed, data.plan, manifest, ledger, skips, events, requests, dtype)
    progress.doing("exporting")
    if world.is_main and wish is Wish.NONE:
        written = export(folder.root, steps=None)
        write_text(folder.done, f"{steps}\n")
        say(
            world,
            f"done: {steps} steps; weights in {written}; watch: tensorboard --logdir {folder.tensorboard}",
        )
    # The others stay for the export: a launcher may end a job soon after its first process has ended.
    gathering.meet("export", max(EXPORT_S, gathering.timeout_s))
    return wish


def open_events(
    config: RunConfig,
    engine: Engine,
    folder: RunFolder,
    board: Board | None,
    requests: Requests,
    gathering: Gathering,
    start: int,
) -> Events:
    """What happens around the steps of a run that goes on from step `start`."""

    def sync_logs() -> None:
        if board:
            board.sync()

    def save(step: int, wish: Wish) -> Wish:
        return save_as_asked(step, wish, config, engine, folder, requests, gathering, sync_logs)

    return Events(
        learning_rate=lambda step: lr_at(step, config.optimization),
        on_step=board.step if board else _ignore,
        on_save=save,
        on_validate=lambda step: Wish.NONE,
        start=start,
        steps=config.optimization.steps,
    )


def announce(config: RunConfig, data: Data, world: World) -> None:
    """Say at start what will be trained, and which settings are not acted on."""
    for notice in notices(config):
        say(world, f"note: {notice}")
    plan, feeding = data.plan, data.feeding
    say(
        world,
        f"{len(data.dataset.manifest)} samples, {plan.steps_per_epoch:.1f} steps an epoch, ranks: {world.size}, "
        f"at most {feeding.cap} tokens a pack, ZeRO stage {config.deepspeed.stage}, {config.acceleration.precision}",
    )
    if world.is_main:
        batching, ranks = plan.batching, [world.size]
        found = report(
            plan.tokens, plan.ids, batching, ranks, feeding.cap, feeding.quadratic, plan.seed, max_steps=20
        )
        say(
            world,
            f"packing: {found[0].useful:.1%} of the ranks' time is useful, {found[0].idle:.1%} of packs idle",
        )
        if advised := advice(found):
            say(world, f"note: {advised}")


def agree(data: Data, gathering: Gathering) -> None:
    """Raise InputError unless every rank has rank 0's plan: another dataset or code there would train another step."""
    own = f"{data.dataset.manifest.fingerprint} {data.plan.fingerprint} {data.feeding}"
    if gathering.share("plan", own) != own:
        raise InputError(
            f"{data.dataset.root}: rank {gathering.world.rank} sees another dataset or plan than rank 0; "
            "is the same folder mounted, and the same code and config there, on every host?"
        )
    gathering.meet("plan")


def open_board(config: RunConfig, folder: RunFolder, start: int, data: Data) -> Board:
    """The sinks of the run's figures, with the resolved config shown as text."""
    board = Board(
        folder, start, config.tensorboard.enabled, config.tensorboard.interval, config.optimization.steps
    )
    board.text("config", dump(config))
    return board


def say(world: World, message: str) -> None:
    """Print one line, from rank 0 of the world only."""
    if world.is_main:
        print(message, flush=True)


def _ignore(metrics: StepMetrics) -> None:
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; its exit code: 0 when trained or stopped for good, 85 to come back, 2 for bad input, else 1."""
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
    world, gathering, watch = presumed(os.environ), None, None
    try:
        world = discover(os.environ)
        try:
            config = load(parsed.config, parsed.overrides)
        except InputError:
            # Ranks that could read theirs hear of it, instead of waiting for this one.
            with suppress(MissingRanks, InputError):
                gathering = dist.connect(world, BEFORE_START_S)
            raise
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
    job = os.environ.get("SLURM_JOB_ID", "local")
    watch = Watch(gathering, health.silent_seconds, health.hang_minutes * 60, stacks, job)
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
    """Run `main` as a whole process. A failed rank must not wait for threads or collectives that will never end."""
    print_on()
    status = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)
    for number in SIGNALS:
        # All is done: whoever asks to stop now has what he wants.
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


if __name__ == "__main__":
    entry()
