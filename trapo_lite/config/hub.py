"""Ask once whether the Hugging Face hub answers: its library would wait and ask again for minutes, file by file."""

import functools
import logging
import os
import threading

from trapo_lite.core.errors import ConfigError

HUB_SECONDS = 10.0


logger = logging.getLogger(__name__)


def require_hub(where: str, *, name: str) -> None:
    """Raise ConfigError if the hub is to be asked (HF_HUB_OFFLINE is not set) and gives no answer in HUB_SECONDS.

    A model that was downloaded before is read from the cache then: HF_HUB_OFFLINE is set for this process and those
    that it starts, because the library would otherwise ask for each file again.

    where: what is taken from the hub, for the message   name: the hub id
    """
    from huggingface_hub import constants, try_to_load_from_cache

    problem = hub_problem()
    if problem is None:
        return
    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise ConfigError(
            f"{where}: no such folder, so it is taken for a hub id, but {constants.ENDPOINT} cannot be reached "
            f"({problem}), and the model was not downloaded before; check the network, or give a local folder"
        )
    logger.warning("%s: %s cannot be reached (%s); the files of the cache are used", where, constants.ENDPOINT, problem)
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def hub_problem() -> str | None:
    """Return why the hub cannot be reached; None if it can, or if it is not to be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return None if constants.HF_HUB_OFFLINE else _problem_of(constants.ENDPOINT)


@functools.cache
def _problem_of(address: str) -> str | None:
    """Return why the address does not answer, or None if it gives any answer."""
    from huggingface_hub.utils import get_session  # with its proxies and certificates

    problems: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=HUB_SECONDS)
            problems.append(None)
        except Exception as error:  # of the library's HTTP client, which is another one in each of its major versions
            problems.append(str(error) or type(error).__name__)

    # A thread, because the time limit above is one for each address that a name has, and not for looking them up.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return problems[0] if problems else f"no answer in {HUB_SECONDS:g} s"
