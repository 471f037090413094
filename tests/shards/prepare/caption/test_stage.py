from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from shards.cli import main
from shards.errors import InputError
from shards.prepare.caption import asking, rounds
from shards.prepare.caption.captioner import CaptionError, LocalCaptioner
from shards.prepare.caption.endpoint import EndpointCaptioner
from shards.prepare.caption.listing import list_media
from shards.prepare.caption.options import CaptionOptions
from shards.prepare.caption.sampling import Frames, sample_frames
from shards.prepare.caption.stage import CaptionReport, caption
from shards.prepare.failures import Failure
from shards.prepare.tables.rows import read_rows, write_rows
from shards.prepare.tables.table import check_media, read_table
from shards.prepare.work.workers import ALONE, Worker
from tests.support.chat import ChatServer, Fault, chat_server
from tests.support.clips import write_ramp
from tests.support.faulty import faulty_decoder
from tests.support.forks import Fork
from tests.support.jobs import until
from tests.support.runs import ROOT, environment
from tests.support.vlm import tiny_vlm

LOCAL = CaptionOptions(max_new_tokens=6)
SERVED = CaptionOptions(at_server=True)
KILLED = "workers died while captioning it: see whether memory is short"
UNREADABLE = "Invalid data found when processing input"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as made:
        yield made


def by_server(
    server: ChatServer,
    source: Path,
    out: Path | None = None,
    *,
    overwrite: bool = False,
    options: CaptionOptions = SERVED,
    at_once: int = 4,
    patience: int | None = None,
    worker: Worker = ALONE,
    **listing: object,
) -> CaptionReport:
    def opened() -> EndpointCaptioner:
        made = EndpointCaptioner(
            server.url, "tiny", at_once=at_once, retries=1, timeout_s=5.0, environment={}
        )
        made.most_gone = patience or made.most_gone
        return made

    listed = partial(list_media, source, out, **listing)  # type: ignore[arg-type]
    return caption(listed, options, opened, overwrite=overwrite, worker=worker)


def by_model(source: Path, out: Path) -> CaptionReport:
    opened = partial(
        LocalCaptioner, str(tiny_vlm()), device=torch.device("cpu"), max_new_tokens=LOCAL.max_new_tokens
    )
    return caption(partial(list_media, source, out), LOCAL, opened)


def films(folder: Path, *colours: int) -> Path:
    for number, colour in enumerate(colours):
        write_ramp(folder / f"clip{number}.mp4", frames=8, width=32, height=32, colour=colour)
    return folder


def answer(colour: int, frames: int = 1) -> str:
    """The server's, cleaned."""
    return f"{frames} frames of colour {colour}."


def pictures(folder: Path, count: int) -> Path:
    for number in range(count):
        write_ramp(folder / f"{number:03d}.png", frames=1, width=28 + number, height=28, colour=number % 7)
    return folder


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_a_folder_becomes_a_table_that_encode_takes(tmp_path: Path, server: ChatServer, suffix: str) -> None:
    media = films(tmp_path / "raw", 2, 0, 5)
    pictures(media, 1)
    (media / "broken.mp4").write_bytes(b"no film")
    out = tmp_path / "tables" / f"t{suffix}"
    report = by_server(server, media, out)
    assert read_rows(out) == [
        {"caption": answer(colour), "media_path": f"../raw/{name}"}
        for name, colour in (("000.png", 0), ("clip0.mp4", 2), ("clip1.mp4", 0), ("clip2.mp4", 5))
    ]
    rows = read_table(out)
    check_media(out, rows)
    assert [row.caption for row in rows] == [answer(colour) for colour in (0, 2, 0, 5)]
    assert (report.captioned, report.kept, report.model, report.sees) == (4, 0, "tiny", "pictures")
    assert report.failures == (Failure("../raw/broken.mp4", UNREADABLE),)
    assert read_rows(out.with_name("t.failures.jsonl")) == [
        {"source": "../raw/broken.mp4", "reason": UNREADABLE}
    ]


def test_captions_and_columns_that_are_there_stay(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1, 2, 3)
    rows = [
        {"media_path": "clip0.mp4", "caption": "In the video, my words ", "license": 7},
        {"media_path": "clip1.mp4", "caption": "", "license": 8},
        {"media_path": "clip1.mp4", "license": 9, "reference_path": ["e/1.mp4"]},
        {"media_path": "gone.mp4", "caption": None, "license": 10},
    ]
    table = tmp_path / "t.json"
    write_rows(table, rows)
    report = by_server(server, table)
    filled = answer(2)
    assert read_rows(table) == [
        rows[0],
        {**rows[1], "caption": filled},
        {"caption": filled, **rows[2], "reference_path": "e/1.mp4"},
        rows[3],
    ]
    assert [chat["colour"] for chat in server.chats] == [2], "a clip that is there twice is asked for once"
    assert (report.captioned, report.kept) == (2, 1)
    assert report.failures == (Failure("gone.mp4", "No such file or directory"),)
    report = by_server(server, table, overwrite=True)
    assert [row["caption"] for row in read_rows(table)] == [answer(1), filled, filled, None]
    assert (report.captioned, report.kept) == (3, 0)


def test_the_same_call_again_has_nothing_to_do(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1, 2)
    by_server(server, tmp_path)
    table = tmp_path / "dataset.jsonl"
    before, asked = table.read_bytes(), len(server.chats)
    again = by_server(server, tmp_path)
    assert (again.captioned, again.kept, again.model) == (0, 2, None)
    table.unlink()
    again = by_server(server, tmp_path)
    assert table.read_bytes() == before, "a lost table is written again from what is known"
    assert (again.captioned, again.kept, again.model) == (2, 0, None)
    assert len(server.chats) == asked
    write_ramp(tmp_path / "clip9.mp4", colour=4, frames=8)
    assert by_server(server, tmp_path).captioned == 1
    assert [row["media_path"] for row in read_rows(table)] == ["clip0.mp4", "clip1.mp4", "clip9.mp4"]


def test_to_overwrite_is_to_caption_all_anew_each_time(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1, 2, 3)
    by_server(server, tmp_path)
    for times in (2, 3):
        write_rows(tmp_path / "dataset.jsonl", [{"media_path": "clip0.mp4", "caption": "bad"}])
        report = by_server(server, tmp_path, overwrite=True)
        assert (report.captioned, len(server.chats)) == (3, 3 * times)
        assert [row["caption"] for row in read_rows(tmp_path / "dataset.jsonl")] == list(
            map(answer, (1, 2, 3))
        )


def test_a_pass_that_overwrites_goes_on_where_it_ended(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, *range(5))
    by_server(server, tmp_path)
    server.faults = [Fault("drop", times=1000, colour=3)]
    server.chats.clear()
    with pytest.raises(InputError, match="gone"):
        by_server(server, tmp_path, overwrite=True, at_once=1, patience=1)
    server.faults = []
    report = by_server(server, tmp_path, overwrite=True)
    assert (report.captioned, report.kept) == (5, 0), "what the killed pass did is not in the table yet"
    assert sorted(chat["colour"] for chat in server.chats) == [0, 1, 2, 3, 4]


def test_to_overwrite_includes_what_an_unfinished_pass_was_at(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, *range(4))
    server.faults = [Fault("drop", times=1000, colour=3)]
    with pytest.raises(InputError, match="gone"):
        by_server(server, tmp_path, at_once=1, patience=1)
    server.faults = []
    report = by_server(server, tmp_path, overwrite=True)
    assert (report.captioned, report.failures, len(server.chats)) == (4, (), 8)


def test_a_worker_that_comes_to_an_overwriting_pass_takes_part_in_it(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins none of its own: all would be captioned again for each worker that is late."""
    monkeypatch.setattr(rounds, "_TO_BEGIN_S", 0.3)
    films(tmp_path, 1, 2)
    by_server(server, tmp_path, overwrite=True)
    late = by_server(server, tmp_path, overwrite=True, worker=Worker(1, 2))
    assert (late.model, len(server.chats)) == (None, 2)
    monkeypatch.setattr(rounds, "_TO_BEGIN_S", 60.0)
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(by_server, server, tmp_path, overwrite=True, worker=Worker(1, 2))
        assert by_server(server, tmp_path, overwrite=True, worker=Worker(0, 2)).captioned == 2
        assert early.result().model == "tiny"
    assert len(server.chats) == 4


def test_a_clip_that_changed_is_captioned_again(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1, 2)
    by_server(server, tmp_path)
    write_ramp(tmp_path / "clip0.mp4", frames=12, width=48, height=32, colour=5)
    (tmp_path / "dataset.jsonl").unlink()
    by_server(server, tmp_path)
    assert [row["caption"] for row in read_rows(tmp_path / "dataset.jsonl")] == [answer(5, 2), answer(2)]
    assert len(server.chats) == 3


def test_other_options_make_other_captions(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1)
    by_server(server, tmp_path)
    by_server(server, tmp_path, options=CaptionOptions(at_server=True, fps=24.0, clean=False), overwrite=True)
    (row,) = read_rows(tmp_path / "dataset.jsonl")
    assert row["caption"] == "This video shows 8 frames of colour 1."


def test_clips_are_asked_for_at_once(tmp_path: Path) -> None:
    with chat_server(together=3) as server:
        by_server(server, films(tmp_path, 0, 1, 2, 3, 4), at_once=3)
    assert server.most_at_once == 3
    assert [row["caption"] for row in read_rows(tmp_path / "dataset.jsonl")] == list(map(answer, range(5)))


def test_a_clip_that_fails_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path, server: ChatServer
) -> None:
    films(tmp_path, 0, 1, 2, 3)
    server.faults = [Fault("status", times=9, code=400, colour=1), Fault("empty", times=1, colour=2)]
    report = by_server(server, tmp_path)
    assert report.failures == (
        Failure("clip1.mp4", "Error code: 400 - fault 400"),
        Failure("clip2.mp4", "the model's answer is empty"),
    )
    assert [row["media_path"] for row in read_rows(tmp_path / "dataset.jsonl")] == ["clip0.mp4", "clip3.mp4"]
    assert (tmp_path / "dataset.failures.jsonl").exists()
    asked = len(server.chats)
    report = by_server(server, tmp_path)
    assert (report.captioned, report.kept) == (1, 2)
    server.faults = []
    by_server(server, tmp_path)
    assert len(server.chats) == asked + 2, "and the others are not asked for again"
    assert not (tmp_path / "dataset.failures.jsonl").exists()
    rows = read_rows(tmp_path / "dataset.jsonl")
    assert sorted(row["caption"] for row in rows) == list(map(answer, range(4)))


def test_a_server_that_refuses_everything_is_given_up_early(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, *[0] * 12)
    server.faults = [Fault("status", times=100, code=400)]
    with pytest.raises(InputError) as error:
        by_server(server, tmp_path, at_once=1)
    assert str(error.value) == (
        f"--endpoint {server.url}, model tiny: no caption for any of the first 4 clips, the last, clip11.mp4, because: "
        "Error code: 400 - fault 400. What is done is kept: run the same command again, and it begins with others."
    )
    assert server.faults[0].times == 96, "and not asked about the rest"
    assert not (tmp_path / "dataset.jsonl").exists()
    server.faults = []
    assert by_server(server, tmp_path).captioned == 12, "nothing is recorded against clips"


def test_a_server_that_goes_away_costs_no_clip(tmp_path: Path, server: ChatServer) -> None:
    pictures(tmp_path, 14)
    server.faults = [Fault("none", times=3), Fault("drop", times=1000)]
    with pytest.raises(
        InputError, match=r"gone, 8 clip\(s\) in a row failed, the last, 01\d.png, because: Connection error"
    ):
        by_server(server, tmp_path, at_once=4)
    server.faults = []
    assert by_server(server, tmp_path).captioned == 14
    assert len(server.chats) == 14, "and what was answered was kept"


def test_bad_clips_at_the_start_keep_nobody_from_the_rest(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, *[0] * 5, *[1] * 5, 0)
    server.faults = [Fault("status", times=1000, code=400, colour=0)]
    with pytest.raises(InputError, match="no caption for any of the first 4 clips"):
        by_server(server, tmp_path, at_once=1)
    report = by_server(server, tmp_path, at_once=1)
    assert (report.captioned, len(report.failures)) == (5, 6)


def test_a_model_that_answers_no_more_is_given_up(tmp_path: Path, server: ChatServer) -> None:
    pictures(tmp_path, 40)
    server.faults = [Fault("none", times=2), Fault("status", times=1000, code=400)]
    with pytest.raises(
        InputError, match=r"no caption for 16 clips in a row, the last, 017\.png, because: Error"
    ):
        by_server(server, tmp_path, at_once=1)
    server.faults = []
    report = by_server(server, tmp_path)
    assert (report.captioned, report.failures, len(server.chats)) == (40, (), 40)


class LosingGpu:
    """A captioner whose GPU fails at its third clip, or at a bright one, and then at all."""

    name, label, sees, at_once, most_gone = "m", "--model m", "pictures", 1, 1

    def __init__(self, most: int = 1000) -> None:
        self.left = most

    def caption(self, clip: Frames) -> str:
        """A caption, or the error."""
        self.left = 0 if clip.pixels.mean() > 250 else self.left - 1
        if self.left <= 0:
            raise CaptionError("AcceleratorError: CUDA error: an illegal memory access", gone=True)
        return "a caption"


def test_a_lost_gpu_ends_its_worker_and_costs_no_clip(tmp_path: Path) -> None:
    pictures(tmp_path, 5)
    listing = partial(list_media, tmp_path)
    # The second worker loses its GPU at once: at 003, since what ended the first one comes last.
    for most, name in ((3, "002.png"), (1, "003.png")):
        with pytest.raises(InputError) as error:
            caption(listing, LOCAL, partial(LosingGpu, most))
        assert str(error.value) == (
            f"--model m: gone, 1 clip(s) in a row failed, the last, {name}, because: AcceleratorError: CUDA error: an "
            "illegal memory access. What is done is kept: run the same command again."
        )
    report = caption(listing, LOCAL, LosingGpu)
    assert (report.captioned, report.failures) == (5, ())


def test_a_clip_that_breaks_the_gpu_each_time_is_left_out(tmp_path: Path) -> None:
    pictures(tmp_path, 20)
    Image.new("RGB", (28, 28), "white").save(tmp_path / "004.png")
    listing = partial(list_media, tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"the last, 004\.png, because: "):
            caption(listing, LOCAL, LosingGpu)
    report = caption(listing, LOCAL, LosingGpu)
    reason = "AcceleratorError: CUDA error: an illegal memory access"
    assert (report.captioned, report.failures) == (19, (Failure("004.png", reason),))


class Killed(LosingGpu):
    """A captioner whose process is killed at a bright clip, as it is where memory ends."""

    def caption(self, clip: Frames) -> str:
        """A caption, or nothing any more."""
        if clip.pixels.mean() > 250:
            os.kill(os.getpid(), signal.SIGKILL)
        return "a caption"


def test_a_clip_at_which_workers_are_killed_is_left_out_and_the_others_get_captions(tmp_path: Path) -> None:
    media = pictures(tmp_path / "raw", 6)
    Image.new("RGB", (28, 28), "white").save(media / "002.png")
    listing = partial(list_media, media)

    def act() -> None:
        report = caption(listing, LOCAL, Killed)
        assert (report.captioned, report.failures) == (5, (Failure("002.png", KILLED),))

    codes = [Fork(act, tmp_path / "errors").wait(60.0) for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0], (tmp_path / "errors").read_text()


def test_a_file_that_nobody_thought_of_costs_its_own_caption(
    tmp_path: Path, server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    films(tmp_path, 1, 2, 3)

    def strange(path: Path, *arguments: object) -> Frames:
        if path.name == "clip1.mp4":
            raise KeyError("strange")
        return sample_frames(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "sample_frames", strange)
    report = by_server(server, tmp_path)
    assert (report.captioned, report.failures) == (2, (Failure("clip1.mp4", "KeyError: 'strange'"),))


def test_half_a_character_of_an_answer_and_of_a_name(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1)
    write_ramp(tmp_path / os.fsdecode(b"\xe9.mp4"), frames=2)
    server.faults = [Fault("cut")]
    report = by_server(server, tmp_path)
    assert read_rows(tmp_path / "dataset.jsonl") == [{"caption": answer(1), "media_path": "clip0.mp4"}]
    assert report.failures == (Failure(r"\xe9.mp4", "its name is not UTF-8 text: rename it"),)


def test_where_no_clip_gets_a_caption_that_is_an_error(tmp_path: Path, server: ChatServer) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"no film")
    with pytest.raises(InputError) as error:
        by_server(server, tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'dataset.jsonl'}: none of 2 clips got a caption; the first, a.mp4: {UNREADABLE}"
    )
    assert not (tmp_path / "dataset.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CaptionOptions(fps=0.0), "--fps 0: give frames per second, above 0"),
        (CaptionOptions(instruction=" "), "--instruction is empty: say what the model shall write"),
        (CaptionOptions(max_frames=0), "--max-frames 0 must be at least 1"),
        (CaptionOptions(frame_pixels=100), "--frame-pixels 100 must be at least 784"),
        (CaptionOptions(max_new_tokens=0), "--max-new-tokens 0 must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, server: ChatServer, options: CaptionOptions, message: str
) -> None:
    with pytest.raises(InputError) as error:
        by_server(server, tmp_path, options=options)
    assert str(error.value) == message


def outcome(out: Path) -> dict[str, bytes]:
    """What a pass leaves to a user."""
    return {path.name: path.read_bytes() for path in (out, out.with_name(f"{out.stem}.failures.jsonl"))}


def die_before_write(number: int) -> None:
    """Let this process be killed in the place of its write of that number: nothing it does is atomic but these."""
    left = [number]

    def counting(real):
        def write(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return write

    os.replace, os.link, os.unlink = map(counting, (os.replace, os.link, os.unlink))


def test_a_kill_at_any_write_leaves_a_pass_that_can_go_on(tmp_path: Path, server: ChatServer) -> None:
    media = films(tmp_path / "raw", 3, 1)
    (media / "broken.mp4").write_bytes(b"no film")
    by_server(server, media, tmp_path / "whole.csv")
    expected = list(outcome(tmp_path / "whole.csv").values())
    deaths = 0
    for number in range(1, 100):
        # All in one folder: each attempt goes on where the one before was killed, a few writes later.
        act = partial(_die_or_finish, number, server, media, tmp_path / "t.csv")
        if Fork(act, tmp_path / "errors").wait() == 0:
            break
        deaths += 1
    assert deaths > 5
    assert list(outcome(tmp_path / "t.csv").values()) == expected


def _die_or_finish(number: int, server: ChatServer, media: Path, out: Path) -> None:
    die_before_write(number)
    by_server(server, media, out)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shards", "caption", *map(str, arguments)]


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env={**environment(), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_worker_killed_at_its_work_is_made_good_by_two_others(tmp_path: Path) -> None:
    media = pictures(tmp_path / "raw", 40)
    (media / "020.png").write_bytes(b"no picture")
    by_model(media, tmp_path / "alone.json")
    out = tmp_path / "t.json"
    arguments = [media, "--out", out, "--model", tiny_vlm(), "--max-new-tokens", LOCAL.max_new_tokens]
    # A process of its own: a fork of this one would have none of the threads that the model's library began.
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), stdout=log, stderr=log) as first,
    ):
        try:
            until(lambda: any(tmp_path.glob(".t.json.caption/*/000/units/*.json")), 60.0)
        finally:
            first.kill()
    assert not out.exists()
    done = run(*arguments, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert list(outcome(out).values()) == list(outcome(tmp_path / "alone.json").values())
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    shown = [line for line in lines if line and line[0] in ("39", "raw/020.png")]
    assert shown[0][:3] + shown[0][-1:] == ["39", "0", "1", "pictures"]
    assert shown[1][0] == "raw/020.png"


def test_a_clip_that_kills_its_process_is_a_failure_and_the_others_get_captions(
    tmp_path: Path, server: ChatServer
) -> None:
    media = films(tmp_path / "raw", 1, 2)
    write_ramp(media / "clip0b_deadly.mp4", frames=8)
    table = tmp_path / "t.jsonl"
    arguments = [media, "--out", table, "--endpoint", server.url]
    done = [run(*arguments, **faulty_decoder(tmp_path / "faults")) for _ in range(3)]
    assert [each.returncode for each in done] == [-signal.SIGSEGV, 0, 0], done[1].stderr
    assert [row["caption"] for row in read_rows(table)] == [answer(1), answer(2)]
    assert read_rows(tmp_path / "t.failures.jsonl") == [
        {"source": "raw/clip0b_deadly.mp4", "reason": "the process died while reading it: SIGSEGV"}
    ]


def test_two_ranks_of_a_launcher_do_as_one_worker(tmp_path: Path) -> None:
    media = pictures(tmp_path / "raw", 40)
    (media / "020.png").write_bytes(b"no picture")
    by_model(media, tmp_path / "alone.json")
    out = tmp_path / "t.json"
    arguments = [media, "--out", out, "--model", tiny_vlm(), "--max-new-tokens", LOCAL.max_new_tokens]
    ranks = [
        subprocess.Popen(
            command(*arguments),
            cwd=ROOT,
            env={**environment(), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed, errors = zip(*(rank.communicate(timeout=120) for rank in ranks), strict=True)
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert list(outcome(out).values()) == list(outcome(tmp_path / "alone.json").values())
    assert [bool(text) for text in printed] == [True, False], "the first one reports"


def test_the_command_asks_a_server(tmp_path: Path, server: ChatServer) -> None:
    films(tmp_path, 1, 2)
    done = run(tmp_path, "--endpoint", server.url, "--endpoint-video", "--fps", 24, "--concurrency", 2)
    assert done.returncode == 0, done.stderr
    assert [row["caption"] for row in read_rows(tmp_path / "dataset.jsonl")] == [answer(1, 8), answer(2, 8)]
    assert {chat["messages"][0]["content"][0]["type"] for chat in server.chats} == {"video_url"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--endpoint-video"], "--endpoint-video needs --endpoint: the URL of the server"),
        (["--concurrency", 0], "--concurrency 0 must be at least 1"),
        (
            ["--endpoint", "host:80"],
            "--endpoint host:80: give the URL of a server, as in http://host:8000/v1.",
        ),
        (
            ["--endpoint", "http://h", "--use-8bit"],
            "--use-8bit is for a model that is loaded here, not for one of --endpoint",
        ),
        (
            ["--endpoint", "http://h", "--device", "cpu"],
            "--device cpu is for a model that is loaded here, not for one of --endpoint",
        ),
        (
            ["--model", "/nowhere"],
            "--model /nowhere: no such folder. Give the folder of a model, or a hub id.",
        ),
        (["--fps", 0], "--fps 0: give frames per second, above 0"),
    ],
)
def test_the_command_checks_its_flags_where_nothing_is_left_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[object],
    message: str,
) -> None:
    films(tmp_path, 1)
    write_rows(tmp_path / "t.jsonl", [{"media_path": "clip0.mp4", "caption": "mine"}])
    monkeypatch.setattr(sys, "argv", ["ltx-shards", "caption", str(tmp_path / "t.jsonl"), *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"
