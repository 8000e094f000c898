"""Write a run's checkpoints, and save its last logged step whatever ends the run."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from trapo_lite.model.policy import Policy
from trapo_lite.run.folder import RunFolder
from trapo_lite.run.launch import Stopped, StopSignals
from trapo_lite.run.processes import RankError, Ranks, ended_message
from trapo_lite.training.checkpoint import save_checkpoint


class Progress:
    """A Progress knows the step that was logged last and the step of the newest checkpoint.

    identity:   the run's configuration, model, data and number of processes, for its checkpoints
    keep:       how many checkpoints are kept
    first_step: the step that the run is resumed from, 0 for none
    memory:     returns what else a resumed run must know, as JSON values
    flush:      writes the logs to disk; called before each checkpoint
    announce:   told in one line of each checkpoint
    """

    def __init__(
        self,
        folder: RunFolder,
        ranks: Ranks,
        *,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        identity: Mapping[str, Any],
        keep: int,
        first_step: int,
        memory: Callable[[], Mapping[str, Any]],
        flush: Callable[[], None],
        announce: Callable[[str], None],
    ) -> None:
        self._folder, self._ranks, self._policy, self._optimizer = folder, ranks, policy, optimizer
        self._identity, self._keep, self._flush, self._announce = identity, keep, flush, announce
        self._memory, self._remembered = memory, memory()
        self._saved_step = first_step
        self._whole_step: int | None = None  # the last logged step, or None if the policy was updated since
        self._rng_states: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(self._policy_moves)

    def step_is_logged(self, step: int) -> None:
        """Note that `step` is logged and the policy is in the state after it; all ranks call this."""
        self._rng_states = self._ranks.gather([torch.get_rng_state()])
        self._remembered = self._memory()
        self._whole_step = step

    def save(self, step: int) -> None:
        """Write a checkpoint of the policy in the state after `step`; all ranks call this."""
        self._write(step)
        self._ranks.wait()

    @contextlib.contextmanager
    def kept(self, signals: StopSignals) -> Iterator[None]:
        """Save the last logged step when the block ends for any reason, unless the policy was updated since.

        Only the main process reacts to SIGTERM and SIGINT. The launcher sends them to the other ranks too; these end
        when their next exchange with the main process fails.
        """
        try:
            yield
        except Stopped as stopped:
            self._warn_of_ended()
            stopped.checkpoint_step = self._last_step
            raise
        except RuntimeError as error:
            is_from_a_rank = type(error) is RuntimeError or isinstance(error, RankError | torch.distributed.DistError)
            if signals.received is None or not is_from_a_rank:
                raise
            self._warn_of_ended()
            raise Stopped(signals.received, checkpoint_step=self._last_step) from error
        finally:
            if self._whole_step is not None and self._whole_step > self._saved_step:
                self._write(self._whole_step)

    def _warn_of_ended(self) -> None:
        """Name the processes that ended before the signal: a launcher stops all processes when one of them ends."""
        if ended := self._ranks.ended():
            self._announce(f"warning: {ended_message(ended)}")

    @property
    def _last_step(self) -> int:
        """Return the step of the newest checkpoint when the run has ended."""
        return max(self._saved_step, self._whole_step or 0)

    def _write(self, step: int) -> None:
        if self._ranks.is_main:
            self._flush()
            saved = save_checkpoint(
                self._folder.checkpoints,
                policy=self._policy,
                optimizer=self._optimizer,
                rng_states=self._rng_states,
                state={
                    **{"step": step, "adapter_version": step, "data_cursor": step, "layout": self._policy.layout},
                    **self._remembered,
                    **self._identity,
                },
                keep=self._keep,
            )
            self._announce(f"checkpoint saved: {saved} (step {step})")
        self._saved_step = step

    def _policy_moves(self, *_: object) -> None:
        self._whole_step = None
