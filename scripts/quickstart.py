"""What `make quickstart` runs: evaluate, train, merge and evaluate again, on the tiny world. [--seed N] [--restart]"""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite import cli

if __name__ == "__main__":
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the whole run (default 0)")
    parser.add_argument("--restart", action="store_true", help="set an existing run of this seed aside and start anew")
    args = parser.parse_args()
    cli.quickstart(seed=args.seed, restart=args.restart)
