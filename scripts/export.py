"""Merge a run's adapter into its base: `export.py --run runs/NAME [section.key=value ...]`.

The checkpoint is refused if its log-probs are not those of base + adapter.
"""

from pathlib import Path

import needs_setup  # noqa: F401 - ends with a message where the packages are missing

from trapo_lite import cli

if __name__ == "__main__":
    parser = cli.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="default: RUN/adapter")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/merged")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: model.dtype of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace a checkpoint that is there")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    args = vars(parser.parse_intermixed_args())
    with cli.exit_on_user_error():
        from trapo_lite.export.merge import export_run

        report = export_run(args.pop("run"), args.pop("overrides"), adapter_dir=args.pop("adapter"), **args)
    print("\n".join(report.lines()))
