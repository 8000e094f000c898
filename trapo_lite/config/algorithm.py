"""The `algorithm` section is what a run trains: one stage, or a first stage and then another."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from trapo_lite.config.choice import NAMED
from trapo_lite.config.choices import UtilitySection
from trapo_lite.config.fields import Positive, PositiveInt
from trapo_lite.config.stage import ScheduleSection, StageSection
from trapo_lite.config.teachers import SolutionTeacher
from trapo_lite.config.utilities import NoUtility, UtilityChoice

if TYPE_CHECKING:
    from trapo_lite.core.algorithm import Algorithm


class FirstStageSection(StageSection):
    """A FirstStageSection is what the first steps of a run train, before the rest of the algorithm section."""

    schedule: ScheduleSection = Field()
    """Name of a preset, or a list of micro-groups."""
    num_steps: PositiveInt
    """Updates of the first stage. The optimizer's state is new after them."""
    lr: Positive | None = None
    """Learning rate of the first stage; None: optim.lr."""


class AlgorithmSection(StageSection):
    """An AlgorithmSection is what a run trains: in all steps, or in those after a first stage."""

    name: str = "trapo"
    """Label for tables and logs; nothing is computed from it."""
    first_stage: FirstStageSection | None = None
    utility: Annotated[UtilitySection, NAMED] = NoUtility()
    """How it is measured whether help is useful, which then decides on it."""

    @model_validator(mode="after")
    def _utility_can_be_measured(self) -> "AlgorithmSection":
        if isinstance(self.utility, UtilityChoice) and self.prefix_loss.type == "none" and not self.utility.gates_help:
            raise ValueError(
                "utility.gates_help: false, and there is no prefix loss to weigh, so utility decides nothing; set it "
                "to true or utility: none"
            )
        if self.utility.type != "none" and not self.shows_parts:
            raise ValueError(
                "utility: is measured by how the policy goes on from a part of an expert solution, but no micro-group "
                "shows one (prefix_ratio between 0 and 1); add one or set utility: none"
            )
        return self

    @property
    def stages(self) -> tuple[StageSection, ...]:
        return (self,) if self.first_stage is None else (self.first_stage, self)

    def stage_at(self, step: int) -> StageSection:
        """Return what is trained when `step` updates are done."""
        return self.first_stage if self.first_stage and step < self.first_stage.num_steps else self

    def steps_of_stage(self, step: int, *, max_steps: int) -> range:
        """Return the steps of the stage that `step` is in."""
        border = self.first_stage.num_steps if self.first_stage else 0
        return range(border) if step < border else range(border, max_steps)

    def build_at(self, step: int, *, max_response_tokens: int | None = None) -> "Algorithm":
        """Return the Algorithm of a step (`build`); courses over steps begin with their stage."""
        stage, start = self.stage_at(step), self.steps_of_stage(step, max_steps=step + 1).start
        return stage.build(step - start, max_response_tokens=max_response_tokens)

    @property
    def ever_samples(self) -> bool:
        return any(stage.samples for stage in self.stages)

    @property
    def ever_uses_experts(self) -> bool:
        return any(stage.uses_experts for stage in self.stages)

    @property
    def any_teacher(self) -> SolutionTeacher | None:
        """Return the teacher of a stage that has one; two read the same prompts (`_one_prompt`)."""
        return next((stage.teacher for stage in self.stages if isinstance(stage.teacher, SolutionTeacher)), None)

    @property
    def needs_solutions(self) -> bool:
        """Return whether rollouts or a teacher ever read expert solutions."""
        return self.ever_uses_experts or self.any_teacher is not None

    @model_validator(mode="after")
    def _one_prompt(self) -> "AlgorithmSection":
        teachers = [stage.teacher for stage in self.stages if isinstance(stage.teacher, SolutionTeacher)]
        if any(teacher.reads != teachers[0].reads for teacher in teachers):
            raise ValueError(
                "first_stage.teacher: reads another prompt than the second stage's; give both the same solution_of, "
                "instruction and max_prompt_tokens"
            )
        return self

    @property
    def largest_stage(self) -> StageSection:
        """Return the stage with the most rollouts of a problem."""
        return max(self.stages, key=lambda stage: stage.group_size)
