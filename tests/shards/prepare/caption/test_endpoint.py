from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from shards.errors import InputError
from shards.prepare.caption.captioner import MANY_PICTURES, CaptionError
from shards.prepare.caption.endpoint import EndpointCaptioner
from shards.prepare.caption.sampling import Frames
from tests.support.chat import ChatServer, Fault, chat_server, described
from tests.support.clips import PALETTE, ramp
from tests.support.runs import free_port


def clip(colour: int, frames: int = 3) -> Frames:
    return Frames(ramp(frames, 64, 48, PALETTE[colour]), 3.0)


def opened(server: ChatServer, **settings: object) -> EndpointCaptioner:
    given = {"model": "tiny", "retries": 3, "timeout_s": 10.0, "environment": {}, **settings}
    return EndpointCaptioner(server.url, **given)  # type: ignore[arg-type]


def test_frames_arrive_as_pictures_with_the_instruction() -> None:
    with chat_server() as server:
        captioner = opened(server, instruction="What?", max_new_tokens=77)
        assert (captioner.name, captioner.sees) == ("tiny", "pictures")
        assert captioner.caption(clip(2, 5)) == described(5, 2)
        assert captioner.caption(clip(1, 1)) == described(1, 1)
    many, one = server.chats
    assert (many["max_tokens"], many["temperature"], many["model"]) == (77, 0.0, "tiny")
    assert (many["text"], one["text"]) == (f"{MANY_PICTURES} What?", "What?")
    for sent, arrived in zip(clip(2, 5).pixels, many["frames"], strict=True):
        assert np.abs(sent.astype(int) - arrived).mean() < 4, "in order, but for what JPEG loses"


def test_a_video_arrives_as_a_video_and_a_picture_as_a_picture() -> None:
    with chat_server() as server:
        captioner = opened(server, video=True)
        assert captioner.sees == "video"
        assert captioner.caption(clip(3, 6)) == described(6, 3)
        assert captioner.caption(clip(3, 1)) == described(1, 3)
    kinds = [[part["type"] for part in chat["messages"][0]["content"]] for chat in server.chats]
    assert kinds == [["video_url", "text"], ["image_url", "text"]]


def test_requests_run_at_once() -> None:
    with chat_server(together=4) as server:
        captioner = opened(server, at_once=4)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(captioner.caption, [clip(colour) for colour in range(6)]))
    assert answers == [described(3, colour) for colour in range(6)]
    assert server.most_at_once == 4


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("status", code=429), Fault("status", code=503), Fault("status", code=500)],
        [Fault("drop", times=2)],
        [Fault("hang", seconds=3.0)],
    ],
    ids=["429, 503 and 500", "lost connections", "no answer in time"],
)
def test_what_may_pass_is_tried_again(faults: list[Fault]) -> None:
    with chat_server() as server:
        captioner = opened(server, timeout_s=1.0)
        server.faults = faults
        assert captioner.caption(clip(0)) == described(3, 0)


@pytest.mark.parametrize(
    ("fault", "reason", "gone"),
    [
        (Fault("status", times=9, code=503), "Error code: 503 - fault 503", True),
        (Fault("status", times=9, code=429), "Error code: 429 - fault 429", True),
        (Fault("status", code=400), "Error code: 400 - fault 400", False),
        (Fault("drop", times=9), "Connection error.", True),
        (
            Fault("page"),
            "its answer is no chat completion: <html> <h1>Log in</h1></html>. Is --endpoint the URL of the server?",
            True,
        ),
        (Fault("other"), "its answer is no chat completion: ", True),
    ],
)
def test_what_does_not_pass_is_an_error_with_its_reason(fault: Fault, reason: str, gone: bool) -> None:
    with chat_server() as server:
        captioner = opened(server, retries=1)
        server.faults = [fault]
        with pytest.raises(CaptionError) as error:
            captioner.caption(clip(0))
        assert error.value.reason.startswith(reason)
        assert error.value.gone == gone
        server.faults = []
        assert captioner.caption(clip(0)) == described(3, 0)


def test_the_only_model_of_a_server_is_taken() -> None:
    with chat_server(models=("only-one",)) as server:
        assert opened(server, model=None).name == "only-one"


def test_a_url_without_a_path_gets_the_usual_one() -> None:
    with chat_server() as server:
        assert EndpointCaptioner(server.url.removesuffix("/v1"), "tiny").caption(clip(0)) == described(3, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model": "other"},
            "--endpoint {url}: has no model 'other'. It has 'tiny', 'small'.",
        ),
        (
            {"model": None},
            "--endpoint {url}: serves several models; give one with --model. It has 'tiny', 'small'.",
        ),
        ({"at_once": 0}, "--concurrency 0 must be at least 1"),
        ({"retries": -1}, "--retries -1 must be at least 0"),
        ({"timeout_s": 0.0}, "--request-timeout 0: give seconds, above 0"),
    ],
)
def test_what_cannot_work_is_said_at_once(settings: dict, message: str) -> None:
    with chat_server(models=("tiny", "small")) as server:
        with pytest.raises(InputError) as error:
            opened(server, **settings)
        assert str(error.value) == message.format(url=server.url)
        assert not server.chats


def test_a_key_comes_from_the_environment() -> None:
    with chat_server(key="secret") as server:
        captioner = opened(server, environment={"OPENAI_API_KEY": "secret"})
        assert captioner.caption(clip(0)) == described(3, 0)
        with pytest.raises(InputError) as error:
            opened(server)
    assert str(error.value) == (
        f"--endpoint {server.url}: refuses the key: Error code: 401 - that is not the key. "
        "Set OPENAI_API_KEY."
    )


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", ""])
def test_a_url_is_one(url: str) -> None:
    with pytest.raises(InputError) as error:
        EndpointCaptioner(url, "tiny")
    assert str(error.value) == f"--endpoint {url}: give the URL of a server, as in http://host:8000/v1."


def test_where_nobody_listens_is_said_at_once() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(InputError) as error:
        EndpointCaptioner(url, "tiny", retries=0)
    assert str(error.value) == (
        f"--endpoint {url}: no answer to a request for its models: Connection error. "
        "([Errno 111] Connection refused). Give the URL of a running server, as in http://host:8000/v1."
    )


def test_a_server_without_a_list_of_models_is_taken_at_its_word() -> None:
    with chat_server() as server:
        url = server.url.removesuffix("/v1") + "/elsewhere"
        assert EndpointCaptioner(url, "tiny").name == "tiny"
        with pytest.raises(InputError, match=r"elsewhere: does not list its models: .* Give --model\.$"):
            EndpointCaptioner(url, None)
