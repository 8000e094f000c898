"""Load and call a reward function of the user's, in a worker process."""

import asyncio
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PARAMETERS = {
    "problem": "text of the problem",
    "answer": "the row's answer, a text; empty if it has none",
    "response": "text of the response",
    "row": "the row's columns, a dict",
    "is_truncated": "whether the response was cut at the length limit",
    "num_tokens": "number of tokens of the response",
    "step": "the run's step; -1 in an evaluation",
}
"""Maps each parameter that a function may take to its meaning."""
MAX_TRACEBACK_CHARS = 4000
LARGEST = 1e9  # of what a function may return: advantages are computed in float32
_IMPORTLIB = str(Path(importlib.__file__).parent)


class LoadError(Exception):
    """A function cannot be loaded, or takes what it is not given; the text is for the user."""


def load(path: str) -> Callable[[Mapping[str, Any]], tuple[str, float | None, str | None]]:
    """Return the function at FILE.py:NAME or PACKAGE.MODULE:NAME as a judge of responses. Raises LoadError.

    The judge returns ("correct" from 1 on, or "wrong", value, None), ("unjudged", None, None) where the function
    returns None, and ("failed", None, traceback) where it raises an error or returns anything but a finite number.
    """
    where, _, name = path.rpartition(":")
    function = _named(_module(where), name, path)
    taken = _taken_parameters(function, path)
    runner = asyncio.Runner()

    def judge(response: Mapping[str, Any]) -> tuple[str, float | None, str | None]:
        try:
            value = function(**{parameter: response[parameter] for parameter in taken})
            if inspect.isawaitable(value):
                value = runner.run(_awaited(value))
            if value is None:
                return "unjudged", None, None
            number = as_number(value)
        except MemoryError:
            raise  # ends this process, as what was taken may never be given back
        except BaseException as error:  # also what ends a program or cancels a task
            return "failed", None, _own_traceback(error)
        return "correct" if number >= 1.0 else "wrong", number, None

    return judge


def as_number(value: Any) -> float:
    """Return a number of Python, NumPy or torch as a float; raise TypeError or ValueError for anything else."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"it returned {value!r:.100} ({type(value).__name__}); return a number, or None for no verdict")
    number = float(value)
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(f"it returned {number}; return a finite number up to {LARGEST:g}, or None for no verdict")
    return number


async def _awaited(value: Any) -> Any:
    return await value


def _module(where: str) -> Any:
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, os.getcwd())
            return importlib.import_module(where)
        file = Path(where).expanduser().resolve()
        sys.path.insert(0, str(file.parent))  # for what it imports beside itself
        name = f"reward_functions_in_{file.stem}_{zlib.crc32(bytes(file))}"  # not a name that others import
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError("it is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # as pickle and dataclasses expect
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise LoadError(f"{where} cannot be imported: {_own_traceback(error)}") from None
    return module


def _named(module: Any, name: str, path: str) -> Callable[..., Any]:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
            has = f"it has {', '.join(names)}" if names else "it has no function"
            raise LoadError(f"{path}: there is no {part!r}; {has}")
        found = getattr(found, part)
    if not callable(found) or inspect.isclass(found):
        raise LoadError(f"{path}: is a {'class' if inspect.isclass(found) else type(found).__name__}, not a function")
    return found


def _taken_parameters(function: Callable[..., Any], path: str) -> list[str]:
    """Return which of PARAMETERS the function takes. Raise LoadError if it wants others."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        raise LoadError(f"{path}: its parameters cannot be read; write a Python function around it") from None
    taken, wrong = [], []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name in PARAMETERS and parameter.kind is not parameter.POSITIONAL_ONLY:
            taken.append(parameter.name)
        elif parameter.default is parameter.empty:
            wrong.append(parameter.name)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    if takes_all and not wrong:
        return list(PARAMETERS)
    if wrong or not taken:
        found = f"it takes {', '.join(wrong)}" if wrong else "it takes nothing"
        may_take = "; ".join(f"{name} ({meaning})" for name, meaning in PARAMETERS.items())
        raise LoadError(f"{path}: {found}; a reward function may take, by these names: {may_take}")
    return taken


def _own_traceback(error: BaseException) -> str:
    """Return the traceback without this module's own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith((__file__, "<frozen", _IMPORTLIB)):
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames)
    text = "".join(lines)[-MAX_TRACEBACK_CHARS:].strip()
    return text.encode(errors="backslashreplace").decode()  # a row may hold half of a surrogate pair
