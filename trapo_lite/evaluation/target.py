"""Decide what is evaluated, on which problems, and where the results go."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trapo_lite.config import Config, load_config
from trapo_lite.config.overrides import sets
from trapo_lite.config.paths import check_sources
from trapo_lite.config.prompt_file import origin_line, prompt_file_of, sets_template
from trapo_lite.config.shipped import shipped_path
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation.registry import Benchmark, choose, load_registry
from trapo_lite.model.adapter_config import read_config
from trapo_lite.run.folder import final_adapter, load_run_config

WHOLE_CARD = 0.9  # rollout.gpu_memory_fraction if no trainer shares the card


@dataclass(frozen=True)
class EvalTarget:
    """Hold what is evaluated, on which problems, and where the results go.

    out:          folder for NAME.json and, beside it, the answers in NAME.jsonl
    adapter_dir:  a PEFT adapter on config.model; None: the model by itself
    benchmarks:   by name; empty: config.eval.data
    num_samples:  draws for each problem of the benchmarks; None: each benchmark's own number
    num_problems: use the first ones of each benchmark; None: all
    allow_part:   a benchmark's file may hold fewer problems than the benchmark
    restart:      discard results of the same names in `out`
    origin_line:  says where the prompts of a model come from; empty if the user gave them, or a run has them
    run:          the run whose base is evaluated, with or without its adapter; None: a model by itself
    is_prompt_given: the user set data.prompt_template
    """

    config: Config
    adapter_dir: Path | None
    out: Path
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)
    num_samples: int | None = None
    num_problems: int | None = None
    allow_part: bool = False
    restart: bool = False
    origin_line: str = ""
    run: Path | None = None
    is_prompt_given: bool = False

    @property
    def model_name(self) -> str:
        base = self.config.model.name
        return base if self.adapter_dir is None else f"{base} + {self.adapter_dir}"


def target_from_arguments(
    *,
    run: Path | None,
    model: str | None,
    adapter: Path | None,
    base: bool,
    data: str | None,
    benchmarks: Sequence[str],
    registry: Path,
    allow_part: bool,
    num_samples: int | None,
    out: Path | None,
    restart: bool,
    config: Sequence[str],
    overrides: Sequence[str],
) -> EvalTarget:
    """Return the target of the arguments of evaluate. Raise ConfigError if they contradict or name nothing.

    run:   evaluate its adapter (`adapter`, by default run/adapter) unmerged on its base, or the base alone with `base`;
           results in run/eval/NAME
    model: evaluate it by itself; results in ./eval/NAME, or ./eval/RUN-merged for RUN/merged. A checkpoint's own
           prompts and ends of answers are taken, unless `config` or `overrides` set data.prompt_template
    """
    data, model = (None if text is None else shipped_path(text) for text in (data, model))
    every_override = [*overrides, *_set_by_options(overrides, data=data, num_samples=num_samples, model=model)]
    is_given = sets_template(config, overrides)
    own_prompt = None if model is None else prompt_file_of(model)
    if run is not None:
        resolved = load_run_config(run, config, every_override)
    elif own_prompt is None or is_given:
        resolved = load_config(config, every_override)
    else:
        resolved = load_config([own_prompt, *config], every_override)
    if run is None:
        if base or adapter is not None:
            raise ConfigError("--base, --adapter: say which adapter of a run; give --run instead of --model")
        name, adapter_dir = _name_of(resolved.model.name), None
    else:
        adapter_dir = _adapter_of(run, adapter, base=base)
        name = "base" if adapter_dir is None else adapter_dir.resolve().name
    if not sets("rollout.gpu_memory_fraction", overrides):  # the configuration's value leaves room for a trainer
        rollout = resolved.rollout.model_copy(update={"gpu_memory_fraction": WHOLE_CARD})
        resolved = resolved.model_copy(update={"rollout": rollout})
    if data is not None:
        check_sources(data, option="--data")
    if benchmarks and data is not None:
        raise ConfigError("--data, --benchmarks: two kinds of problems; give one of them")
    return EvalTarget(
        config=resolved,
        adapter_dir=adapter_dir,
        out=out or (Path("eval") if run is None else run / "eval") / name,
        benchmarks=choose(load_registry(registry), benchmarks) if benchmarks else {},
        num_samples=num_samples,
        # The configuration's number is for the small set that is evaluated during training.
        num_problems=resolved.eval.num_problems if sets("eval.num_problems", overrides) else None,
        allow_part=allow_part,
        restart=restart,
        origin_line="" if model is None else origin_line(model, own_prompt, resolved.data, is_given=is_given),
        run=run,
        is_prompt_given=is_given,
    )


def _set_by_options(
    overrides: Sequence[str], *, data: str | None, num_samples: int | None, model: str | None
) -> list[str]:
    """Return the overrides that options stand for. Raise ConfigError if `overrides` set the same keys."""
    if num_samples is not None and num_samples < 1:
        raise ConfigError(f"--num-samples: found {num_samples}; draw at least one answer a problem")
    options = {
        "--data": ("eval.data", data),
        "--num-samples": ("eval.num_samples", num_samples),
        "--model": ("model.name", model),
    }
    given = {option: (key, value) for option, (key, value) in options.items() if value is not None}
    for option, (key, _) in given.items():
        if sets(key, overrides):
            raise ConfigError(f"{option}: {key} is given as well; give one of them")
    return [f"{key}={json.dumps(value)}" for key, value in given.values()]


def _name_of(model: str) -> str:
    """Return RUN-merged for a folder RUN/merged, NAME for a hub id OWNER/NAME."""
    folder = Path(model)
    return "-".join(folder.resolve().parts[1:][-2:]) if folder.is_dir() else folder.name


def _adapter_of(run: Path, adapter: Path | None, *, base: bool) -> Path | None:
    if base and adapter is not None:
        raise ConfigError(f"--base: is the model without an adapter, but --adapter {adapter} is one; choose one")
    if base:
        return None
    folder = adapter or final_adapter(run)
    read_config(folder, option="--adapter")
    return folder
