"""The options of a teacher: what they are, what excludes what, and what a run says of them."""

from pathlib import Path
from typing import Any

import pytest

from trapo_lite.config import Config, load_config, validate
from trapo_lite.config.old_form import YOUNGER_OPTIONS
from trapo_lite.config.teachers import SolutionTeacher
from trapo_lite.core.errors import ConfigError
from trapo_lite.model.shape import ModelShape
from trapo_lite.planning.memory import head_bytes, plan_memory, tokens_at_once
from trapo_lite.planning.report import plan_lines
from trapo_lite.planning.time import plan_time
from trapo_lite.run.gpus import GIB, GPUS
from trapo_lite.training.resume import run_identity

OPSD = "algorithm/opsd.yaml"
TINY = "tiny_cpu.yaml"


def load(*overrides: str) -> Config:
    return load_config([TINY, OPSD], list(overrides))


def test_the_shipped_block_trains_by_the_teacher_alone() -> None:
    algorithm = load().algorithm.build()
    assert algorithm.completion_loss is None and algorithm.prefix_loss is None
    assert algorithm.teacher is not None and algorithm.teacher.needs_vocabulary
    sampled = load("algorithm.teacher.divergence=sampled").algorithm.build().teacher
    assert sampled is not None and not sampled.needs_vocabulary


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["algorithm.teacher=none"], "algorithm.completion_loss: none, and neither a prefix loss nor a teacher"),
        (["algorithm.teacher.instruction=Go."], "must contain {solution} exactly once"),
        (["algorithm.teacher.instruction='{solution} {problem}'"], "and not {problem}"),
        (["algorithm.teacher.clip=0"], "algorithm.teacher.clip"),
        (["algorithm.teacher.weight=0"], "algorithm.teacher.weight"),
        (["algorithm.teacher.divergence=forward_kl"], "algorithm.teacher.divergence"),
        (["algorithm.teacher.solution=other"], "did you mean 'solution_of'?"),
        (["lora.init_from=x"], "algorithm.teacher: the teacher is the base, not the adapter named by lora.init_from"),
        (["rollout.replace_uninformative=1"], "a teacher trains every problem, so nothing is replaced"),
        (["algorithm.advantage=standardized"], "algorithm.advantage: has no effect here: it acts with a completion_l"),
        (["algorithm.baseline=micro_group"], "algorithm.baseline: has no effect here"),
        (["algorithm.tis_cap=2", "rollout.top_p=0.9"], "algorithm.tis_cap: importance ratios"),
    ],
)
def test_what_cannot_be_is_refused(overrides: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(*overrides)
    assert complaint in str(raised.value)


def test_a_correction_for_the_sampler_needs_a_loss_of_own_tokens() -> None:
    alone = ["algorithm.prefix_loss=nll", "algorithm.completion_loss=none"]
    with pytest.raises(ConfigError, match=r"algorithm\.tis_cap: has no effect here: it acts with a loss of own tokens"):
        load_config([TINY], [*alone, "algorithm.tis_cap=2"])
    load_config([TINY], [*alone, "algorithm.teacher=solution", "algorithm.tis_cap=2"])


def test_a_teacher_is_refused_where_nothing_is_sampled() -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.teacher: has no effect here: it acts with a schedule that samp"):
        load_config([TINY, "algorithm/sft.yaml"], ["algorithm.teacher=solution"])


def test_the_resolved_file_is_the_same_run(tmp_path: Path) -> None:
    config = load("algorithm.teacher.clip=0.5", "algorithm.teacher.solution_of=other")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert load_config([file]) == config
    assert "advantage" not in config.to_yaml()


def test_the_plan_says_what_trains() -> None:
    [loss] = [line for line in plan_lines(load("algorithm.teacher.weight=2")) if line.startswith("loss")]
    assert loss == (
        "loss      reverse_kl to a teacher with the solution x 2 on own tokens, divided by each component's number of "
        "tokens"
    )
    both = load("algorithm.completion_loss=policy_gradient", "algorithm.teacher.clip=0.5")
    [loss] = [line for line in plan_lines(both) if line.startswith("loss")]
    assert "policy_gradient on own tokens + reverse_kl to a teacher with the solution (clip 0.5) on own tokens" in loss


def test_a_checkpoint_without_the_option_had_no_teacher() -> None:
    identity = run_identity(load_config([TINY]), prompt={}, data_fingerprint="", num_processes=1)["configuration"]
    assert identity["algorithm.teacher.type"] == YOUNGER_OPTIONS["algorithm.teacher.type"] == "none"
    with_teacher = run_identity(load(), prompt={}, data_fingerprint="", num_processes=1)["configuration"]
    keys = {f"algorithm.teacher.{key}" for key in SolutionTeacher.model_fields}
    assert keys <= with_teacher.keys()


# ----- lengths, memory and time

SHAPE = ModelShape(
    num_layers=4,
    hidden_size=64,
    mlp_width=128,
    vocab_size=1000,
    attention_width=64,
    kv_width=64,
    lora_width=128,
    linear_parameters=10_000,
    other_parameters=1000,
    adapter_parameters=100,
)


def lengths(**teacher: Any) -> Config:
    opsd: dict[str, Any] = {"schedule": [{"num_rollouts": 8}], "prefix_loss": "none", "completion_loss": "none"}
    return validate(
        {
            "algorithm": opsd | {"teacher": {"type": "solution"} | teacher},
            "data": {"max_prompt_tokens": 100},
            "rollout": {"max_response_tokens": 1000, "num_problems": 2},
            "train": {"tokens_per_batch": 1000},
        }
    )


def test_the_longest_sequence_of_the_trainer_is_the_teachers_and_that_of_the_engine_is_not() -> None:
    config = lengths(max_prompt_tokens=3000)
    assert (config.longest_sequence, config.longest_computed, config.max_model_len) == (1100, 4000, 1100)
    assert tokens_at_once(config) >= 4000
    assert "algorithm.teacher.max_prompt_tokens (3000) + rollout.max_response_tokens (1000): 4000" in (
        config.longest_in_words
    )
    short = lengths(max_prompt_tokens=50)
    assert short.longest_computed == short.longest_sequence == 1100


def test_the_plan_counts_the_rows_that_the_teacher_leaves() -> None:
    """4096 tokens of 64 numbers of 2 bytes more; nothing for the sampled token, whose log-prob is enough."""
    sampled, whole = (
        plan_memory(lengths(max_prompt_tokens=3000, divergence=name), SHAPE, gpu_memory=24 * GIB)
        for name in ("sampled", "reverse_kl")
    )
    assert whole.head - sampled.head == tokens_at_once(lengths(max_prompt_tokens=3000)) * 64 * 2
    rows = [head_bytes(SHAPE, tokens=10, width=2, is_whole=True, has_teacher=has) for has in (False, True)]
    assert rows[1] - rows[0] == 10 * 1000 * 8


def test_the_plan_counts_the_time_of_the_teachers_pass() -> None:
    """2 for each weight and token, 2 for the head's rows, 4 for each pair, all over what the card computes."""
    config, gpu = lengths(max_prompt_tokens=3000), GPUS["A100"]
    alone = config.model_copy(
        update={"algorithm": config.algorithm.model_copy(update={"teacher": load_config([TINY]).algorithm.teacher})}
    )
    more = plan_time(config, SHAPE, gpu, num_gpus=1).update - plan_time(alone, SHAPE, gpu, num_gpus=1).update
    tokens, pairs = 16 * 1000 + 2 * 3000, 16 * sum(3000 + depth for depth in range(1, 1001))
    pairs += 2 * sum(range(1, 3001))
    expected = 2 * 10_000 * tokens + 4 * 64 * 4 * pairs + 2 * 64 * 1000 * 16 * 1000
    assert more == pytest.approx(expected / (gpu.tflops * 1e12 * 0.35), rel=0.01)


# ----- two stages


def with_first_stage(**first: Any) -> dict[str, Any]:
    opsd: dict[str, Any] = {"schedule": [{"num_rollouts": 8}], "prefix_loss": "none", "completion_loss": "none"}
    teacher = {"type": "solution", "max_prompt_tokens": 300}
    grpo = {"schedule": [{"num_rollouts": 8}], "prefix_loss": "none"}
    return {"algorithm": grpo | {"first_stage": opsd | {"num_steps": 5, "teacher": teacher | first}}}


def test_a_teacher_of_the_first_stage_alone_is_asked_in_that_stage() -> None:
    config = validate(with_first_stage())
    assert [config.algorithm.build_at(step, max_response_tokens=8).teacher is not None for step in (4, 5)] == [
        True,
        False,
    ]
    assert config.teacher_prompt_tokens == 300 and config.algorithm.needs_solutions


def test_teachers_of_two_stages_read_the_same_prompts() -> None:
    raw = with_first_stage(clip=0.5)
    raw["algorithm"]["teacher"] = {"type": "solution", "max_prompt_tokens": 300, "divergence": "sampled"}
    validate(raw)
    raw["algorithm"]["teacher"]["solution_of"] = "other"
    with pytest.raises(ConfigError, match=r"first_stage\.teacher: reads another prompt than the second stage's"):
        validate(raw)


def test_a_teacher_does_not_train_what_a_micro_group_leaves_untrained() -> None:
    schedule = "[{num_rollouts: 8}, {num_rollouts: 1, prefix_ratio: 1.0, help_below: 0.5, replaces_rl: true}]"
    with pytest.raises(ConfigError, match=r"schedule\[1\]\.replaces_rl: leaves own tokens untrained, which a teacher"):
        load(f"algorithm.schedule={schedule}")
