"""docs/models.md is what benchmarks/models_page.py makes of the tests' results and of the plan."""

import json
from pathlib import Path

import models_page
import pytest
import start_configs
from chat_models import MODELS
from families import FAMILIES, MOST_TRAINED
from family_results import FILE, PACKAGES, check_result, read_results

from trapo_lite.planning.published_sizes import SIZES

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_page_is_what_its_script_prints() -> None:
    assert models_page.page() == (ROOT / "docs/models.md").read_text(encoding="utf-8")


def test_what_is_refused_comes_before_the_long_table() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert text.index("## What is refused") < text.index("| class of transformers |")


def test_a_result_is_one_line_of_a_family_that_is_there() -> None:
    results = read_results()
    assert list(results) == sorted(results) and len(results) == len(FILE.read_text(encoding="utf-8").splitlines())
    assert {family for family, _ in results} <= set(FAMILIES) and {kind for _, kind in results} == set(PACKAGES)
    for (_, kind), line in results.items():
        assert line["result"] in (("tree", "rows") if kind == "gradient" else ("yes", "no"))
        assert line["versions"] and set(line["versions"]) <= set(PACKAGES[kind])
        assert (line.get("why") and line.get("measured")) or line["result"] != "no"


def test_families_that_are_named_elsewhere_are_there() -> None:
    assert set(MOST_TRAINED) | {model.family for model in MODELS.values()} <= set(FAMILIES)
    assert set(models_page.PUBLISHED_TEMPLATES) <= set(FAMILIES)


def test_a_family_without_results_is_not_measured() -> None:
    row = models_page.family_row("gemma", {})
    unknown = "not measured"
    assert row.split(" | ")[2:] == [unknown] * 4 + ["the tokenizer's own", f"{unknown} |\n"]


def test_the_row_says_what_was_measured() -> None:
    results = {
        ("gemma", "gradient"): {"result": "tree", "difference": 4.7e-7},
        ("gemma", "drawing"): {"result": "yes"},
        ("gemma", "vllm"): {"result": "yes", "difference": 5e-3},
        ("gemma", "nf4"): {"result": "no", "why": "refused"},
    }
    cells = ["GemmaForCausalLM", "full attention", "tree", "yes", "yes, within 0.005", "refused", "the tokenizer's own"]
    assert models_page.family_row("gemma", results) == (
        f"| {' | '.join(cells)} | gradient 5e-7, drawing, NF4, vLLM once |\n"
    )


def test_a_result_is_written_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.jsonl"
    with pytest.raises(AssertionError, match=r"llama, nf4: it is 'yes' here and results\.jsonl has no line"):
        check_result("llama", "nf4", "yes", file=file)
    monkeypatch.setenv("TRAPO_LITE_RECORD", "1")
    check_result("qwen2", "nf4", "yes", file=file)
    check_result("llama", "nf4", "yes", file=file)
    monkeypatch.delenv("TRAPO_LITE_RECORD")
    check_result("llama", "nf4", "yes", file=file)
    assert list(read_results(file)) == [("llama", "nf4"), ("qwen2", "nf4")]
    with pytest.raises(AssertionError, match=r"'yes' by results\.jsonl, 'no' here: {'why': 'broken'}"):
        check_result("llama", "nf4", "no", file=file, why="broken")


def test_another_reason_is_another_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that a person wrote for a reason are kept with it, and dropped with it."""
    file = tmp_path / "results.jsonl"
    line = {"family": "falcon", "kind": "nf4", "result": "no", "why": "in words", "measured": "an error"}
    file.write_text(json.dumps(line) + "\n")
    check_result("falcon", "nf4", "no", file=file, why="an error")
    with pytest.raises(AssertionError, match=r"'no' because of 'an error' by results\.jsonl, 'another error' here"):
        check_result("falcon", "nf4", "no", file=file, why="another error")
    monkeypatch.setenv("TRAPO_LITE_RECORD", "1")
    for measured, why in (("an error", "in words"), ("another error", "another error")):
        check_result("falcon", "nf4", "no", file=file, why=measured)
        [recorded] = read_results(file).values()
        assert (recorded["why"], recorded["measured"]) == (why, measured)
        assert set(recorded["versions"]) == {"transformers", "bitsandbytes"}
    check_result("falcon", "nf4", "yes", file=file)
    [recorded] = read_results(file).values()
    assert not {"why", "measured"} & set(recorded)


@pytest.mark.parametrize("start", start_configs.STARTS, ids=lambda start: start.config)
def test_a_configuration_has_the_sizes_of_its_model(start: start_configs.Start) -> None:
    text = (start_configs.CONFIGS / f"{start.config}.yaml").read_text(encoding="utf-8")
    assert sum(f"name: {name}\n" in text for name in SIZES) == 1
