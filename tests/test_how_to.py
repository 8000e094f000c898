"""Every page of docs/how_to is followed in an empty folder, and shows what its commands print."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/how_to").glob("*.md"))
LONG = ("resume",)  # kills a run, and waits for it three times
BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)
ANY = re.compile(r"\.\.\.(?!\.)")  # `0....` is `0.` and any text
TIME = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", re.MULTILINE)  # begins lines of a run


def follow(page: str, folder: Path) -> None:
    """Write the page's files and run its commands in the folder. Raise AssertionError if they print something else.

    An `sh` block must succeed, unless the `text` block behind it shows an error. `...` stands for any text of a line.
    """
    blocks = [(block["before"], block["language"], block["text"]) for block in BLOCK.finditer(page)]
    assert len(blocks) == page.count("```") // 2, "a block of the page has no empty line before it"
    for number, (before, language, text) in enumerate(blocks):
        if language == "sh":
            *_, following = blocks[number : number + 2]
            expected = following[2].splitlines() if following[1] == "text" else []
            printed = run(text, folder, status=2 if any(line.startswith("error: ") for line in expected) else 0)
            for line in expected:
                pattern = ".*".join(map(re.escape, ANY.split(line)))
                assert re.search(f"^{pattern}$", printed, re.MULTILINE), f"{line!r} is not in\n{printed}"
        elif language != "text":
            name = file_name(page, before)
            (folder / name).write_text(text, encoding="utf-8")


def file_name(page: str, last_line: str) -> str:
    """Return the first name of a file in the paragraph that ends with the line."""
    paragraph = page[: page.index(f"{last_line}\n\n```") + len(last_line)].rpartition("\n\n")[2]
    names = re.findall(r"`(\w+\.(?:py|yaml|jsonl))`", paragraph)
    assert names, f"no file is named before the block behind {last_line!r}"
    return names[0]


def run(commands: str, folder: Path, *, status: int) -> str:
    path = f"{folder.parent}/bin{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{commands}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, f"{commands}\n{done.stdout}"
    return TIME.sub("", done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder, beside one with the command `trapo-lite` of this Python and this code."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "trapo-lite"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m trapo_lite "$@"\n')
    command.chmod(0o755)
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.long] * (page.stem in LONG)) for page in PAGES],
)
def test_a_page_shows_what_its_commands_print(page: Path, folder: Path) -> None:
    follow(page.read_text(encoding="utf-8"), folder)


@pytest.mark.parametrize(
    ("shown", "reason"),
    [("4", "is not in"), ("error: 3", "echo 3"), ("3\n3...4", "is not in")],
    ids=["another-line", "an-error-that-does-not-come", "a-second-line"],
)
def test_a_page_that_shows_something_else_fails(shown: str, reason: str, folder: Path) -> None:
    page = "Give:\n\n```sh\necho 3\n```\n\n```text\n{}\n```\n"
    follow(page.format("3"), folder)
    with pytest.raises(AssertionError, match=reason):
        follow(page.format(shown), folder)


def test_the_readme_lists_every_page() -> None:
    linked = re.findall(r"\(docs/how_to/(\w+)\.md\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked) == [page.stem for page in PAGES]


def test_links_of_the_pages_lead_to_pages() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./]+)[)#]", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
