"""Import the files of reward functions: each once in a process, and each with the modules beside it."""

import contextlib
import importlib
import importlib.util
import os
import sys
import zlib
from pathlib import Path
from types import ModuleType


class OwnModules:
    """OwnModules holds what was imported from the folders of reward functions in this process.

    One folder at a time is the first entry of sys.path. When another one is entered, the modules beside the old one
    leave sys.modules until it is entered again, so that two folders may hold different modules of one name. Installed
    packages stay.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._modules_by_folder: dict[str, dict[str, ModuleType]] = {}
        self._module_by_file: dict[Path, ModuleType] = {}
        self._names_of_others = frozenset(sys.modules)

    def load(self, where: str) -> tuple[ModuleType, str]:
        """Return the module of FILE.py or PACKAGE.MODULE, and the folder to enter before a function of it is called."""
        if not where.endswith(".py"):
            self.enter(os.getcwd())
            return importlib.import_module(where), os.getcwd()
        file = Path(where).expanduser().resolve()
        self.enter(str(file.parent))
        if file not in self._module_by_file:
            self._module_by_file[file] = _executed(file)
        return self._module_by_file[file], str(file.parent)

    def enter(self, folder: str) -> None:
        """Make imports find what is in this folder first, as if a file in it had been started by `python FILE.py`."""
        if folder == self._folder:
            return
        self.leave()
        sys.path.insert(0, folder)
        sys.modules.update(self._modules_by_folder.pop(folder, {}))
        self._folder = folder

    def leave(self) -> None:
        """Let imports find installed packages only, as code that is not the user's needs."""
        if self._folder is None:
            return
        self._modules_by_folder[self._folder] = self._take_out(self._folder)
        with contextlib.suppress(ValueError):  # a function may have changed sys.path
            sys.path.remove(self._folder)
        self._folder = None

    def _take_out(self, folder: str) -> dict[str, ModuleType]:
        """Remove the modules and packages that lie in this folder from sys.modules, and return them."""
        modules = list(sys.modules.items())
        beside = {
            name
            for name, module in modules
            if "." not in name and name not in self._names_of_others and _lies_in(module, folder)
        }
        return {name: sys.modules.pop(name) for name, _ in modules if name.partition(".")[0] in beside}


def _executed(file: Path) -> ModuleType:
    name = f"reward_functions_in_{file.stem}_{zlib.crc32(bytes(file))}"  # not a name that others import
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as pickle and dataclasses expect
    spec.loader.exec_module(module)
    return module


def _lies_in(module: ModuleType, folder: str) -> bool:
    spec = getattr(module, "__spec__", None)
    paths = [] if spec is None else [*(spec.submodule_search_locations or [spec.origin])]
    return any(path is not None and os.path.dirname(path) == folder for path in paths)
