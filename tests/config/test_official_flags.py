"""docs/official_flags.md: every setting that it names is accepted, and says what the shipped blocks hold."""

import re
from pathlib import Path

import pytest

from trapo_lite.config import load_config

PAGE = Path("docs/official_flags.md").read_text(encoding="utf-8")
SECTIONS = {title: body for title, _, body in (part.partition("\n") for part in PAGE.split("\n## ")[1:])}
BOTH = "TRAPO and LUFFY: flags with the same value in both"
PARTS = {"trapo": (BOTH, "TRAPO alone"), "luffy": (BOTH, "LUFFY alone"), "chord_phi": ("CHORD",)}
ANOTHER_WAY = {"rollout.engine=server"}
"""Settings that a row names as an alternative."""


def rows(section: str) -> list[list[str]]:
    lines = [line for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def settings(block: str) -> list[str]:
    """The settings in the last column of a block's tables."""
    cells = [row[-1] for section in PARTS[block] for row in rows(section)]
    return [text for cell in cells for text in re.findall(r"`(\w+\.[\w.]+=[^`]+)`", cell) if text not in ANOTHER_WAY]


@pytest.mark.parametrize("block", PARTS)
def test_the_settings_are_accepted_together_and_leave_the_block_as_it_is(block: str) -> None:
    found = settings(block)
    assert len(found) > 20 and len({text.partition("=")[0] for text in found}) == len(found)
    shipped = load_config([f"configs/algorithm/{block}.yaml"], [])
    translated = load_config([f"configs/algorithm/{block}.yaml"], found)
    without_entropy = translated.algorithm.model_copy(update={"entropy_weight": 0.0})
    assert without_entropy.build(max_response_tokens=1).micro_groups == shipped.algorithm.micro_groups
    for part in ("prefix_loss", "completion_loss", "advantage", "baseline", "normalizer", "kl_weight"):
        assert getattr(translated.algorithm, part) == getattr(shipped.algorithm, part)


def test_every_row_has_a_key_a_value_and_an_answer() -> None:
    for section in {section for sections in PARTS.values() for section in sections}:
        assert len(rows(section)) > 8
        for row in rows(section):
            assert len(row) == 3 and all(row), row


def test_every_other_key_that_the_page_names_exists() -> None:
    config = load_config([], [])
    named = re.findall(r"`(model|lora|data|rollout|reward|optim|train|eval|run)\.(\w+)`", ours())
    assert len(named) > 5
    for section, key in named:
        assert key in type(getattr(config, section)).model_fields, f"{section}.{key}"


def ours() -> str:
    """The text about this project: the last columns and the notes, without the names of flags."""
    cells = [row[-1] for sections in PARTS.values() for section in sections for row in rows(section)]
    notes = [line for line in PAGE.splitlines() if not line.startswith("|")]
    return "\n".join([*cells, *notes])
