"""Functions of the user's are found, get what they name, and what they return counts."""

from pathlib import Path

import pytest
from reward_sections import scored, section_of, write

from trapo_lite.core.errors import RewardError
from trapo_lite.reward.own import PARAMETERS


def test_a_function_gets_what_it_names_as_plain_values(write) -> None:
    mine = write(
        "import json\n"
        "def all_of_it(problem, answer, response, row, is_truncated, num_tokens, step):\n"
        "    same = [problem, answer, response, row, is_truncated, num_tokens, step]\n"
        "    return float(same == ['6 * 7?', '42', 'text', {'level': 3, 'tags': ['easy']}, True, 9, 4])\n"
        "def some(response, *, row, unused=3, **others): return row['level'] + len(others)\n"
        "async def later(response):\n"
        "    import asyncio\n"
        "    await asyncio.sleep(0.01)\n"
        "    return 0.5\n"
        "class Judge:\n"
        "    def call(self, response): return 7\n"
        "judge = Judge()\n"
    )
    section = section_of(mine("all_of_it"), mine("some"), mine("later"), mine("judge.call"))
    [score] = scored(section, "text", is_truncated=True, num_tokens=9, step=4)
    assert score.parts == (("all_of_it", 1.0), ("some", 3.0 + 5), ("later", 0.5), ("call", 7.0))
    assert score.verdict.kind == "correct" and score.reward == 16.5


@pytest.mark.parametrize(
    ("returned", "kind", "value"),
    [
        ("1", "correct", 1.0),
        ("True", "correct", 1.0),
        ("-3", "wrong", -3.0),
        ("numpy.float32(0.25)", "wrong", 0.25),
        ("numpy.int64(2)", "correct", 2.0),
        ("numpy.array([1.0])", "correct", 1.0),
        ("fractions.Fraction(1, 2)", "wrong", 0.5),
        ("None", "unjudged", None),
        ("float('nan')", "failed", None),
        ("float('inf')", "failed", None),
        ("1e39", "failed", None),
        ("'1'", "failed", None),
        ("[1]", "failed", None),
        ("numpy.array([1.0, 2.0])", "failed", None),
        ("1 / 0", "failed", None),
        ("sys.exit(3)", "failed", None),
        ("os._exit(3)", "crash", None),
    ],
)
def test_what_may_be_returned(write, returned: str, kind: str, value: float | None) -> None:
    mine = write(f"import fractions, numpy, os, sys\ndef score(response): return {returned}\n")
    [score] = scored(section_of(mine("score")), "x")
    assert (score.verdict.kind, score.reward) == (kind, value)


def test_what_a_function_imports_beside_itself_is_found(write, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("BONUS = 0.5\n")
    mine = write("from helper import BONUS\ndef score(response): return BONUS\n")
    [score] = scored(section_of(mine("score")), "x")
    assert score.reward == 0.5


def test_files_of_one_name_and_of_a_standard_modules_name(tmp_path: Path) -> None:
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(f"def score(response): return {value}\n")
    paths = [{"type": "function", "path": f"{tmp_path / folder / 'json.py'}:score", "name": folder} for folder in "ab"]
    [score] = scored(section_of(*paths, "math"), "x")
    assert score.parts == (("a", 1.0), ("b", 2.0), ("math", 0.0))


def test_a_function_of_a_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/rewards.py").write_text("def score(response): return 2\n")
    monkeypatch.chdir(tmp_path)
    [score] = scored(section_of({"type": "function", "path": "my_package.rewards:score"}), "x")
    assert score.reward == 2.0


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        ("def score(response): return 1", "scroe", r"there is no 'scroe'; it has score$"),
        ("x = 1", "score", r"there is no 'score'; it has no function$"),
        ("score = {'a': 1}", "score", r"is of type dict, not a function$"),
        ("class score: pass", "score", r"is a class, not a function$"),
        (
            "def score(prompts, completions): return 1",
            "score",
            r"it takes prompts, completions; .*may take.*problem \(",
        ),
        ("def score(completions, **others): return 1", "score", r"it takes completions; a reward function may take"),
        ("def score(response, /): return 1", "score", r"it takes response; a reward function may take, by these names"),
        ("def score(): return 1", "score", r"it takes nothing; a reward function may take"),
        (
            "import no_such_module",
            "score",
            r"cannot be imported: (.|\n)*line 1(.|\n)*No module named 'no_such_module'$",
        ),
        ("def score(response) return 1", "score", r"cannot be imported: (.|\n)*SyntaxError"),
        ("raise SystemExit(3)", "score", r"cannot be imported: (.|\n)*SystemExit: 3$"),
    ],
)
def test_a_path_that_is_no_reward_function_is_refused_with_what_there_is(
    write, source: str, name: str, message: str
) -> None:
    with pytest.raises(RewardError, match=r"^reward\.functions: .*mine\.py(.|\n)*" + message):
        scored(section_of(write(source)(name)), "x")


def test_each_file_gets_the_modules_beside_it(tmp_path: Path) -> None:
    """Two folders hold modules of the same names; some are imported with the file, others when a function is called."""
    functions = []
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder / "parts").mkdir(parents=True)
        (tmp_path / folder / "helper.py").write_text(f"VALUE = {value}\n")
        (tmp_path / folder / "parts/__init__.py").write_text("")
        (tmp_path / folder / "parts/inner.py").write_text(f"VALUE = {value * 10}\n")
        (tmp_path / folder / "later.py").write_text(f"VALUE = {value * 100}\n")
        (tmp_path / folder / "mine.py").write_text(
            "import helper, parts.inner\n"
            "def early(response): return helper.VALUE + parts.inner.VALUE\n"
            "def late(response):\n"
            "    import helper, later\n"
            "    from parts.inner import VALUE\n"
            "    return helper.VALUE + VALUE + later.VALUE\n"
        )
        for name in ("early", "late"):
            path = f"{tmp_path / folder / 'mine.py'}:{name}"
            functions.append({"type": "function", "path": path, "name": f"{name}-{folder}"})
    for order in (functions, functions[::-1]):
        for score in scored(section_of(*order), "x", "y"):
            assert dict(score.parts) == {"early-a": 11, "late-a": 111, "early-b": 22, "late-b": 222}


def test_installed_packages_are_imported_once_for_all_folders(tmp_path: Path) -> None:
    """NumPy cannot be loaded twice in a process."""
    for folder in "ab":
        (tmp_path / folder).mkdir()
        source = "import numpy\ndef score(response):\n    import numpy as again\n    return id(again) % 1000003\n"
        (tmp_path / folder / "mine.py").write_text(source)
    paths = [{"type": "function", "path": f"{tmp_path / folder / 'mine.py'}:score", "name": folder} for folder in "ab"]
    [score] = scored(section_of(*paths), "x")
    first, second = (value for _, value in score.parts)
    assert first == second is not None


def test_a_file_with_two_functions_is_executed_once(tmp_path: Path) -> None:
    log, file = tmp_path / "log", tmp_path / "mine.py"
    file.write_text(
        f"with open({str(log)!r}, 'a') as log: log.write('x')\n"
        "seen = []\n"
        "def first(response):\n    seen.append(response)\n    return 1\n"
        "def second(response): return len(seen)\n"
    )
    (tmp_path / "link.py").symlink_to(file)
    paths = [{"type": "function", "path": path} for path in (f"{file}:first", f"{tmp_path / 'link.py'}:second")]
    [score] = scored(section_of(*paths), "x")
    assert score.parts == (("first", 1.0), ("second", 1.0)) and log.read_text() == "x"


def test_a_worker_gets_only_what_its_function_takes(write) -> None:
    """The function looks at what its caller was sent."""
    sent = "    import sys\n    return sum(2 ** NAMES.index(name) for name in sys._getframe(1).f_locals['response'])\n"
    mine = write(
        f"NAMES = {list(PARAMETERS)}\n"
        f"def short(response):\n{sent}def with_row(row, step):\n{sent}def everything(response, **others):\n{sent}"
    )
    [score] = scored(section_of(mine("short"), mine("with_row"), mine("everything")), "x")
    place = {name: 2 ** list(PARAMETERS).index(name) for name in PARAMETERS}
    assert dict(score.parts) == {
        "short": place["response"],
        "with_row": place["row"] + place["step"],
        "everything": sum(place.values()),
    }


def test_a_module_beside_an_own_function_does_not_stand_in_for_an_installed_one(write, tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("broken = True\n")
    mine = write("import math_verify\ndef score(response): return float(math_verify.broken)\n")
    [score] = scored(section_of(mine("score"), "math"), r"\boxed{\frac{84}{2}}")
    assert score.parts == (("score", 1.0), ("math", 1.0))
