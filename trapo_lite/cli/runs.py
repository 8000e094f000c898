"""Define the commands that run the trainer, or plan a run.

prog: how the user called the command, for its messages
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trapo_lite.cli.arguments import ArgumentParser, add_config_arguments, read_config
from trapo_lite.cli.endings import exit_on_user_error, exit_when_stopped
from trapo_lite.config import Config
from trapo_lite.config.paths import check_paths
from trapo_lite.config.unusual import unusual_lines
from trapo_lite.core.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(arguments: Sequence[str] | None = None, *, prog: str = "train.py") -> None:
    """Train a policy, or resume its run."""
    parser = ArgumentParser(
        prog=prog,
        description="Train a LoRA adapter by TRAPO, GRPO, LUFFY or SFT. The run is written to runs/NAME "
        "(run.dir, run.name). If it exists already, it is resumed from its last checkpoint.",
        examples=[
            ("--config tiny_cpu.yaml run.name=first", "Train the tiny world on two CPU cores."),
            ("--config smollm2_135m.yaml data.train=YOURS.jsonl --dry-run", "Check a run on your own problems."),
            ("--config tiny_cpu.yaml --config algorithm/grpo.yaml run.name=grpo", "Train by GRPO instead of TRAPO."),
        ],
    )
    add_config_arguments(parser)
    group = parser.add_argument_group("how to run")
    group.add_argument(
        "--dry-run", action="store_true", help="check the configuration, print the plan of a step and end"
    )
    group.add_argument("--restart", action="store_true", help="rename an existing run of this name and start again")
    args = parser.parse_intermixed_args(arguments)
    with exit_on_user_error():
        config = read_config(args)
        check_paths(config)  # before what takes seconds to import
        if args.dry_run:
            for line in itertools.chain(unusual_lines(config), _dry_run(config)):
                print(line, flush=True)
            return
        with exit_when_stopped(config.run.folder):
            from trapo_lite.run.launch import end_with_launcher

            end_with_launcher()  # before what takes seconds to import
            from trapo_lite.training.trainer import train as train_job

            train_job(config, restart=args.restart)


def _dry_run(config: Config) -> Iterator[str]:
    """Check the model and its tokenizer, and yield the plan of a step; at the end ask vLLM, which takes seconds."""
    from trapo_lite.data.template import check_prompt, open_turn_warnings
    from trapo_lite.data.tokens import load_tokenizer
    from trapo_lite.engines.start import ask_vllm, check_served
    from trapo_lite.model.base import model_lines, model_shape, with_one_rope
    from trapo_lite.model.layout import check_model
    from trapo_lite.model.saved_adapter import check_start
    from trapo_lite.planning.memory import checkpoint_bytes
    from trapo_lite.planning.report import plan_lines
    from trapo_lite.run.loggers import check_loggers
    from trapo_lite.run.outlook import disk_line
    from trapo_lite.training.inputs import check_start_fits

    check_loggers(config)
    if not _is_readable(config.model.name):
        if config.lora.init_from is not None:
            check_start(config.lora)
        yield from plan_lines(config)
        yield (
            f"warning: model.name: {config.model.name} is no folder here, so it is taken for a hub id: nothing of the "
            "model was checked, nor its tokenizer, its template, the data or the engine; name a local folder "
            "to check them"
        )
        return
    config, rope_lines = with_one_rope(config, max_model_len=config.max_model_len)
    layout = check_model(config)
    if config.uses_engine:
        check_served(config)
    check_start_fits(config, reads_weights=False)
    tokenizer = load_tokenizer(config.model.name)
    prompt = check_prompt(config.data, tokenizer, model=config.model.name)
    yield from plan_lines(config)
    yield disk_line(config, checkpoint_bytes(config, model_shape(config).adapter_parameters))
    yield from _data_lines(config, tokenizer)
    yield from [*model_lines(config.model), *rope_lines]
    yield layout.line or "layout: tree"
    yield prompt
    yield from open_turn_warnings(config.data, tokenizer)
    if config.uses_engine and config.rollout.engine == "vllm":
        yield "asking vLLM whether it serves this class of models, which takes it some seconds"
        yield ask_vllm(config, notify=functools.partial(print, flush=True))


def _data_lines(config: Config, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Yield what a run would say of its data and its reward functions. A data set of the hub is not read."""
    from trapo_lite.data.tokens import text_of
    from trapo_lite.reward import Scorer
    from trapo_lite.reward.expert_check import expert_lines
    from trapo_lite.reward.start_check import require_loadable, start_lines
    from trapo_lite.training.inputs import read_eval_problems, read_problems, share_lines

    in_eval = config.eval.data if config.eval.every and config.eval.data is not None else []
    sources = [*config.data.sources, *([in_eval] if isinstance(in_eval, str) else in_eval)]
    remote = [source for source in sources if not Path(source).expanduser().is_file()]
    if remote:
        require_loadable(config.reward)
        yield f"data: {', '.join(remote)} is read from the hub when the run starts, so its rows were not checked"
        return
    problems, report, order = read_problems(config, tokenizer)
    read_eval_problems(config, tokenizer)
    yield from [*report.lines(), *share_lines(config, order)]
    decode = functools.partial(text_of, tokenizer)
    with Scorer(config.reward, notify=functools.partial(print, flush=True)) as scorer:
        yield from start_lines(config.reward, scorer, problems, decode)
        if config.algorithm.uses_experts:
            yield from expert_lines(scorer, problems, decode)


def _is_readable(name: str) -> bool:
    """Return whether the model is a folder, or a hub id whose config.json and tokenizer are cached or can be had."""
    from trapo_lite.data.tokens import load_tokenizer
    from trapo_lite.model.base import multimodal_type

    if Path(name).is_dir():
        return True  # what is wrong in it is an error
    try:
        multimodal_type(name)
        load_tokenizer(name)
    except (ConfigError, DataError, ModelError):
        return False
    return True


def plan(arguments: Sequence[str] | None = None, *, prog: str = "plan.py") -> None:
    """Print the plan of a step."""
    parser = ArgumentParser(
        prog=prog,
        description="Print how much memory and time a step takes on each GPU, and which options make it fit. "
        "No model is loaded and no GPU is needed. The exit code is 1 if the step does not fit.",
        examples=[
            ("--config 1x24GB_qlora.yaml --gpu 3090", "Plan a step on one RTX 3090."),
            ("--config 8xA100_lora.yaml --gpu A100 --num-gpus 8", "Plan a step on eight A100 cards."),
        ],
    )
    add_config_arguments(parser)
    group = parser.add_argument_group("machine")
    group.add_argument("--gpu", metavar="NAME", help="such as A100, 3090 or 'RTX 4090' (default)")
    group.add_argument("--gpu-memory", metavar="24GB", help="memory of each GPU that CUDA gives out; default: --gpu's")
    group.add_argument("--num-gpus", type=int, default=1, metavar="N", help="trainer processes, one for each GPU")
    group.add_argument("--sharded", action="store_true", help="shard the base over the GPUs, by FSDP2")
    args = parser.parse_intermixed_args(arguments)
    with exit_on_user_error():
        config = read_config(args)
        from trapo_lite.planning.report import memory_report, parse_memory

        memory = None if args.gpu_memory is None else parse_memory(args.gpu_memory)
        if args.num_gpus < 1:
            raise ConfigError(f"--num-gpus: found {args.num_gpus}; give 1 or more")
        report = memory_report(
            config, gpu_name=args.gpu, gpu_memory=memory, num_gpus=args.num_gpus, is_sharded=args.sharded
        )
        print("\n".join(report.lines))
        if report.problem is not None:
            raise SystemExit(1)


def quickstart(arguments: Sequence[str] | None = None, *, prog: str = "quickstart.py") -> None:
    """Evaluate, train, merge and evaluate again on the tiny world."""
    parser = ArgumentParser(
        prog=prog,
        description="Evaluate a tiny model, train it, merge the adapter and evaluate again. This takes some minutes "
        "on two CPU cores and needs no download. The run is written to ./runs. An interrupted quickstart is resumed by "
        "the same command.",
        examples=[("--seed 1", "Train with another seed.")],
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the whole run (default 0)")
    parser.add_argument("--restart", action="store_true", help="rename an existing run of this seed and start again")
    args = parser.parse_args(arguments)
    with exit_on_user_error(), exit_when_stopped():
        from trapo_lite.quickstart import quickstart as quickstart_job

        quickstart_job(seed=args.seed, restart=args.restart)
