"""A rollout engine and a verifier that follow a script: no model, any order of finishing, milliseconds a step."""

import concurrent.futures
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trapo_lite.core.types import Response, Score, Verdict
from trapo_lite.engines.base import Completion, SampleRequest

STOP_ID = 0


def draw_by_seed(request: SampleRequest) -> tuple[int, ...]:
    """One to six tokens below 50, a function of the request's seed and prompt; it ends in STOP_ID or at max_tokens."""
    rng = random.Random(f"{request.seed}/{request.token_ids}")
    length = rng.randint(1, 6)
    tokens = [rng.randrange(1, 50) for _ in range(length - 1)] + [STOP_ID]
    return tuple(tokens[: request.max_tokens])


class ScriptedEngine:
    """A RolloutEngine: `draw` says what a request gives, `delays` after how many polls it comes back, shuffled.

    `events` is the log of what was asked: ("submit", request id), ("poll", ""), ("reset", "").
    """

    def __init__(
        self,
        *,
        draw: Callable[[SampleRequest], Sequence[int]] = draw_by_seed,
        delay: Callable[[SampleRequest], int] | None = None,
        order_seed: int = 0,
    ) -> None:
        self.draw, self.rng = draw, random.Random(order_seed)
        self.delay = delay or (lambda request: self.rng.randint(1, 4))
        self.version: int | None = 1
        self.publish_bytes = 0
        self.requests: list[SampleRequest] = []
        self.events: list[tuple[str, str]] = []
        self._in_flight: dict[str, list] = {}  # request id -> [request, polls left]

    def submit(self, request: SampleRequest) -> None:
        assert request.max_tokens >= 1, f"request {request.request_id} leaves no room for a token"
        assert request.request_id not in self._in_flight
        self.requests.append(request)
        self.events.append(("submit", request.request_id))
        self._in_flight[request.request_id] = [request, self.delay(request)]

    def poll(self) -> list[Completion]:
        self.events.append(("poll", ""))
        finished = []
        for entry in list(self._in_flight.values()):
            entry[1] -= 1
            if entry[1] <= 0:
                finished.append(self._complete(self._in_flight.pop(entry[0].request_id)[0]))
        self.rng.shuffle(finished)
        return finished

    def _complete(self, request: SampleRequest) -> Completion:
        token_ids = tuple(self.draw(request))
        rng = random.Random(request.seed)
        return Completion(
            request_id=request.request_id,
            token_ids=token_ids,
            logprobs=tuple(-3 * rng.random() for _ in token_ids),
            finish_reason="stop" if token_ids[-1] in request.stop_ids else "length",
            adapter_version=self.version,
        )

    def abort(self, request_id: str) -> None:
        self._in_flight.pop(request_id, None)

    def reset_prefix_cache(self) -> None:
        self.events.append(("reset", ""))

    scratch: Path | None = None

    def publish(self, adapter_dir: Path, version: int) -> None:
        self.version = version

    def score(self, token_ids: Sequence[int]) -> list[float]:
        raise NotImplementedError("a scripted engine has no model to score with")

    def adapter_checksum(self) -> str | None:
        return None

    def release(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class ScriptedVerifier:
    """`judge(text, gold)` gives the reward, or None for none; from 1 on it is correct.

    Scores come at once, or from a thread in random order after random moments.
    """

    def __init__(
        self,
        judge: Callable[[str, str], float | None],
        *,
        threaded: bool = False,
        order_seed: int = 0,
        pause_s: float = 0.0,
    ) -> None:
        self.judge, self.threaded, self.pause_s = judge, threaded, pause_s
        self.rng = random.Random(order_seed)
        self.texts: list[str] = []
        self._pending: list[tuple[concurrent.futures.Future[Score], str, str]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        if threaded:
            self._thread.start()

    def submit(self, response: Response) -> "concurrent.futures.Future[Score]":
        ticket: concurrent.futures.Future[Score] = concurrent.futures.Future()
        text, gold = response.text, response.problem.answer
        self.texts.append(text)
        if not self.threaded:
            ticket.set_result(self._score(text, gold))
            return ticket
        with self._changed:
            self._pending.append((ticket, text, gold))
            self._changed.notify()
        return ticket

    def _score(self, text: str, gold: str) -> Score:
        value = self.judge(text, gold)
        if value is None:
            return Score(Verdict("unjudged", text), None)
        return Score(Verdict("correct" if value >= 1 else "wrong", text), float(value))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._closed)
                if not self._pending:
                    return
                ticket, text, gold = self._pending.pop(self.rng.randrange(len(self._pending)))
            if self.pause_s:
                time.sleep(self.rng.random() * self.pause_s)
            if ticket.set_running_or_notify_cancel():
                ticket.set_result(self._score(text, gold))

    def __enter__(self) -> "ScriptedVerifier":
        return self

    def __exit__(self, *_error: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self.threaded:
            self._thread.join(timeout=5.0)


def decode(token_ids: Sequence[int]) -> str:
    """What the verifier reads: the ids, spelt out."""
    return " ".join(map(str, token_ids))


def is_boundary(token_id: int) -> bool:
    return token_id % 10 == 3
