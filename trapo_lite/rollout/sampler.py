"""Sample a step's rollouts: each problem decides its micro-groups, and each rollout is graded at once (METHOD 3).

The three schedules start branches (group_in_progress.py) at different times. All give the same rollouts, because every
rollout has its own seed (DESIGN 7):

    barrier      starts a micro-group of all problems after every verdict on the previous one (the official code)
    pipelined    starts a branch as soon as the verdicts so far make it certain that it is needed
    speculative  starts every branch at once, and aborts it as soon as the verdicts exclude it
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem, Rollout
from trapo_lite.engines.base import EngineRestarted, SamplingEngine
from trapo_lite.rollout.group_in_progress import GroupInProgress
from trapo_lite.rollout.phase import PhaseReport, RolloutPhase, Scorer, random_choice
from trapo_lite.rollout.settings import SamplingSettings


def sample_groups(
    engine: SamplingEngine | None,
    scorer: Scorer,
    problems: Sequence[Problem],
    *,
    step: int,
    micro_groups: Sequence[MicroGroup] | Callable[[Problem], Sequence[MicroGroup]],
    settings: SamplingSettings,
    decode: Callable[[Sequence[int]], str],
    is_boundary: Callable[[int], bool],
    show: Callable[[Problem, Sequence[int]], tuple[int, ...]] | None = None,
    substitutes: Sequence[Sequence[Problem]] = (),
    is_informative: Callable[[list[Rollout]], bool] = lambda rollouts: True,
    on_progress: Callable[[int, int], None] | None = None,
    on_group: Callable[[int, list[Rollout]], None] | None = None,
) -> tuple[list[list[Rollout]], PhaseReport]:
    """Draw and grade one group of rollouts per problem, in the order of `problems`; a group is in slot order.

    micro_groups:   the same for all problems, or what gives a problem its own
    engine:         None if the micro-groups never sample (SFT)
    decode:         turns response token ids into the text that reward functions read
    show:           returns the prompt that shows a problem's prefix; needed by micro-groups with `prefix_in: prompt`
    is_boundary:    whether a token may end an expert prefix (core.micro_groups.cut_prefix)
    substitutes:    for each of `problems`, others that replace it one after the other while its group is not
                    informative; the last one stays. Which ones are drawn does not depend on what is complete first.
    is_informative: whether something is learned from a complete group
    on_progress:    called with (done, expected) as verdicts arrive
    on_group:       called with a problem's index and its complete group. It is called again with the same group if the
                    engine dies and a deterministic phase starts again.
    """

    def new_group(problem: Problem) -> GroupInProgress:
        return GroupInProgress(
            problem,
            micro_groups(problem) if callable(micro_groups) else micro_groups,
            max_response_tokens=settings.max_response_tokens,
            pick=partial(random_choice, settings.seed, step, problem.id),
            is_boundary=is_boundary,
            show=show,
            reward_bounds=settings.reward_bounds,
        )

    def new_phase() -> tuple[RolloutPhase, list[int]]:
        groups = [new_group(problem) for problem in problems]
        phase = RolloutPhase(engine, scorer, groups, step=step, settings=settings, decode=decode)
        phase.start_branches()
        return phase, list(range(len(problems)))

    if engine is not None and settings.deterministic:
        engine.reset_prefix_cache()
    phase, positions = new_phase()  # positions: for each group of the phase, the index in `problems` that it stands for
    while not phase.is_done:
        try:
            phase.engine_step()
        except EngineRestarted:
            if settings.deterministic:  # bits depend on the composition of every batch: sample everything again
                phase.forget_verdicts()
                phase, positions = new_phase()
            else:  # sample the unfinished requests again, with the same seeds
                phase.submit_again()
        phase.collect_verdicts()
        phase.start_branches()
        for index in phase.newly_complete():
            position = positions[index]
            others = substitutes[position][positions.count(position) - 1 :] if substitutes else []
            if others and not is_informative(phase.group(index)):
                phase.add(new_group(others[0]))
                positions.append(position)
            elif on_group is not None:
                on_group(position, phase.group(index))
        if on_progress is not None:
            on_progress(phase.num_settled, phase.num_rollouts)
    last = {position: index for index, position in enumerate(positions)}
    replaced = sorted(set(range(len(positions))) - set(last.values()), key=lambda index: (positions[index], index))
    return (
        [phase.group(last[position]) for position in range(len(problems))],
        replace(phase.report, replaced=tuple(phase.group(index) for index in replaced)),
    )
