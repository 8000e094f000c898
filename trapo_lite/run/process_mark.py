"""Mark a run's folder with the process that writes to it, so that the next one can tell how that process ended."""

import json
import os
import platform
import time
from pathlib import Path

from trapo_lite.run.files import naming, write_whole


class ProcessMark:
    """A ProcessMark is a file with the host, the process and the start of a run, which only a killed run leaves."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._is_set = False

    def set(self) -> None:
        """Write the file for this process."""
        begun = time.strftime("%Y-%m-%d %H:%M:%S %z")
        values = {"host": platform.node(), "process": os.getpid(), "begun": begun}
        with naming(self._file):
            write_whole(self._file, json.dumps(values, ensure_ascii=False) + "\n")
        self._is_set = True

    def remove(self) -> None:
        """Remove the file if this process wrote it."""
        if self._is_set:
            self._file.unlink(missing_ok=True)
            self._is_set = False

    def died(self) -> str | None:
        """Return which process left the file, or None if there is none. Call this with the folder locked."""
        try:
            values = json.loads(self._file.read_text(encoding="utf-8"))
            return f"process {values['process']} on host {values['host']}, begun {values['begun']}"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            return "process not known"
