"""Captions from a server that speaks the OpenAI protocol, such as vLLM."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shards.errors import InputError
from shards.prepare.caption.captioner import DEFAULT_INSTRUCTION, MANY_PICTURES, CaptionError
from shards.prepare.caption.sampling import Frames
from shards.prepare.media.video import write_clip

_JPEG_QUALITY = 90
_LEAST_GONE = 8
_CHECK_TIMEOUT_S, _CHECK_RETRIES = 30.0, 2
_LISTED = 5
_LONGEST_REASON = 300


class EndpointCaptioner:
    """The model `model` of the server at `url`; `at_once` requests may run at a time, each from its own thread.

    Frames go as JPEG pictures, or with `video` as one small MP4, for servers that take the content part
    `video_url`. Requests that fail for a reason that may pass (429, 5xx, timeouts, lost connections) are
    repeated `retries` times, after longer and longer pauses or the server's own Retry-After.

    On opening asks the server for its models. Raises InputError when it cannot be reached, refuses the key
    (OPENAI_API_KEY of `environment`), or does not have the model. Without `model` takes the only one it has.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        *,
        instruction: str = DEFAULT_INSTRUCTION,
        max_new_tokens: int = 200,
        video: bool = False,
        at_once: int = 16,
        retries: int = 5,
        timeout_s: float = 300.0,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        import openai

        check_requests(at_once, retries, timeout_s)
        self.at_once = at_once
        self.most_gone = max(_LEAST_GONE, 2 * at_once)
        self.sees = "video" if video else "pictures"
        self._url = base_url(url)
        self._instruction = instruction
        self._max_new_tokens = max_new_tokens
        self._client = openai.OpenAI(
            base_url=self._url,
            api_key=environment.get("OPENAI_API_KEY") or "none",
            max_retries=retries,
            timeout=timeout_s,
        )
        self.name = self._choose(model)
        self.label = f"--endpoint {self._url}, model {self.name}"

    def caption(self, clip: Frames) -> str:
        """The model's answer on a clip; may be called from several threads."""
        import openai

        try:
            answer = self._client.chat.completions.create(
                model=self.name,
                messages=[{"role": "user", "content": self._content(clip)}],  # type: ignore[misc,list-item]
                max_tokens=self._max_new_tokens,
                temperature=0.0,
            )
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
            raise CaptionError(_reason(error), gone=True) from error
        except openai.OpenAIError as error:
            raise CaptionError(_reason(error)) from error
        except ValueError as error:
            raise CaptionError(f"its answer is no JSON: {_reason(error)}", gone=True) from error
        try:
            return answer.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            # Of something between here and the server: openai hands over whatever came with status 200.
            raise CaptionError(
                f"its answer is no chat completion: {_shortened(str(answer))}. Is --endpoint the URL of the server?",
                gone=True,
            ) from None

    def _content(self, clip: Frames) -> list[dict[str, Any]]:
        text = {"type": "text", "text": self._instruction}
        if self.sees == "video" and len(clip.pixels) > 1:
            return [{"type": "video_url", "video_url": {"url": _mp4(clip)}}, text]
        pictures = [{"type": "image_url", "image_url": {"url": _jpeg(frame)}} for frame in clip.pixels]
        if len(pictures) > 1:
            text["text"] = f"{MANY_PICTURES} {self._instruction}"
        return [*pictures, text]

    def _choose(self, model: str | None) -> str:
        """The model to ask for, once the server has said that it has it, or that it does not say."""
        import openai

        client = self._client.with_options(
            max_retries=min(_CHECK_RETRIES, self._client.max_retries), timeout=_CHECK_TIMEOUT_S
        )
        try:
            served = [entry.id for entry in client.models.list().data]
        except (openai.NotFoundError, openai.BadRequestError) as error:
            # Not every server has the list; one that has nothing at all here shows at the first requests.
            if model is None:
                raise InputError(
                    f"--endpoint {self._url}: does not list its models: {_reason(error)}. Give --model."
                ) from error
            return model
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise InputError(
                f"--endpoint {self._url}: refuses the key: {_reason(error)}. Set OPENAI_API_KEY."
            ) from error
        except (openai.OpenAIError, ValueError, AttributeError, TypeError) as error:
            raise InputError(
                f"--endpoint {self._url}: no answer to a request for its models: {_reason(error)}. "
                "Give the URL of a running server, as in http://host:8000/v1."
            ) from error
        if model is None and len(served) == 1:
            return served[0]
        if model not in served:
            asked = (
                "serves several models; give one with --model" if model is None else f"has no model {model!r}"
            )
            raise InputError(f"--endpoint {self._url}: {asked}. It has {_named(served)}.")
        return model


def check_requests(at_once: int, retries: int, timeout_s: float) -> None:
    """Raise InputError naming the first setting of requests that makes no sense."""
    for name, value, least in (("concurrency", at_once, 1), ("retries", retries, 0)):
        if value < least:
            raise InputError(f"--{name} {value} must be at least {least}")
    if not timeout_s > 0:
        raise InputError(f"--request-timeout {timeout_s:g}: give seconds, above 0")


def base_url(url: str) -> str:
    """The URL under which the protocol's paths lie; `/v1` where none is given. Raises InputError for none."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"--endpoint {url}: give the URL of a server, as in http://host:8000/v1.")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def _jpeg(frame: Any) -> str:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(frame).save(data, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _mp4(clip: Frames) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_clip(path, clip.pixels, clip.fps)
        return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _named(served: Sequence[str]) -> str:
    return ", ".join(map(repr, served[:_LISTED])) + (", ..." if len(served) > _LISTED else "") or "none"


def _reason(error: Exception) -> str:
    """In a line, with what lies behind a lost connection."""
    cause = error.__cause__
    text = f"{error} ({cause})" if cause is not None and str(cause) else str(error)
    return _shortened(text) or type(error).__name__


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."
