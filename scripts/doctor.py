"""Check this machine before a first run: `doctor.py [--config FILE.yaml ... section.key=value ...] [--json]`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - pip checks it, a user who starts this file has not asked pip
        sys.exit(f"error: python {sys.version.split()[0]} is too old; use Python 3.11 to 3.13 (make setup finds one)")
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(1, str(root))  # also if the project is not installed

    import setup_env

    from trapo_lite.doctor.command import main
    from trapo_lite.doctor.findings import Needs

    requirements = setup_env.project_of(root)["dependencies"]
    plugin, plugin_version = setup_env.NF4_PLUGIN.split("==")
    pins = {"torch": setup_env.TORCH, "vllm": setup_env.VLLM, plugin: plugin_version}
    needs = Needs(requirements, pins, setup_env.BROKEN_ON_CPU)
    sys.exit(main(needs))
