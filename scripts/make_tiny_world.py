"""Rebuild the tiny world: `make_tiny_world.py data` (rows, seconds) or `base` (the base model, by pretraining)."""

import sys

import needs_setup  # noqa: F401 - ends with a message where the packages are missing


def main() -> None:
    match sys.argv[1:]:
        case ["data"]:
            from trapo_lite.tiny_world.problems import write_data

            write_data()
        case ["base"]:
            from trapo_lite.tiny_world.pretrain import pretrain

            pretrain()
        case _:
            sys.exit("usage: python scripts/make_tiny_world.py data|base")


if __name__ == "__main__":
    main()
