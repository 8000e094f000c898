"""Rollouts of a step: micro-groups decided per problem, each rollout graded the moment it ends (METHOD 3, DESIGN 7).

Three schedules start branches (group_in_progress.py) at three moments, and end with the same rollouts, since seeds
belong to rollouts:

    barrier      a micro-group of all problems, when every verdict on the one before it is in (the official code)
    pipelined    a branch, as soon as the verdicts so far make it certain that it is needed
    speculative  a branch at once; it is aborted as soon as the verdicts rule it out
"""

from collections.abc import Callable, Sequence
from functools import partial

from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem, Rollout
from trapo_lite.engines.base import EngineRestarted, SamplingEngine
from trapo_lite.rollout.phase import PhaseReport, RolloutPhase, Verifier
from trapo_lite.rollout.settings import SamplingSettings


def sample_groups(
    engine: SamplingEngine | None,
    verifier: Verifier,
    problems: Sequence[Problem],
    *,
    step: int,
    micro_groups: Sequence[MicroGroup],
    settings: SamplingSettings,
    decode: Callable[[Sequence[int]], str],
    is_boundary: Callable[[int], bool],
    on_progress: Callable[[int, int], None] | None = None,
    on_group: Callable[[int, list[Rollout]], None] | None = None,
) -> tuple[list[list[Rollout]], PhaseReport]:
    """Draw and grade one group of rollouts per problem, in the order of `problems`; a group is in slot order.

    engine:      may be None where the micro-groups never sample (SFT)
    decode:      turns response token ids into the text that the verifier reads
    is_boundary: whether a token may end an expert prefix (core.micro_groups.cut_prefix)
    on_progress: called with (done, expected) as verdicts come in
    on_group:    called with a problem's index and its group once that is complete; again, with the same, where an
                 engine that died makes a deterministic phase begin anew
    """
    new_phase = partial(
        RolloutPhase,
        engine,
        verifier,
        problems,
        step=step,
        micro_groups=micro_groups,
        settings=settings,
        decode=decode,
        is_boundary=is_boundary,
    )
    phase = new_phase()
    if engine is not None and settings.deterministic:
        engine.reset_prefix_cache()
    phase.start_branches()
    while not phase.is_done:
        try:
            phase.engine_step()
        except EngineRestarted:
            if settings.deterministic:  # bits depend on the composition of every batch: all is drawn again
                phase.forget_verdicts()
                phase = new_phase()
                phase.start_branches()
            else:  # what was in flight is drawn again, with the same seeds
                phase.submit_again()
        phase.collect_verdicts()
        phase.start_branches()
        if on_group is not None:
            for index in phase.newly_complete():
                on_group(index, phase.group(index))
        if on_progress is not None:
            on_progress(phase.num_settled, phase.num_rollouts)
    return [phase.group(index) for index in range(len(problems))], phase.report
