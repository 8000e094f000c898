"""Define the commands that run the trainer, or plan a run.

prog: how the user called the command, for its messages
"""

from collections.abc import Sequence

from trapo_lite.cli.arguments import ArgumentParser, add_config_arguments, read_config
from trapo_lite.cli.dry_run import dry_run
from trapo_lite.cli.endings import exit_on_user_error, exit_when_stopped
from trapo_lite.config.paths import check_paths
from trapo_lite.core.errors import ConfigError


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
            dry_run(config, restart=args.restart)
            return
        with exit_when_stopped(config.run.folder):
            from trapo_lite.run.launch import end_with_launcher

            end_with_launcher()  # before what takes seconds to import
            from trapo_lite.training.trainer import train as train_job

            train_job(config, restart=args.restart)


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
