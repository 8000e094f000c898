"""Show data.train as the trainer will see it: `prepare_data.py --config A.yaml [section.key=value ...]`."""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite.cli import prepare

if __name__ == "__main__":
    prepare()
