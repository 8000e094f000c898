"""What data.train holds, as the trainer will see it: `prepare_data.py --config A.yaml [section.key=value ...]`."""

import argparse
import sys

from trapo_lite.prepare import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; several merge in order")
    parser.add_argument("--out", metavar="FILE", help="write the kept rows here, as JSON lines in the simple form")
    parser.add_argument("--verify", action="store_true", help="grade the expert traces against the answers")
    parser.add_argument("--inspect", metavar="ID_OR_INDEX", help="show one problem and where its prefixes are cut")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = parser.parse_intermixed_args()
    sys.exit(main(args.config, args.overrides, out=args.out, verify=args.verify, inspect=args.inspect))
