"""A run on one rank, from its config to its last step and its export."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path

from dist_trainer.begun import Begun
from dist_trainer.board.dashboard import check_sinks, open_board
from dist_trainer.build import Data, build_data, build_engine, dtype_of, open_reader
from dist_trainer.checkpoints.due import expect_saves
from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.checkpoints.resume import resume
from dist_trainer.config import RunConfig, dump, notices
from dist_trainer.dist import Gathering
from dist_trainer.events import open_events, open_looks
from dist_trainer.exporting.facts import keep_facts
from dist_trainer.exporting.run_exports import after_export, export_end, later
from dist_trainer.feed.data import check_heldout, open_parts, run_state
from dist_trainer.feed.feed import Fed, loader, micro_steps
from dist_trainer.figures.gauge import Gauge
from dist_trainer.figures.utilization import utilization
from dist_trainer.hub.access import check_hub
from dist_trainer.hub.push import push_end
from dist_trainer.limit import limited
from dist_trainer.loop import train
from dist_trainer.model.ema import Ema
from dist_trainer.model.family import vae_of
from dist_trainer.model.start_weights import decided_start
from dist_trainer.provenance import check_vae
from dist_trainer.replaced import open_ledger
from dist_trainer.rundir import RunFolder, RunState, write_text
from dist_trainer.skipped import open_skips
from dist_trainer.stop import Requests, ToldToStop, Wish
from dist_trainer.validation.cost import heldout_cost
from dist_trainer.validation.prompts import encode_cases
from dist_trainer.watch import progress
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.efficiency import advice, report
from shards.errors import InputError
from shards.stream import stream

_CLOSE_S = 5.0  # for the feed; what it still reads is not needed


def run(config: RunConfig, world: World, gathering: Gathering, requests: Requests) -> Wish:
    """Train as the config says, from the newest checkpoint of its output folder where there is one.

    Returns NONE when all steps are done, else why it stopped before.
    """
    folder = RunFolder(Path(config.output_dir))
    dataset, held_out, state, before = look_here(config, folder, gathering)
    with ExitStack() as stack:
        if world.is_main:
            stack.enter_context(folder.hold(folder.follows(os.environ)))
        source, parts = config.model.model_source, [part for part in (dataset, held_out) if part]
        check_vae(source, vae_of(source), parts, gathering)
        data = build_data(config, dataset, state)
        if held_out:
            check_heldout(config, held_out, data.transformer)
        agree(config, data, held_out, gathering)
        announce(config, data, held_out, world)
        check_hub(config, before is not None, gathering)
        cases = encode_cases(config, data, folder, gathering)
        progress.doing("loading the model")
        origin, read = decided_start(config, before, folder, gathering)
        engine = build_engine(config, world, read)
        steps = config.optimization.steps
        progress.doing("reading the checkpoint")
        ema = None if config.optimization.ema_decay is None else Ema(engine, config.optimization.ema_decay)
        start = resume(engine, ema, folder, gathering)
        if not start:
            engine.reserve()
        expect_saves(requests, folder, world)
        if start >= steps:
            say(world, f"already complete: {start} steps of {steps}; raise optimization.steps to go on")
        kept = before or replace(state, started_from=asdict(origin) if origin else None)
        begin(config, folder, kept, dataset, gathering)
        limit = config.data.max_damaged_samples
        ledger = open_ledger(data.plan, dataset, limit, folder, start, gathering)
        skips = open_skips(dataset, config.health.max_skipped_steps, folder, start, gathering)
        opened = stack.enter_context(ExitStack())
        board = open_board(config, folder, start, data, engine) if world.is_main else None
        if board:
            opened.enter_context(board)
        fed = open_feed(config, data, world, start, opened)
        begun = Begun(config, data, engine, ema, folder, board, requests, gathering, start)
        events = open_events(begun, open_looks(begun, cases, held_out, opened))
        gauge = Gauge(data, utilization(config, data.transformer, engine.shapes(), world))
        wish = train(engine, fed, data, gauge, ledger, skips, events, requests, dtype_of(config))
        opened.close()
        return finish(config, folder, wish, requests, gathering)


def look_here(
    config: RunConfig, folder: RunFolder, gathering: Gathering
) -> tuple[Dataset, Dataset | None, RunState, RunState | None]:
    """The dataset, what is held out of it, what the run fixes now, and what it has fixed where it began before.

    Raises InputError for what can be refused before a hub is asked, which may take its time, or a model is loaded.
    """
    world, (dataset, held_out) = gathering.world, open_parts(config)
    # One rank reads it: to another host's file system it may be too new.
    read = folder.read_state() if world.is_main else None
    shared = json.loads(gathering.share("state of the run", json.dumps(read and asdict(read))))
    before = RunState(**shared) if shared else None
    state = run_state(config, dataset, world, before)
    if before:
        folder.check_same(before, state)
    return dataset, held_out, state, before


def finish(
    config: RunConfig, folder: RunFolder, wish: Wish, requests: Requests, gathering: Gathering
) -> Wish:
    """Export what was trained, and upload it where that is asked for, if all steps are done; all ranks together.

    Returns `wish`, or what was asked in the export and did not wait for it: the run exports when it comes back. One
    that is stopped for good after its last step, in a look at the model, is exported too, but is not done.
    """
    progress.doing("exporting")
    steps, done = config.optimization.steps, wish is Wish.NONE
    if gathering.world.is_main and (
        done or (wish is Wish.STOP and steps in complete_steps(folder.checkpoints))
    ):
        try:
            written = export_end(config, folder, requests)
        except ToldToStop as told:
            wish = told.wish
            by_hand = f"`ltx-train export {folder.root}` makes it"
            left = f"the export after the last step is left unfinished: {told}; {later(wish, by_hand)}"
            say(gathering.world, left)
        else:
            if done:
                write_text(folder.done, f"{steps}\n")
            how = "done" if done else "stopped"
            line = f"{how}: {steps} steps; weights in {written}; watch: tensorboard --logdir {folder.tensorboard}"
            say(gathering.world, line)
            if done and (uploaded := push_end(config, folder, requests)):
                say(gathering.world, uploaded)
    # The others stay for the export: a launcher may end a job soon after its first process has ended.
    return after_export(wish, gathering)


def begin(
    config: RunConfig, folder: RunFolder, state: RunState, dataset: Dataset, gathering: Gathering
) -> None:
    """Write down what the run is. Raises InputError on a rank that does not see the folder."""
    world = gathering.world
    if world.is_main:
        folder.done.unlink(missing_ok=True)
        folder.begin(state, dump(config))
        keep_facts(folder, dataset, references=config.conditioning.mode == "reference_video")
    gathering.meet("run folder")
    if not folder.appears():
        raise InputError(
            f"output_dir: {folder.root}: rank {world.rank} does not see it; every host needs the same folder"
        )


def open_feed(config: RunConfig, data: Data, world: World, start: int, stack: ExitStack) -> Iterator[Fed]:
    """The micro-steps of this rank from step `start` to the last, loaded ahead until `stack` ends, which waits a few
    seconds for loads under way: a file system may never answer, and the cause of a failure is still to be told.
    """
    feed = ExitStack()
    stack.callback(_close, feed)
    reader = feed.enter_context(open_reader(config, data.dataset))
    load_pack = loader(reader, data.plan, data.dataset, data.feeding, pin=world.device.type == "cuda")
    items = micro_steps(data.plan, data.dataset, data.feeding, world, start, config.optimization.steps)
    return feed.enter_context(stream(items, load_pack, depth=3, name="feed", threads=2))


def _close(feed: ExitStack) -> None:
    with suppress(TimeoutError):
        limited(feed.close, _CLOSE_S)


def announce(config: RunConfig, data: Data, held_out: Dataset | None, world: World) -> None:
    """Say at start what will be trained, what is held out, and which settings are not acted on."""
    if world.is_main:
        check_sinks(config)
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
        if held_out:
            patch, quadratic = feeding.recipe.patch, feeding.quadratic
            cost = heldout_cost(config, held_out, plan, patch, quadratic, feeding.cap, found[0])
            for line in (str(cost), *(f"note: {note}" for note in cost.notes)):
                say(world, line)


def agree(config: RunConfig, data: Data, held_out: Dataset | None, gathering: Gathering) -> None:
    """Raise InputError unless every rank has rank 0's plan: another dataset or code there would train another step."""
    alike = (config.validation, config.checkpoints, config.optimization)
    held = held_out.manifest.fingerprint if held_out else ""
    # What decides how often ranks meet is among it.
    own = f"{data.dataset.manifest.fingerprint} {held} {data.plan.fingerprint} {data.feeding} {alike}"
    if gathering.share("plan", own) != own:
        raise InputError(
            f"{data.dataset.root}: rank {gathering.world.rank} sees another dataset or plan than rank 0; "
            "is the same folder mounted, and the same code and config there, on every host?"
        )
    gathering.meet("plan")


def say(world: World, message: str) -> None:
    """Print one line, from rank 0 of the world only."""
    if world.is_main:
        print(message, flush=True)
