"""Offer training, evaluation and export as functions that return values (docs/python.md).

`import trapo_lite` offers them too. What takes seconds to import is imported when a function needs it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapo_lite.config import Config
from trapo_lite.config.paths import check_name, check_paths
from trapo_lite.core.errors import ConfigError
from trapo_lite.evaluation import REGISTRY
from trapo_lite.run.folder import RunFolder, load_run_config

if TYPE_CHECKING:
    from trapo_lite.evaluation.results import EvalResult
    from trapo_lite.exporting.report import ExportDtype, ExportReport


@dataclass(frozen=True)
class TrainedRun:
    """A TrainedRun is a run that has done all its steps.

    folder:  the run's folder (docs/run_folder.md)
    metrics: one mapping for each step, as in metrics.jsonl (docs/metrics.md)
    """

    folder: Path
    metrics: list[dict[str, Any]]

    @property
    def adapter(self) -> Path:
        """Return the folder of the trained adapter, in PEFT's format."""
        return self.folder / "adapter"


def train(config: Config, *, restart: bool = False) -> TrainedRun:
    """Train the run that the configuration describes, or resume it. Call this from the main thread.

    restart: rename an existing run of this name and start again
    Raises a TrapoLiteError for a user's mistake, and run.launch.Stopped after SIGTERM or Ctrl-C, when the last step is
    saved.
    """
    from trapo_lite.run.launch import end_with_launcher

    check_paths(config)  # before what takes seconds to import
    end_with_launcher()
    from trapo_lite.training.trainer import train as train_job

    folder = train_job(config, restart=restart)
    lines = RunFolder(folder).metrics_file.read_text(encoding="utf-8").splitlines()
    return TrainedRun(folder, [json.loads(line) for line in lines])


def evaluate(
    *,
    run: str | Path | None = None,
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    base: bool = False,
    data: str | Path | None = None,
    benchmarks: Sequence[str] = (),
    registry: str | Path = REGISTRY,
    allow_part: bool = False,
    num_samples: int | None = None,
    out: str | Path | None = None,
    restart: bool = False,
    config: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
) -> "dict[str, EvalResult]":
    """Evaluate a run's adapter on its base, or a model, and return the results by name of the problem set.

    The results are written too. An interrupted evaluation is resumed, and a complete one is only read.

    run:         folder of a run: its base with `adapter` (default: the trained one), or with `base` its base alone
    model:       folder or hub id of a model, instead of `run`
    data:        file of problems; default: the configuration's eval.data
    benchmarks:  names in `registry`, or NAME=FILE, instead of `data`
    allow_part:  FILE may hold fewer problems than the benchmark
    num_samples: answers for each problem
    out:         folder of results; default: RUN/eval/NAME or eval/NAME
    restart:     sample existing answers again
    config, overrides: as for load_config, on top of the run's configuration
    Raises a TrapoLiteError for a user's mistake.
    """
    if (run is None) == (model is None):
        raise ConfigError("run, model: found both or none; give one of them")
    from trapo_lite.evaluation.target import target_from_arguments

    target = target_from_arguments(
        run=_path(run),
        model=None if model is None else str(model),
        adapter=_path(adapter),
        base=base,
        data=None if data is None else str(data),
        benchmarks=benchmarks,
        registry=Path(registry),
        allow_part=allow_part,
        num_samples=num_samples,
        out=_path(out),
        restart=restart,
        config=[str(file) for file in config],
        overrides=overrides,
    )
    check_name(target.config.model.name)
    from trapo_lite.evaluation.evaluate import evaluate as evaluate_job

    return evaluate_job(target)


def export(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    adapter: str | Path | None = None,
    out: str | Path | None = None,
    dtype: "ExportDtype | None" = None,
    overwrite: bool = False,
) -> "ExportReport":
    """Merge a run's adapter into its base, and return how far the checkpoint is from base and adapter.

    adapter: default: RUN/adapter.   out: the checkpoint's folder; default: RUN/merged.   dtype: default: the run's
    overwrite: replace an existing checkpoint
    Raises a TrapoLiteError for a user's mistake, and for a checkpoint that is not the trained policy.
    """
    load_run_config(Path(run))  # before what takes seconds to import
    from trapo_lite.exporting.merge import export_run

    return export_run(
        Path(run), overrides, adapter_dir=_path(adapter), out=_path(out), dtype=dtype, overwrite=overwrite
    )


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)
