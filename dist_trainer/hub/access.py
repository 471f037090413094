"""Whether the hub will take what a run trains, asked before it trains."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.limit import limited
from shards.errors import InputError

ASK_S = 60.0
_BUSY = (408, 429)  # of the hub's refusals, those that pass


class Answer(NamedTuple):
    """Why the hub takes nothing, empty where it does; `final`: asking again will not help, the user has to act."""

    why: str = ""
    final: bool = False


def check_hub(config: RunConfig, again: bool, gathering: Gathering) -> None:
    """Raise InputError, alike on every rank, when the hub refuses the run's token or repository.

    Where it cannot be reached, and for a run that goes on (`again`), it is a note: the upload may be done later.
    """
    repository = config.hub.hub_model_id
    if not config.hub.push_to_hub or not repository:
        return
    asked = json.dumps(ask(repository, config.hub.private)) if gathering.world.is_main else ""
    answer = Answer(*json.loads(gathering.share("hub", asked)))
    if answer.final and not again:
        raise InputError(f"hub.hub_model_id: {repository}: {answer.why}")
    if answer.why and gathering.world.is_main:
        print(
            f"note: hub: {repository}: {answer.why}; training goes on, and `ltx-train push {config.output_dir}` can "
            "upload its weights later",
            flush=True,
        )


def ask(repository: str, private: bool = False, limit_s: float = ASK_S) -> Answer:
    """Ask the hub who we are, and create the repository where there is none; a hub that is late cannot be reached.

    `private`: the repository must be private; otherwise a new one is what its owner's new ones are.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    api = HfApi()

    def asked() -> tuple[dict[str, Any], bool]:
        user = api.whoami()
        api.create_repo(repository, private=private or None, exist_ok=True)
        return user, private and not api.model_info(repository).private

    try:
        user, is_public = limited(asked, limit_s)
    except LocalTokenNotFoundError:
        return Answer("there is no token: run `hf auth login`, or set HF_TOKEN", final=True)
    except HFValidationError as error:
        return Answer(reason(error), final=True)
    except HfHubHTTPError as error:
        status = error.response.status_code
        return Answer(reason(error), final=400 <= status < 500 and status not in _BUSY)
    except Exception as error:  # whatever the network does, it is not worth a run
        return Answer(f"the hub cannot be reached: {reason(error)}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return Answer("the token may only read; make one that may write", final=True)
    if is_public:
        return Answer(
            "is public, and hub.private is true; make it private on the hub, or name another", final=True
        )
    return Answer()


def reason(error: Exception) -> str:
    """An error of the hub in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__
