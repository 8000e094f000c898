"""Merge a run's adapter into its base: `export.py --run runs/NAME [section.key=value ...]`.

The checkpoint is refused if its log-probs are not those of base + adapter.
"""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import export

if __name__ == "__main__":
    export()
