"""Load and call a reward function of the user's, in a worker process."""

import asyncio
import importlib
import inspect
import math
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from trapo_lite.reward import own_modules
from trapo_lite.reward.own_modules import OwnModules

Judge = Callable[[Mapping[str, Any]], tuple[str, float | None, str | None]]

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
_OWN_FRAMES = (__file__, own_modules.__file__, "<frozen", str(Path(importlib.__file__).parent))


class LoadError(Exception):
    """A function cannot be loaded, or takes what it is not given; the text is for the user."""


def load(path: str, modules: OwnModules) -> tuple[Judge, list[str]]:
    """Return the function at FILE.py:NAME or PACKAGE.MODULE:NAME as a judge, and which of PARAMETERS it takes.

    The judge gets at least these of a response. It returns ("correct" from 1 on, or "wrong", value, None),
    ("unjudged", None, None) where the function returns None, and ("failed", None, traceback) where it raises an error
    or returns anything but a finite number. Raises LoadError.
    """
    where, _, name = path.rpartition(":")
    try:
        module, folder = modules.load(where)
    except (Exception, SystemExit) as error:
        raise LoadError(f"{where} cannot be imported: {_own_traceback(error)}") from None
    function = _named(module, name, path)
    taken = _taken_parameters(function, path)
    runner = asyncio.Runner()

    def judge(response: Mapping[str, Any]) -> tuple[str, float | None, str | None]:
        modules.enter(folder)  # for imports inside the function
        try:
            returned = function(**{parameter: response[parameter] for parameter in taken})
            if inspect.isawaitable(returned):
                returned = runner.run(_awaited(returned))
            if returned is None:
                return "unjudged", None, None
            value = as_number(returned)
        except MemoryError:
            raise  # ends this process, as what was taken may never be given back
        except BaseException as error:  # also what ends a program or cancels a task
            return "failed", None, _own_traceback(error)
        return "correct" if value >= 1.0 else "wrong", value, None

    return judge, taken


def as_number(returned: Any) -> float:
    """Return a number of Python, NumPy or torch as a float; raise TypeError or ValueError for anything else."""
    if isinstance(returned, (str, bytes)) or not hasattr(returned, "__float__"):
        kind = type(returned).__name__
        raise TypeError(f"it returned {returned!r:.100} ({kind}); return a number, or None for no verdict")
    value = float(returned)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"it returned {value}; return a finite number up to {LARGEST:g}, or None for no verdict")
    return value


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _named(module: ModuleType, name: str, path: str) -> Callable[..., Any]:
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            names = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
            has = f"it has {', '.join(names)}" if names else "it has no function"
            raise LoadError(f"{path}: there is no {part!r}; {has}")
        function = getattr(function, part)
    if not callable(function) or inspect.isclass(function):
        kind = "a class" if inspect.isclass(function) else f"of type {type(function).__name__}"
        raise LoadError(f"{path}: is {kind}, not a function")
    return function


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
        takes = f"it takes {', '.join(wrong)}" if wrong else "it takes nothing"
        may_take = "; ".join(f"{name} ({meaning})" for name, meaning in PARAMETERS.items())
        raise LoadError(f"{path}: {takes}; a reward function may take, by these names: {may_take}")
    return taken


def _own_traceback(error: BaseException) -> str:
    """Return the traceback without the frames of this package and of importlib."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OWN_FRAMES):
        frames = frames.tb_next
    lines = traceback.format_exception(type(error), error, frames)
    text = "".join(lines)[-MAX_TRACEBACK_CHARS:].strip()
    return text.encode(errors="backslashreplace").decode()  # a row may hold half of a surrogate pair
