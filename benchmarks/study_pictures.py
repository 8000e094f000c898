"""Draw what benchmarks/study.jsonl says: the final accuracy of all methods in all worlds, and the way to it.

python benchmarks/study_pictures.py docs/pictures     # study_means.svg, study_curves.svg
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from expert_worlds import SOLVERS
from matplotlib import pyplot
from study import RESULTS, read_results, sees_experts
from study_report import GROUPS, Study

COLUMNS = 4


def draw_curves(study: Study, methods: Sequence[str], file: Path) -> None:
    """Draw accuracy on the development problems over the steps, one panel for each world."""
    curves = {
        (world, method): [row["dev"] for row in study.rows(world, method).values() if row["dev"]]
        for world in SOLVERS
        for method in methods
    }
    worlds = [world for world in SOLVERS if any(curves[world, name] and sees_experts(name) for name in methods)]
    num_rows = -(-len(worlds) // COLUMNS)
    figure, axes = pyplot.subplots(
        num_rows, COLUMNS, figsize=(12, 2.6 * num_rows), sharex=True, sharey=True, squeeze=False
    )
    for axis, world in zip(axes.flat, worlds, strict=False):
        base = [row["accuracy"]["hard"] for row in study.rows(world, "base").values()]
        for number, method in enumerate(methods):
            if of_runs := curves[world, method]:
                steps = sorted(map(int, of_runs[0]))
                means = [np.mean([curve[str(step)] for curve in of_runs]) for step in steps]
                start = [float(np.mean(base))] if base else []
                style = {"linestyle": ("-", "--", ":")[number // 10], "color": f"C{number % 10}", "label": method}
                axis.plot([0, *steps] if start else steps, [*start, *means], **style)
        axis.set_title(world, fontsize=10)
        axis.set_xlabel("updates")
    for axis in axes.flat[len(worlds) :]:
        axis.axis("off")
    figure.supylabel("accuracy on 200 development problems")
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    legend_height = 0.6 / (2.6 * num_rows)
    figure.tight_layout(rect=(0.02, legend_height, 1, 1))
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=8, fontsize=9)
    figure.savefig(file, metadata={"Date": None})


def draw_means(study: Study, methods: Sequence[str], file: Path) -> None:
    """Draw mean accuracy on hard problems as coloured cells, methods down and worlds across."""
    worlds = [world for group in GROUPS.values() for world in group]
    worlds = [world for world in worlds if any(study.rows(world, name) for name in methods if sees_experts(name))]
    values = np.full((len(methods), len(worlds)), np.nan)
    for row, method in enumerate(methods):
        for column, world in enumerate(worlds):
            if bits := list(study.bits(world, method, "hard").values()):
                values[row, column] = np.mean(bits)
    figure, axis = pyplot.subplots(figsize=(2 + 0.62 * len(worlds), 1.2 + 0.3 * len(methods)))
    axis.imshow(values, cmap="RdYlBu", vmin=-0.4, vmax=1.4, aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        axis.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(worlds)), worlds, rotation=40, ha="right")
    axis.set_yticks(range(len(methods)), methods)
    ends = np.cumsum([sum(world in worlds for world in group) for group in GROUPS.values()])[:-1]
    for end in ends:
        axis.axvline(end - 0.5, color="white", linewidth=4)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "study"  # the same file for the same results
    study = Study(read_results(args.results))
    blocks = [name for name in study.methods() if "," not in name]
    args.folder.mkdir(parents=True, exist_ok=True)
    draw_means(study, blocks, args.folder / "study_means.svg")
    draw_curves(study, [name for name in blocks if name != "base"], args.folder / "study_curves.svg")


if __name__ == "__main__":
    main()
