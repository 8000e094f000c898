"""Publish the adapter to the engine, and check that the engine samples from it (DESIGN 7)."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch

from trapo_lite.engines import parity
from trapo_lite.engines.base import RolloutEngine
from trapo_lite.model.logprobs import probe_sequences
from trapo_lite.model.policy import Policy


class Publisher:
    """A Publisher publishes versions of one policy to one engine, and runs the parity probe after each.

    scratch:        folder that the adapter is written to unless the engine names its own, in the engine's type. It is
                    emptied first and after each publish, so that a killed run leaves at most one adapter there.
    text:           token sequences of the run's data; engine and trainer must agree on them without an adapter
    merge, base_tolerance: as in the `rollout` section

    The engine must serve the base without an adapter when a Publisher is made, which measures the noise between engine
    and trainer. The probe uses random tokens: every adapter finds them improbable, so each token shows its effect.
    Raises EngineError if the engine does not serve what it was given.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        policy: Policy,
        *,
        scratch: Path,
        text: Sequence[list[int]],
        vocab_size: int,
        num_tokens: int,
        max_length: int,
        base_tolerance: float | None = None,
        merge: Literal["never", "in_place"] = "never",
    ) -> None:
        self.engine, self.policy = engine, policy
        self.version: int | None = None
        self.is_merged = merge == "in_place"
        self.merge_kept = math.nan
        """Share of the update that survived the rounding of the latest merge; NaN if nothing was merged."""
        self.publish_seconds = 0.0
        self.probe_seconds = 0.0
        self._scratch = engine.scratch or scratch
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._dtype = policy.autocast_dtype or torch.float32
        self._probe = probe_sequences(vocab_size=vocab_size, num_tokens=num_tokens, max_length=max_length)
        self._previous: list[float] | None = None
        """The trainer's scores of the probe at the publish before the latest."""
        self._result: parity.ParityResult | None = None
        with policy.reference():
            self._base = self._scores(policy.score)
            on_text = _scores(policy.score, text)
        noise = parity.measured_noise(_scores(engine.score, text), on_text)
        limit = parity.largest_noise(on_text, dtype=self._dtype, tolerance=base_tolerance)
        parity.require_same_base(noise, limit=limit)
        self._engine_base = self._scores(engine.score)
        self._engine_previous: list[float] | None = None
        self._noise = parity.measured_noise(self._engine_base, self._base)

    def publish(self, version: int) -> parity.ParityResult:
        """Make the engine sample from the policy as it is now; do nothing if the engine already has this version."""
        if version == self.version and self._result is not None:
            self.publish_seconds = self.probe_seconds = 0.0
            return self._result
        started = time.perf_counter()
        self.policy.adapter.save(self._scratch, dtype=self._dtype)
        self.engine.publish(self._scratch, version)
        published = time.perf_counter()
        expected = parity.checksum(self._scratch, dtype=self._dtype)
        shutil.rmtree(self._scratch)
        engine_checksum = self.engine.adapter_checksum()
        probe_seconds = time.perf_counter() - published
        merge_seconds = self._merge()
        merged = time.perf_counter()
        engine, trainer = self._both_scores()
        result = parity.verdict(
            engine=engine,
            base=self._base,
            trainer=trainer,
            previous=self._previous,
            engine_base=self._engine_base,
            engine_previous=self._engine_previous,
            noise=self._noise,
        )
        parity.require_applied(result, version=version)  # first, because its message says how the adapter is wrong
        parity.require_checksum(engine_checksum, expected=expected, version=version)
        self._previous, self._engine_previous, self._result, self.version = trainer, engine, result, version
        self.publish_seconds = published - started + merge_seconds
        self.probe_seconds = probe_seconds + time.perf_counter() - merged
        return result

    def _merge(self) -> float:
        """Merge the adapter in the engine if the configuration asks for it; return the seconds it took."""
        if not self.is_merged:
            return 0.0
        started = time.perf_counter()
        self.merge_kept = self.engine.merge()
        return time.perf_counter() - started

    def _both_scores(self) -> tuple[list[float], list[float]]:
        """Return the scores of engine and trainer; both compute at the same time if they are two processes."""
        with ThreadPoolExecutor(max_workers=1) as executor:
            engine = executor.submit(self._scores, self.engine.score)
            trainer = self._scores(self.policy.score)
            return engine.result(), trainer

    def _scores(self, score: Callable[[list[int]], list[float]]) -> list[float]:
        return _scores(score, self._probe)


def _scores(score: Callable[[list[int]], list[float]], sequences: Sequence[list[int]]) -> list[float]:
    return [logprob for token_ids in sequences for logprob in score(token_ids)]
