"""Whether it is the model or the server that is at fault, and not single clips."""

from __future__ import annotations

from shards.errors import InputError
from shards.prepare.caption.asking import Answer
from shards.prepare.caption.captioner import Captioner, CaptionError

_FIRST_REFUSALS = 4
_LEAST_REFUSALS = 16


class Doubt:
    """Counts the clips in a row that got no caption."""

    def __init__(self, captioner: Captioner) -> None:
        self.ends_at_one = captioner.most_gone == 1  # a single clip may be what breaks it
        self._label = captioner.label
        self._most_gone = captioner.most_gone
        self._most_refused = max(_LEAST_REFUSALS, 2 * captioner.at_once)
        self._answered = False
        self._refused = 0
        self._gone = 0

    def note(self, media: str, answer: Answer) -> None:
        """Take note of a clip's answer. Raises InputError once there is no sense in going on."""
        if isinstance(answer, str):
            self._answered, self._refused, self._gone = True, 0, 0
        elif isinstance(answer, CaptionError):
            self._refused += 1
            self._gone = self._gone + 1 if answer.gone else 0
            last = f"the last, {media}, because: {answer.reason}. What is done is kept: run the same command again"
            if self._gone == self._most_gone:
                raise InputError(f"{self._label}: gone, {self._gone} clip(s) in a row failed, {last}.")
            if not self._answered and self._refused == _FIRST_REFUSALS:
                raise InputError(
                    f"{self._label}: no caption for any of the first {self._refused} clips, {last}, and it begins "
                    "with others."
                )
            if self._refused == self._most_refused:
                raise InputError(
                    f"{self._label}: no caption for {self._refused} clips in a row, {last}, and it goes on with "
                    "others."
                )
