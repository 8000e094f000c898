"""docs/add_an_algorithm.md shows what is in the code, and what it tells a reader to type works."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from trapo_lite.config import AlgorithmSection, load_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_an_algorithm.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert found
    return found


def file_of(block: str) -> Path:
    """The file that the page names last before a block."""
    before = PAGE[: PAGE.index(block)]
    return ROOT / re.findall(r"`((?:trapo_lite|tests)/[\w/]+\.py)`", before)[-1]


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_of_the_page_is_the_code_of_the_file_it_names(block: str) -> None:
    assert block in file_of(block).read_text(encoding="utf-8")


@pytest.mark.parametrize("block", blocks("yaml"))
def test_every_configuration_of_the_page_is_taken(block: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(block)
    given = yaml.safe_load(block)["algorithm"]
    algorithm = load_config([file]).algorithm
    assert algorithm.name == given["name"]
    algorithm.build(max_response_tokens=8)


def test_the_table_names_every_type_and_no_other() -> None:
    for key in ("prefix_loss", "completion_loss", "teacher", "advantage", "baseline"):
        [row] = re.findall(rf"^\| `{key}` \|[^|]*\|([^|]*)\|", PAGE, flags=re.MULTILINE)
        annotation = AlgorithmSection.model_fields[key].annotation
        assert annotation is not None
        assert re.findall(r"`(\w+)`", row) == [kind.model_fields["type"].default for kind in annotation.__args__]


def test_the_example_reaches_the_function_with_its_parameter(tmp_path: Path) -> None:
    file = tmp_path / "cispo.yaml"
    file.write_text(blocks("yaml")[-1].replace("ratio_cap: 1.28", "ratio_cap: 1.5"))
    loss = load_config([file]).algorithm.build().completion_loss
    logprobs = torch.tensor([-1.0, -1.0], requires_grad=True)
    loss(logprobs, torch.tensor([-2.0, -1.1]), torch.tensor([1.0, 1.0])).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-1.5, -1.1051709])  # e is capped, e^0.1 is not


@pytest.mark.long
def test_the_dry_run_of_the_page_says_what_the_page_says(tmp_path: Path) -> None:
    (tmp_path / "cispo.yaml").write_text(blocks("yaml")[-1])
    [command] = [line for line in blocks("sh")[0].splitlines() if line.endswith("--dry-run")]
    words = shlex.split(command.replace("cispo.yaml", str(tmp_path / "cispo.yaml")))
    assert words.pop(0) == "trapo-lite"
    done = subprocess.run(
        [sys.executable, "-m", "trapo_lite", *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    [expected] = re.findall(r"The line `loss` of the dry run says `(.*)`", PAGE)
    [line] = [line for line in done.stdout.splitlines() if line.strip().startswith("loss ")]
    assert expected in line
