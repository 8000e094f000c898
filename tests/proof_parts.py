"""Parts for tests/test_gpu_proof.py: one that works, and one of each way not to."""

import subprocess
import sys
import time
from pathlib import Path

from gpu_proof import Record, Setting, Skipped


def works(setting: Setting, record: Record) -> None:
    record("answer", 42)
    record("folders", {"work": setting.work != "", "exact": 0.125})


def fails(setting: Setting, record: Record) -> None:
    record("before", 1)
    raise ValueError("the reason to be seen")


def hangs(setting: Setting, record: Record) -> None:
    """Start a child, as an engine would be, and wait for ever."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(setting.work, "child").write_text(str(child.pid))
    record("child", child.pid)
    time.sleep(600)


def skips(setting: Setting, record: Record) -> None:
    raise Skipped("there is no such card")
