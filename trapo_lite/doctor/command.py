"""Run the command doctor: read its arguments, print the report, return the exit code."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trapo_lite.doctor.facts import Facts, collect
from trapo_lite.doctor.findings import Finding, Needs
from trapo_lite.doctor.hub import HubAnswers, ask
from trapo_lite.doctor.machine import check_machine
from trapo_lite.doctor.packages import check_software
from trapo_lite.run.help_page import HelpPage, examples_text
from trapo_lite.run.tested_versions import BROKEN_ON_CPU, NF4_PLUGIN, TORCH, VLLM

if TYPE_CHECKING:  # pydantic may be missing
    from trapo_lite.config import Config

CHECKOUT = Path(__file__).resolve().parents[2]  # or what an installed package lies in
BROKEN_PACKAGE = (ImportError, OSError, AttributeError, RuntimeError, TypeError, NameError, ValueError)
"""The errors from importing a package that is missing, half installed or built for something else."""
EXAMPLES = [
    ("", "Check this machine."),
    ("--config 8xA100_lora.yaml --num-gpus 8", "Check it for a run on eight cards."),
]


def doctor(arguments: Sequence[str] | None = None, *, prog: str = "doctor.py") -> NoReturn:
    """Check this machine by the requirements of the project, and end with the exit code of `main`."""
    plugin, plugin_version = NF4_PLUGIN.split("==")
    pins = {"torch": TORCH, "vllm": VLLM, plugin: plugin_version}
    sys.exit(main(Needs(requirements(), pins, BROKEN_ON_CPU), arguments, prog=prog))


def requirements() -> list[str]:
    """Return the project's requirements: of the checkout if this is one, else of the installed package."""
    file = CHECKOUT / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file.is_file() else {}
    if project.get("name") == "trapo_lite":
        return project["dependencies"]
    return [text for text in metadata.requires("trapo_lite") or () if "extra ==" not in text]


def parse_arguments(arguments: Sequence[str] | None, *, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Check driver, cards, memory, disk, packages and the hub, and with --config what a configuration "
        "needs. Each line says ok, warning or error, and what to do. The exit code is 1 if there is an error.",
        epilog=examples_text(EXAMPLES),
        formatter_class=HelpPage,
    )
    group = parser.add_argument_group("configuration")
    several = "a YAML file; several are merged from left to right"
    group.add_argument("--config", action="append", default=[], metavar="FILE.yaml", help=several)
    option = "an option, such as rollout.engine=transformers"
    group.add_argument("overrides", nargs="*", metavar="section.key=value", help=option)
    group.add_argument("--num-gpus", type=int, metavar="N", help="trainer processes, one for each GPU (default 1)")
    group.add_argument("--sharded", action="store_true", help="shard the base over the GPUs, by FSDP2")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    args = parser.parse_intermixed_args(arguments)
    if args.num_gpus is not None and args.num_gpus < 1:
        parser.error(f"--num-gpus: found {args.num_gpus}; give 1 or more")
    if not (args.config or args.overrides) and (args.num_gpus is not None or args.sharded):
        parser.error("--num-gpus, --sharded: are about a configuration; name one with --config")
    return args


def main(needs: Needs, arguments: Sequence[str] | None = None, *, prog: str = "doctor.py") -> int:
    """Print the report. Return 0, 1 if a finding is an error, or 2 if the configuration is wrong."""
    args = parse_arguments(arguments, prog=prog)
    say = functools.partial(print, file=sys.stderr, flush=True)
    config, findings = None, []
    if args.config or args.overrides:
        try:
            from trapo_lite.config import load_config
            from trapo_lite.config.shipped import taken_lines
            from trapo_lite.core.errors import ConfigError
        except BROKEN_PACKAGE as error:
            findings = [cannot_check(error)]
        else:
            try:
                config = load_config(args.config, args.overrides, notify=say)
                for line in taken_lines(args.config):
                    say(line)
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    with ThreadPoolExecutor(2) as pool:
        facts_to_come = pool.submit(collect, needs.packages(), asks_hub=config is None)
        answers = pool.submit(ask, config) if config is not None else None
        broken = import_what_checks_need() if config is not None else None  # takes as long as the others
        facts = facts_to_come.result()
    findings = [*check_machine(facts), *check_software(facts, needs), *findings]
    if broken is not None:
        findings.append(broken)
    elif config is not None and answers is not None:
        findings += check_config(config, facts, args, answers.result())
    print(as_json(findings) if args.json else "\n".join(report_lines(findings)))
    if any("make setup" in finding.cure for finding in findings) and not (CHECKOUT / "Makefile").is_file():
        say("make setup is a command of the project's checkout; this trapo_lite was installed by pip, so use pip")
    return 1 if any(finding.status == "error" for finding in findings) else 0


def import_what_checks_need() -> Finding | None:
    """Import what the checks of a configuration need. Return a finding if a package is broken."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # the report is all that is printed
    try:
        importlib.import_module("trapo_lite.doctor.configuration")
    except BROKEN_PACKAGE as error:
        return cannot_check(error)
    return None


def check_config(config: Config, facts: Facts, args: argparse.Namespace, answers: HubAnswers) -> list[Finding]:
    """Return the findings on a configuration."""
    from trapo_lite.doctor.configuration import Launch, check_configuration

    launch = Launch(num_gpus=args.num_gpus or 1, is_sharded=args.sharded)
    return list(check_configuration(config, facts, launch, answers))


def cannot_check(error: Exception) -> Finding:
    text = " ".join(str(error).split()) or type(error).__name__
    return Finding("error", "configuration", f"cannot be checked: {text}", "fix the packages above, then try again")


def report_lines(findings: Sequence[Finding]) -> Iterator[str]:
    r"""Yield one line for each finding, and a last line with the counts.

    >>> print(*report_lines([Finding("warning", "hub", "no answer", "check the network")]), sep="\n")
    warning  hub  no answer; check the network
    <BLANKLINE>
    0 errors, 1 warning
    """
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        cure = f"; {finding.cure}" if finding.cure else ""
        yield f"{finding.status:7}  {finding.check:{width}}  {finding.found}{cure}"
    yield ""
    errors, warnings = (sum(finding.status == status for finding in findings) for status in ("error", "warning"))
    yield f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"


def as_json(findings: Sequence[Finding]) -> str:
    return json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1, ensure_ascii=False)
