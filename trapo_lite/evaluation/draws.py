"""Draw independent answers to problems and grade them."""

from collections.abc import Callable, Sequence

from trapo_lite.core.micro_groups import MicroGroup
from trapo_lite.core.types import Problem, Rollout
from trapo_lite.engines.base import SamplingEngine
from trapo_lite.evaluation.results import Answer, EvalResult
from trapo_lite.rollout.phase import Scorer
from trapo_lite.rollout.sampler import sample_groups
from trapo_lite.rollout.settings import SamplingSettings

EVAL_STEP = -1  # no training step has this number, so no evaluation draws with a training rollout's seeds


def evaluate_problems(
    engine: SamplingEngine,
    scorer: Scorer,
    problems: Sequence[Problem],
    *,
    num_samples: int,
    settings: SamplingSettings,
    decode: Callable[[Sequence[int]], str],
    on_progress: Callable[[int, int], None] | None = None,
    on_group: Callable[[Sequence[Answer]], None] | None = None,
) -> EvalResult:
    """Sample `num_samples` answers a problem from whatever the engine serves, and grade them.

    Each answer has a seed of its own, a function of (settings.seed, problem id, sample). So the draws are independent,
    none repeats a training draw, and two checkpoints are compared with the same random numbers.

    on_group: called with a problem's answers as soon as the last of them is graded, in the order of completion
    """
    if num_samples < 1:
        raise ValueError(f"eval.num_samples: found {num_samples}; draw at least one answer a problem")

    def answers(problem_index: int, group: Sequence[Rollout]) -> tuple[Answer, ...]:
        return tuple(Answer.of(rollout, problems[problem_index].answer, decode) for rollout in group)

    def hand_on(problem_index: int, group: Sequence[Rollout]) -> None:
        if on_group is not None:
            on_group(answers(problem_index, group))

    groups, _ = sample_groups(
        engine,
        scorer,
        problems,
        step=EVAL_STEP,
        micro_groups=[MicroGroup(num_samples, prefix_ratio=0.0, help_below=0.0)],
        settings=settings,
        decode=decode,
        is_boundary=lambda token_id: False,
        on_progress=on_progress,
        on_group=hand_on,
    )
    return EvalResult(tuple(answers(number, group) for number, group in enumerate(groups)), settings.seed)
