"""Show data.train as the trainer will see it: `prepare_data.py --config A.yaml [section.key=value ...]`."""

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite import cli

if __name__ == "__main__":
    parser = cli.ArgumentParser(description=__doc__)
    cli.add_config_arguments(parser, required=False)
    parser.add_argument("--out", metavar="FILE.jsonl", help="build a training set; killed, it goes on where it was")
    parser.add_argument(
        "--second", action="append", default=[], metavar="SOURCE", help="with --out: more traces of the same problems"
    )
    parser.add_argument("--restart", action="store_true", help="with --out: begin anew, whatever is there")
    cli.add_benchmark_arguments(parser, option="--decontaminate")
    parser.add_argument("--remove", action="store_true", help="with --decontaminate: drop what is found")
    parser.add_argument("--verify", action="store_true", help="grade the expert traces against the answers")
    parser.add_argument("--inspect", metavar="ID_OR_INDEX", help="show one problem, its prefixes and its losses")
    cli.prepare(parser.parse_intermixed_args())
