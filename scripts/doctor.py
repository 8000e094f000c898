"""Check this machine before a first run: `doctor.py [--config FILE.yaml ... section.key=value ...] [--json]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - pip checks it, a user who starts this file has not asked pip
        sys.exit(f"error: python {sys.version.split()[0]} is too old; use Python 3.11 to 3.13 (make setup finds one)")
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))  # also if the project is not installed

    from trapo_lite.run.interrupts import end_at_once

    end_at_once()  # before what takes seconds to import

    from trapo_lite.doctor.command import doctor

    doctor()
