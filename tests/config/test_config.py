"""The files in configs/ validate alone and together and hold the method's numbers; bad input gets a clear error."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from trapo_lite.config import AlgorithmSection, Config, load_config
from trapo_lite.config.loading import validate
from trapo_lite.config.other_names import OTHER_NAMES
from trapo_lite.config.overrides import keys_of
from trapo_lite.config.unusual import unusual_lines
from trapo_lite.core.errors import ConfigError
from trapo_lite.core.micro_groups import prefix_ratio

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = sorted(CONFIGS.glob("*.yaml"))
ALGORITHMS = sorted((CONFIGS / "algorithm").glob("*.yaml"))


def algorithm(name: str) -> Path:
    return CONFIGS / "algorithm" / f"{name}.yaml"


def file_name(file: Path | None) -> str:
    return file.stem if file else "alone"


def test_the_longest_sequence_is_spelt_out_by_the_options_that_give_it() -> None:
    in_eval = {"every": 1, "data": "rows.jsonl", "max_response_tokens": 9000}
    text = validate({"eval": in_eval}).longest_in_words
    assert text == "data.max_prompt_tokens (1024, the default) + eval.max_response_tokens (9000): 10024 tokens"


NEEDED_BESIDE = {  # options of other sections without which the method would be another one
    "cispo": {"optim": {"updates_per_batch": 4}},
    "dapo": {"optim": {"updates_per_batch": 4}, "rollout": {"replace_uninformative": 3}},
}


def test_the_files_users_are_told_about_are_there():
    assert {"8xA100_lora.yaml", "1x24GB_qlora.yaml", "tiny_cpu.yaml"} <= {file.name for file in BASES}
    assert {"trapo", "grpo", "sft", "luffy"} <= {file.stem for file in ALGORITHMS}


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *ALGORITHMS], ids=file_name)
@pytest.mark.parametrize("base", BASES, ids=file_name)
def test_every_algorithm_over_every_base_validates_and_its_resolved_form_is_the_same_config(base, name, tmp_path):
    config = load_config([base, name] if name else [base])
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config([resolved]) == config
    assert load_config([resolved]).to_yaml() == config.to_yaml()


@pytest.mark.parametrize("file", [*BASES, *ALGORITHMS], ids=file_name)
def test_every_file_says_first_what_it_is_for(file):
    assert file.read_text().startswith("# ")


@pytest.mark.parametrize("file", ALGORITHMS, ids=file_name)
def test_an_algorithm_file_is_one_block_named_after_it(file):
    content = yaml.safe_load(file.read_text())
    assert content.pop("algorithm")["name"] == file.stem
    assert content == NEEDED_BESIDE.get(file.stem, {})


@pytest.mark.parametrize("base", BASES, ids=file_name)
def test_algorithms_over_one_base_differ_in_the_algorithm_alone(base):
    alone = [file for file in ALGORITHMS if file.stem not in NEEDED_BESIDE]
    without_algorithm = [load_config([base, file]).model_dump(exclude={"algorithm"}) for file in alone]
    assert all(other == without_algorithm[0] for other in without_algorithm[1:])


@pytest.mark.parametrize("base", BASES, ids=file_name)
@pytest.mark.parametrize("file", ALGORITHMS, ids=file_name)
def test_a_method_leaves_nothing_of_the_algorithm_of_a_whole_configuration(base, file):
    assert load_config([base, file]).algorithm == load_config([file]).algorithm


def test_a_method_that_a_later_file_replaces_is_refused():
    """The first one's options in other sections would stay, or nothing of it would, without a word."""
    for files in ([algorithm("dapo"), algorithm("hpt")], [algorithm("chord"), BASES[0]]):
        message = error_of([], files)
        assert f"--config {files[0]}: its method is replaced by that of {files[1]}" in message
        assert "give one file with a method, after the others" in message


@pytest.mark.parametrize("base", BASES, ids=file_name)
def test_every_base_trains_trapo_as_its_algorithm_file_does(base):
    assert load_config([base]).algorithm == load_config([base, algorithm("trapo")]).algorithm


@pytest.mark.parametrize("base", BASES, ids=file_name)
def test_the_constant_normaliser_is_the_response_limit_unless_it_is_given(base):
    config = load_config([base])
    limit = config.rollout.max_response_tokens
    built = config.algorithm.build(max_response_tokens=limit)
    assert built.normalizer_tokens == limit
    given = load_config([base], ["algorithm.normalizer.num_tokens=7"]).algorithm
    assert given.build(max_response_tokens=limit).normalizer_tokens == 7


def test_1x24GB_is_a_smaller_8xA100_in_nf4():
    large, small = (load_config([CONFIGS / f"{name}.yaml"]) for name in ("8xA100_lora", "1x24GB_qlora"))
    assert (small.model.quantize, small.model.gradient_checkpointing) == ("nf4", True)
    assert (small.rollout.num_problems, small.rollout.max_response_tokens) == (8, 4096)
    at_once = large.rollout.num_problems // 8 * large.algorithm.group_size  # of one of eight processes
    assert at_once <= large.rollout.max_num_seqs <= 2 * at_once
    assert (small.optim, small.lora, small.data) == (large.optim, large.lora, large.data)
    assert small.model.config_overrides == large.model.config_overrides


@pytest.mark.parametrize("base", BASES, ids=file_name)
def test_one_rollout_fits_in_one_forward_pass_and_in_the_context(base):
    config = load_config([base])
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    assert longest <= config.train.tokens_per_batch
    assert longest <= config.model.config_overrides.get("max_position_embeddings", longest)


def test_tiny_cpu_is_exact_and_needs_nothing_from_outside():
    config = load_config([CONFIGS / "tiny_cpu.yaml"])
    assert (config.model.dtype, config.rollout.engine) == ("float32", "vllm")
    assert (config.run.deterministic, config.run.num_threads, config.rollout.num_threads) == (True, 1, 1)
    assert all(str(path).startswith("trapo_lite/tiny_world/") for path in (config.model.name, config.data.train))
    assert config.eval.every > 0


def test_dr_grpo_is_trapo_without_help():
    grpo, trapo = (load_config([algorithm(name)]).algorithm for name in ("dr_grpo", "trapo"))
    assert (grpo.prefix_loss.type, grpo.uses_experts) == ("none", False)
    prefix_only = {"name", "schedule", "prefix_loss"}
    assert grpo.model_dump(exclude=prefix_only) == trapo.model_dump(exclude=prefix_only)


def test_sft_never_samples_and_luffy_always_sees_the_expert_beside_its_own_rollouts():
    sft, luffy = (load_config([algorithm(name)]).algorithm for name in ("sft", "luffy"))
    assert not sft.samples and sft.trains_prefixes
    assert [prefix_ratio(group, [1.0]) for group in luffy.micro_groups] == [0.0, 1.0]  # help although all succeeded


@pytest.mark.parametrize("name", ["trapo", "grpo", "dr_grpo", "luffy"])
def test_groups_that_are_compared_have_eight_rollouts(name):
    assert load_config([algorithm(name)]).algorithm.group_size == 8


# override(s) over the defaults -> what the message must hold: the key, what was found, what to do.
BAD_INPUT: list[tuple[list[str], list[str]]] = [
    # unknown and misspelt
    (["optim.lr="], ["optim.lr: found no value; give a number"]),
    (["data.train="], ["data.train: ", "found no value"]),
    (["model.config_overrides={a: .nan}"], ["model.config_overrides: holds what a config.json cannot"]),
    (["optim.betas=[0.9]"], ["optim.betas: has too few values; found [0.9]"]),
    (["rollout.engine=hf"], ["rollout.engine: found 'hf'; did you mean 'transformers'?"]),
    (["rollout.engine=VLLM"], ["rollout.engine: found 'VLLM'; did you mean 'vllm'?"]),
    (["model.dtype=fp16"], ["model.dtype: found 'fp16'; give 'float32' or 'bfloat16'"]),
    (
        ["data.prompt_template=chatml", "data.system_text=x"],
        ["data.prompt_template: found 'chatml'; did you mean chat,"],
    ),
    (["data.template_options=enable_thinking"], ["data.template_options: found 'enable_thinking'; write names with"]),
    (["rolout.engine=vllm"], ["rolout", "unknown section", "did you mean 'rollout'"]),
    (["optim.weight_dacay=0.1"], ["optim.weight_dacay", "unknown key", "did you mean 'weight_decay'"]),
    (["algorithm.prefix_los=nll"], ["algorithm.prefix_los", "did you mean 'prefix_loss'"]),
    (["optim.xyzzy=1"], ["optim.xyzzy", "unknown key", "known are", "lr"]),
    (["optim.lr"], ["'optim.lr'", "section.key=value"]),
    (["lr=1"], ["'lr=1'", "section.key=value"]),
    (["optim.lr=[1"], ["optim.lr", "'[1'", "not a YAML value"]),
    # values out of range or of another kind
    (["optim.lr=-1"], ["optim.lr", "greater than 0", "-1"]),
    (["optim.lr=.nan"], ["optim.lr", "nan"]),
    (["optim.lr=fast"], ["optim.lr: found 'fast'; give a number"]),
    (["rollout.num_problems=0"], ["rollout.num_problems", "greater than or equal to 1", "found 0"]),
    (["rollout.num_problems=1.5"], ["rollout.num_problems: found 1.5; give a whole number"]),
    (["rollout.temperature=0"], ["rollout.temperature", "greater than or equal to 0.01"]),
    (["rollout.top_p=1.5"], ["rollout.top_p", "1.5"]),
    (["rollout.engine="], ["rollout.engine", "'vllm', 'server' or 'transformers'", "found no value"]),
    (["rollout.merge=sometimes"], ["rollout.merge", "'never' or 'in_place'", "'sometimes'"]),
    (
        ["rollout.merge=in_place", "rollout.engine=server", "rollout.servers=[http://host:8000]"],
        ["rollout.merge", "has no effect", "remove this"],
    ),
    (["rollout.merge=in_place", "model.quantize=nf4"], ["rollout.merge", "NF4", "never"]),
    (["rollout.gpu_memory_fraction=1.2"], ["rollout.gpu_memory_fraction", "less than 1", "1.2"]),
    (["model.quantize=int4"], ["model.quantize", "'none' or 'nf4'", "'int4'"]),
    (["model.config_overrides=3"], ["model.config_overrides", "dictionary", "3"]),
    (["algorithm.prefix_loss.alpha=0"], ["algorithm.prefix_loss.alpha", "greater than 0", "found 0"]),
    (
        ["algorithm.prefix_loss={type: trust_region, alpha: 1.5}"],
        ["algorithm.prefix_loss.alpha", "or equal to 1", "1.5"],
    ),
    # parts chosen by name
    (["algorithm.prefix_loss=trust_regoin"], ["algorithm.prefix_loss: found 'trust_regoin'", "mean 'trust_region'?"]),
    (["algorithm.advantage=xyzzy"], ["algorithm.advantage: found 'xyzzy'; known are centered, standardized"]),
    (["algorithm.prefix_loss.alhpa=0.2"], ["algorithm.prefix_loss.alhpa: unknown key; did you mean 'alpha'?"]),
    (["algorithm.prefix_loss={alpha: 0.2}"], ["algorithm.prefix_loss: has no type; write algorithm.prefix_loss=trust"]),
    (["algorithm.baseline="], ["algorithm.baseline: found None; give a name, such as group"]),
    (["algorithm.prefix_loss=nll", "algorithm.prefix_loss.alpha=0.2"], ["algorithm.prefix_loss.alpha: unknown key"]),
    (["algorithm.prefix_loss.weight=0"], ["algorithm.prefix_loss.weight", "greater than 0"]),
    (["algorithm.schedule.alpha=0.2"], ["not an override"]),
    (["algorithm.prefix_loss.a.b=0.2"], ["not an override"]),
    (["data.columns.id=null"], ["write the whole of data.columns={KEY: VALUE, ...}"]),
    (["algorithm.schedule[1].help_below=0.5"], ["write the whole list, algorithm.schedule=[{num_rollouts: "]),
    (["algorithm.first_stage.optim.lr=1"], ["the first stage has algorithm.first_stage.lr of its own"]),
    (["algorithm.first_stage.prefix_loss.weight=1"], ["such as algorithm.first_stage.prefix_loss={type: nll"]),
    (["algorithm.first_stage.schedule.0=1"], ["whole list, algorithm.first_stage.schedule=[{num_rollouts: "]),
    (["optim.betas.0=1"], ["write the whole of optim.betas=[VALUE, ...]"]),
    (["algorithm.prefix_los.weight=2"], ["algorithm.prefix_los: unknown key; did you mean 'prefix_loss'?"]),
    (["train.max_steps=0"], ["train.max_steps", "found 0"]),
    (["run.seed=-1"], ["run.seed", "-1"]),
    (["run.name=a/b"], ["run.name", "'a/b'"]),
    (["data.prompt_template=hello"], ["data.prompt_template", "{problem}", "exactly once"]),
    (["data.stop_tokens=['']"], ["data.stop_tokens[0]", "at least 1 character", "''"]),
    # schedules
    (["algorithm.schedule=papr"], ["algorithm.schedule", "paper or reference_code", "'papr'"]),
    (["algorithm.schedule=[]"], ["algorithm.schedule", "no micro-group", "at least one"]),
    (["algorithm.schedule=[{num_rollouts: 0}]"], ["algorithm.schedule[0].num_rollouts", "found 0"]),
    (
        ["algorithm.schedule=[{num_rollouts: 4}, {num_rollouts: 1, prefix_ratio: 1.5, help_below: 1.0}]"],
        ["algorithm.schedule[1].prefix_ratio", "less than or equal to 1", "1.5"],
    ),
    (
        ["algorithm.schedule=[{num_rollouts: 1, prefix_ratio: -0.1}]"],
        ["algorithm.schedule[0].prefix_ratio", "greater than or equal to 0", "-0.1"],
    ),
    (
        ["algorithm.schedule=[{num_rollouts: 1, prefix_ratio: 1.0, help_below: null, num_trained: 2}]"],
        ["algorithm.schedule[0].num_trained", "2 of 1"],
    ),
    # a loss without tokens to act on
    (["algorithm.schedule=[{num_rollouts: 8}]"], ["algorithm.prefix_loss", "guide a micro-group"]),
    (["algorithm.schedule=[{num_rollouts: 8, prefix_ratio: 0.5}]"], ["algorithm.schedule[0]", "help_below: null"]),
    (
        ["algorithm.schedule=[{num_rollouts: 8, prefix_ratio: 0.5, help_below: null, num_trained: 0}]"],
        ["algorithm.prefix_loss: trust_region", "num_trained: 0"],
    ),
    (["algorithm.prefix_loss.gamma=0.2"], ["algorithm.prefix_loss.gamma", "unknown key"]),
    (
        ["algorithm.normalizer.num_tokens=64"],
        ["algorithm.normalizer.num_tokens", "unkn"],
    ),
    (
        [
            "algorithm.schedule=[{num_rollouts: 8}]",
            "algorithm.prefix_loss=none",
            "algorithm.baseline.count_expert=false",
        ],
        ["algorithm.baseline.count_expert", "no rollout", "remove"],
    ),
    # adapters the engine cannot serve
    (["lora.target_modules=[q_proj, lm_head]"], ["lora.target_modules", "'lm_head'", "vLLM", "all-linear"]),
    (["lora.target_modules=[embed_tokens]"], ["lora.target_modules", "'embed_tokens'", "vLLM"]),
    (["lora.target_modules=attention"], ["lora.target_modules", "'attention'", "all-linear"]),
    (["lora.use_dora=true"], ["lora.use_dora", "DoRA", "remove"]),
    (["lora.bias=all"], ["lora.bias", "vLLM", "remove"]),
    (["lora.dropout=0.1"], ["lora.dropout", "remove"]),
    # combinations
    (["algorithm.tis_cap=2", "rollout.top_p=0.9"], ["algorithm.tis_cap", "top_p 0.9", "tis_cap: null"]),
    (["algorithm.tis_cap=2", "rollout.top_k=20"], ["algorithm.tis_cap", "top_k 20", "tis_cap: null"]),
    (["algorithm.completion_loss=ppo_clip"], ["algorithm.completion_loss", "cannot act", "optim.updates_per_batch"]),
    (["algorithm.completion_loss=cispo"], ["algorithm.completion_loss", "cannot act", "optim.updates_per_batch"]),
    (
        ["algorithm.completion_loss={type: ppo_clip, clip_low: null, clip_high: null}", "optim.updates_per_batch=2"],
        ["algorithm.completion_loss.clip_low, clip_high", "nothing is clipped", "policy_gradient"],
    ),
    (["algorithm.kl_weight=0.1", "lora.init_from=x"], ["algorithm.kl_weight", "lora.init_from", "kl_weight: 0"]),
    (["model.quantize=nf4", "model.dtype=float32"], ["model.dtype", "NF4", "bfloat16"]),
    (["optim.name=sgd", "optim.betas=[0.9, 0.99]"], ["optim.betas", "no effect"]),
    (["optim.warmup_steps=9", "train.max_steps=9"], ["optim.warmup_steps", "train.max_steps", "lower it"]),
    (["eval.every=5"], ["eval.data", "eval.every"]),
    (["run.name=.."], ["run.name", "'..'"]),  # the run's folder would be the one above run.dir
    (["lora.r=600"], ["lora.r", "512"]),  # vLLM's max_lora_rank ends there
    (["optim.lr=.inf"], ["optim.lr", "inf"]),
    (["optim.lr=true"], ["optim.lr", "True"]),
    (["rollout.num_problems=yes"], ["rollout.num_problems", "True"]),
    (["data.train=[]"], ["data.train"]),
    (["data.shares=3,1"], ["data.shares: found '3,1'; write data.shares=[3,1]"]),
    (["run.trackers=wandb,tensorboard"], ["run.trackers: found 'wandb,tensorboard'; write run.trackers=[wandb,"]),
    (["reward.functions={type: 'a/my.py:f', weight: 2}"], ["write {type: function, path: a/my.py:f, weight: 2}"]),
    (["reward.functions=http://host:80"], ["found 'http://host:80'; known are math"]),
    (["reward.functions=my.py:f"], ["found 'my.py:f'; write {type: function, path: my.py:f}"]),
    (
        ["data.train=[a.jsonl, b.jsonl]", "data.shares=[1]"],
        ["data.shares", "found 1 for the 2 sources", "one for each"],
    ),
    (["data.train=[a.jsonl, b.jsonl]", "data.shares=[1, 0]"], ["data.shares", "0", "greater than 0"]),
    (["data.train=[a.jsonl, b.jsonl]", "data.shares=[99, 1]"], ["data.shares", "b.jsonl would give none", "raise its"]),
    (["run.trackers=[wandb]", "run.project=a/b"], ["run.project", "'a/b'", "none of them /"]),
    (["data.shares=0.5"], ["data.shares", "0.5"]),
    (["data.train=[a.jsonl, b.jsonl]", "data.shares=[1e308, 1]"], ["b.jsonl would give none"]),
    (["lora.target_modules=[]"], ["lora.target_modules"]),
    (["model.name=''"], ["model.name"]),
    (["algorithm.schedule=[{num_rollouts: 8, prefix_ration: 0.5}]"], ["did you mean 'prefix_ratio'"]),
    # the first micro-group has no earlier rollouts, so a threshold never helps it: the prefix loss sees no token
    (["algorithm.schedule=[{num_rollouts: 8, prefix_ratio: 0.5, help_below: 0.5}]"], ["help_below"]),
]


def error_of(overrides: list[str], files: list[Path] | None = None) -> str:
    with pytest.raises(ConfigError) as raised:
        load_config(files or [], overrides)
    return str(raised.value)


def joined(value: object) -> str | None:
    """Test ids: the overrides; nothing for the list of substrings after them."""
    return " ".join(value) if isinstance(value, list) and "=" in value[0] else ""


@pytest.mark.parametrize(("overrides", "substrings"), BAD_INPUT, ids=joined)
def test_bad_input_is_named_with_what_was_found_and_what_to_do(overrides, substrings):
    message = error_of(overrides)
    assert [text for text in substrings if text not in message] == [], message


OF_OWN_TOKENS = [
    "advantage=standardized",
    "baseline=group",
    "completion_loss=policy_gradient",
    "tis_cap=2",
    "kl_weight=0.1",
]


@pytest.mark.parametrize("override", OF_OWN_TOKENS)
def test_what_needs_own_rollouts_is_refused_where_nothing_is_sampled(override):
    message = error_of([f"algorithm.{override}"], [algorithm("sft")])
    assert (
        f"algorithm.{override.partition('=')[0]}: has no effect here: it acts with a schedule that samples" in message
    )


def test_an_advantage_that_is_always_0_cannot_weigh_the_prefix_loss():
    # It would switch the whole loss off without a word.
    assert "nothing is sampled" in error_of(["algorithm.prefix_loss.times_advantage=true"], [algorithm("sft")])


def test_every_mistake_is_reported_at_once():
    message = error_of(["optim.lr=-1", "rollout.num_problems=0"])
    assert "optim.lr" in message and "rollout.num_problems" in message


# a file in the form before types stood beside their parameters -> what the message says to write
OLD_FORM = [
    ("algorithm: {prefix_loss: trust_region, alpha: 0.2}", "alpha", "prefix_loss: {type: trust_region, alpha: 0.2}"),
    ("algorithm: {prefix_loss: luffy, gamma: 0.3}", "gamma", "prefix_loss: {type: luffy, gamma: 0.3}"),
    ("algorithm: {prefix_weight: 0.5}", "prefix_weight", "prefix_loss: {type: trust_region, weight: 0.5}"),
    ("algorithm: {prefix_weight: 0}", "prefix_weight", "prefix_loss: {type: none}"),
    ("algorithm: {prefix_advantage: true}", "prefix_advantage", "{type: trust_region, times_advantage: true}"),
    ("algorithm: {divide_by_std: true}", "divide_by_std", "advantage: {type: standardized}"),
    ("algorithm: {count_expert_in_baseline: false}", "count_expert", "baseline: {type: group, count_expert: false}"),
    (
        "algorithm: {normalizer: constant, normalizer_tokens: 9}",
        "normalizer_t",
        "normalizer: {type: constant, num_tokens: 9}",
    ),
    ("algorithm: {clip_high: 0.28}", "clip_high", "completion_loss: {type: ppo_clip, clip_low: null, clip_high: 0.28}"),
    ("rollout: {tis_cap: 2}", "rollout.tis_cap", "is algorithm.tis_cap now"),
]


@pytest.mark.parametrize(("content", "key", "new_form"), OLD_FORM, ids=[content for content, _, _ in OLD_FORM])
def test_the_old_form_is_refused_with_the_new_one_spelt_out_which_is_then_taken(content, key, new_form, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    message = error_of([], [file])
    assert key in message and new_form in message
    if "write" in message:
        in_file, on_line = message.partition("in a file write ")[2].split("; on the command line ")
        file.write_text("optim: {updates_per_batch: 2}\nalgorithm: {" + in_file + "}")
        assert load_config([file]) == load_config([], ["optim.updates_per_batch=2", shlex.split(on_line)[0]])


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("tensorboard: true", ["tensorboard"]),
        ("tensorboard: false", []),
        ("tensorboard: false, wandb_project: sums", ["wandb"]),
        ("wandb_project: sums", ["tensorboard", "wandb"]),
        ("wandb_project: my team", ["tensorboard", "wandb"]),
        ("wandb_project: null", ["tensorboard"]),
    ],
)
def test_the_old_keys_of_trackers_are_refused_and_read_in_a_run_s_file(old, now, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"run: {{{old}}}")
    in_file, on_line = error_of([], [file]).partition("in a file write ")[2].split("; on the command line ")
    file.write_text(f"run: {{{in_file}}}")
    expected = load_config([file])
    project = old.partition("wandb_project: ")[2] if "wandb" in now else "trapo_lite"
    assert expected.run.trackers == now and expected.run.project == project
    assert load_config([], shlex.split(on_line)) == expected
    written = tmp_path / "config.yaml"
    sections = "".join(f"{section}: {{}}\n" for section in Config.model_fields.keys() - {"run"})
    written.write_text(f"{sections}run: {{{old}}}")
    assert load_config([written]) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.trackers=[tensorbord]"], "run.trackers[0]: found 'tensorbord'; did you mean 'tensorboard'?"),
        (["run.trackers=[wandb, wandb]"], "run.trackers: one of them is named twice"),
        (["run.project=sums"], "run.project: has no effect here: it acts with wandb or trackio in run.trackers"),
        (
            ["run.trackers=wandb", "run.project=a/b"],
            "run.project: found 'a/b'; use 1 to 128 characters, none of them /",
        ),
    ],
)
def test_a_wrong_tracker_is_one_line(overrides, message):
    assert message in error_of(overrides)


def test_an_old_key_beside_a_type_that_is_no_name_is_one_error():
    assert "algorithm.alpha: is part of algorithm.prefix_loss now" in error_of(
        ["algorithm.prefix_loss={type: [a]}", "algorithm.alpha=1"]
    )


def test_a_run_s_file_may_hold_keys_that_had_an_effect_when_it_was_written(tmp_path):
    """prefix_instruction was in every such file before it was said to act only with a prefix in the prompt."""
    resolved = load_config([algorithm("sft_then_rl")])
    text = resolved.to_yaml()
    assert "prefix_instruction" not in text
    file = tmp_path / "config.yaml"
    with_it = text.replace("\nalgorithm:\n", "\nalgorithm:\n  prefix_instruction: ' {prefix}'\n")
    with_it = with_it.replace("\n    schedule:", "\n    prefix_instruction: ' {prefix}'\n    schedule:")
    assert with_it.count("prefix_instruction") == 2
    file.write_text(with_it)
    assert load_config([file]).algorithm == resolved.algorithm
    other = tmp_path / "mine.yaml"
    other.write_text(with_it)
    assert "algorithm.first_stage.prefix_instruction: " in error_of([], [other])  # not what a run wrote


def test_a_run_s_file_in_the_old_form_is_read(tmp_path):
    """Every key that such a run's config.yaml could hold, with values that none of them has by default."""
    file = tmp_path / "config.yaml"
    untouched = Config.model_fields.keys() - {"algorithm", "optim", "rollout"}
    file.write_text(
        "".join(f"{section}: {{}}\n" for section in untouched)
        + """
algorithm:
  name: old
  schedule: paper
  prefix_loss: luffy
  gamma: 0.3
  prefix_weight: 0.5
  prefix_advantage: false
  count_expert_in_baseline: false
  divide_by_std: true
  clip_low: 0.3
  clip_high: null
  normalizer: constant
  normalizer_tokens: 9
optim: {updates_per_batch: 2}
rollout: {schedule: auto, merge: auto, tis_cap: 2, sequence_bound: 3}
"""
    )
    config = load_config([file])
    assert config.algorithm.model_dump() == {
        "name": "old",
        "utility": {"type": "none"},
        "prefix_instruction": AlgorithmSection().prefix_instruction,
        "first_stage": None,
        "schedule": "paper",
        "prefix_loss": {"type": "luffy", "weight": 0.5, "times_advantage": False, "top_entropy": None, "gamma": 0.3},
        "completion_loss": {"type": "ppo_clip", "weight": 1.0, "clip_low": 0.3, "clip_high": None},
        "teacher": {"type": "none"},
        "advantage": {"type": "standardized"},
        "baseline": {"type": "group", "count_expert": False},
        "tis_cap": 2.0,
        "sequence_bound": 3.0,
        "entropy_weight": 0.0,
        "kl_weight": 0.0,
        "normalizer": {"type": "constant", "num_tokens": 9},
    }
    assert (config.rollout.schedule, config.rollout.merge) == ("pipelined", "never")


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("lr=1e-4", "did you mean optim.lr=...?"),
        ("optim.lr", "write section.key=value without blanks around =, such as optim.lr=..."),
        ("optim=adamw", "optim is a section; write optim.KEY=value"),
        ("learning_rate=1e-5", "here it is optim.lr"),
        ("optim.learning_rate=1e-5", "optim.learning_rate: unknown key; here it is optim.lr"),
        ("lora.rank=8", "lora.rank: unknown key; here it is lora.r"),
        ("train.per-device-train-batch-size=1", "unknown key; here it is train.tokens_per_batch, which"),
        ("optim.beta=[0.9, 0.99]", "optim.beta: unknown key; did you mean 'betas'?"),
        ("algorithm.beta=0.1", "algorithm.beta: unknown key; here it is algorithm.kl_weight"),
        ("algorithm.name=grpo", "add --config configs/algorithm/grpo.yaml instead"),
        ("algorithm.name=dapo", "add --config configs/algorithm/dapo.yaml instead"),
    ],
)
def test_an_override_that_is_nearly_one_is_corrected(override, cure):
    assert cure in error_of([override])


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_another_trainers_name_leads_to_an_option_that_exists(name):
    options = re.findall(r"(\w+)\.(\w+)", OTHER_NAMES[name])
    assert options and all(key in keys_of(Config.model_fields[section]) for section, key in options)
    assert all(name not in keys_of(field) for field in Config.model_fields.values())


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["optim.lr=1"], ["optim.lr: 1 is high"]),
        (["optim.updates_per_batch=4"], ["optim.updates_per_batch: 4 updates by the same rollouts"]),
        (["optim.updates_per_batch=4", "algorithm.completion_loss=ppo_clip"], []),
        (["train.max_steps=5"], []),  # nobody chose the default of save_every
        (["data.train=[a.jsonl, b.jsonl, a.jsonl]"], ["data.train: names a.jsonl twice"]),
        (["train.save_every=501"], ["train.save_every: 501 is beyond train.max_steps (500)"]),
        (
            ["eval.every=501", "eval.data=x.jsonl", "train.save_every=501"],
            ["train.save_every", "eval.every: 501 is beyond"],
        ),
        (["optim.lr=1e-3", "train.save_every=500", "eval.every=500", "eval.data=x.jsonl"], []),
    ],
)
def test_a_value_that_is_rarely_meant_is_warned_of(overrides, warned):
    lines = unusual_lines(load_config([], overrides))
    assert len(lines) == len(warned)
    assert all(line.startswith(f"warning: {text}") for line, text in zip(lines, warned, strict=True))


def test_a_label_may_be_given_to_an_algorithm():
    assert load_config([algorithm("grpo")], ["algorithm.name=grpo"]).algorithm.name == "grpo"
    assert load_config([algorithm("grpo")], ["algorithm.name=grpo-2"]).algorithm.name == "grpo-2"


def test_a_misspelt_key_of_a_micro_group_is_one_mistake_and_not_two():
    assert error_of(["algorithm.schedule=[{num_rolouts: 2}]"]) == (
        "algorithm.schedule[0].num_rolouts: unknown key; did you mean 'num_rollouts'?"
    )


def test_a_mistyped_file_of_configs_is_found_without_its_folder(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    assert "did you mean 'configs/tiny_cpu.yaml'?" in error_of([], [Path("tiny_cpu.yml")])


def test_a_missing_file_names_its_neighbour():
    message = error_of([], [CONFIGS / "tiny_cp.yaml"])
    assert "tiny_cp.yaml" in message and "did you mean" in message and "tiny_cpu.yaml" in message


@pytest.mark.parametrize(
    ("content", "substring"),
    [("lora: [", "not valid YAML"), ("- lora\n", "holds a list"), ("lora: 3\n", "lora: found 3")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, substring):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    assert substring in error_of([], [file])


def test_an_empty_file_or_name_is_a_mistake(tmp_path):
    """The defaults need no file; an empty one is a file that was not saved, or another than was meant."""
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing\n")
    assert (
        error_of([], [file]) == f"--config {file}: holds nothing; write sections with keys (lora: ...), or leave it out"
    )
    assert error_of([], [""]) == "--config: names no file; give the path of a YAML file"


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("user: {problem}", "user: {problem}"),
        ("{problem}", "{problem}"),
        ("[{problem}", "[{problem}"),
        ("Q {problem} # think", "Q {problem} # think"),
        ("{problem}\n", "{problem}\n"),
        ('"Q: {problem}\\n"', "Q: {problem}\n"),
    ],
)
def test_a_text_on_the_command_line_needs_no_quotes_of_yaml(value, taken):
    assert load_config([], [f"data.prompt_template={value}"]).data.prompt_template == taken


def test_a_text_that_yaml_takes_for_something_else_is_a_text():
    assert load_config([], ["run.name=007"]).run.name == "007"
    assert load_config([], ["data.eos_token=#end"]).data.eos_token == "#end"
    assert load_config([], ["data.eos_token=null"]).data.eos_token is None


# ----- what a later source retires


def test_a_key_that_a_later_source_makes_idle_is_dropped_with_a_line(tmp_path: Path) -> None:
    """A user changes one thing of a configuration whose file is to stay as it is."""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("optim: {betas: [0.8, 0.9], lr: 0.001}\nmodel: {attention: sdpa}\n")
    second.write_text("optim: {name: sgd}\n")
    lines: list[str] = []
    config = load_config([first, second], ["model.layout=rows"], notify=lines.append)
    assert config.optim.name == "sgd" and config.optim.lr == 0.001 and config.model.layout == "rows"
    assert sorted(lines) == [
        "model.attention: dropped, because it acts only with model.layout: tree, whose attention it is",
        "optim.betas: dropped, because it acts only with an optimizer of the Adam family",
    ]


@pytest.mark.parametrize("overrides", [["optim.betas=[0.1, 0.2]", "optim.name=sgd"], ["optim.betas=[0.1, 0.2]"]])
def test_an_idle_key_that_is_asked_for_last_is_an_error(tmp_path: Path, overrides: list[str]) -> None:
    file = tmp_path / "sgd.yaml"
    file.write_text("optim: {name: sgd}\n")
    with pytest.raises(ConfigError, match=r"optim\.betas: has no effect here: it acts with an optimizer of the Adam"):
        load_config(file, overrides)


def test_null_goes_back_to_the_default(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("optim: {lr: 0.001, grad_clip: 2.0}\ndata: {train: mine.jsonl}\n")
    config = load_config(file, ["optim.lr=null", "optim.grad_clip=null"])
    assert config.optim.lr == load_config().optim.lr and config.optim.grad_clip is None  # null is a value of its own


def test_one_stop_token_is_a_list_of_one():
    assert load_config([], ["data.stop_tokens=</s>"]).data.stop_tokens == ["</s>"]
