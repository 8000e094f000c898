"""What data.train holds, as the trainer will see it: `prepare_data.py --config A.yaml [section.key=value ...]`."""

import argparse

from trapo_lite import cli

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    cli.add_config_arguments(parser, required=False)
    parser.add_argument("--out", metavar="FILE", help="write the kept rows here, as JSON lines in the simple form")
    parser.add_argument("--verify", action="store_true", help="grade the expert traces against the answers")
    parser.add_argument("--inspect", metavar="ID_OR_INDEX", help="show one problem and where its prefixes are cut")
    args = vars(parser.parse_intermixed_args())
    with cli.exit_on_user_error():
        from trapo_lite.prepare import prepare

        prepare(cli.load_config(args.pop("config"), args.pop("overrides")), **args)
