r"""Define the known forms of rows, as the columns that hold problem, answer, expert solutions and id.

OpenR1-Math-46k-8192:  prompt [system, user], target [assistant], reward_model {ground_truth}, extra_info {index}
  of the TRAPO loader: extra_info {answer_list, uuid}      of LUFFY: target_lst       of UFT: hint ["step\n", ...]
DAPO, Skywork, POLARIS: prompt [user], reward_model {ground_truth}, extra_info {index}
OpenR1-Math-220k:      problem, answer, generations, correctness_math_verify, is_reasoning_complete, uuid
DeepMath-103K:         question, final_answer, r1_solution_1 ... r1_solution_3
simple:                problem, answer, solution or solutions; optional id, source, system
GSM8K:                 question, answer "48/2 = <<48/2=24>>24 ...\n#### 24"
s1K:                   question, solution (the answer), thinking_trajectories [...], attempt
conversations:         messages or conversations [system, user, assistant]; answer, or a box in the reply
Open-Reasoner-Zero:    [user, {from, ground_truth {value}}], a row that is a list
MathInstruct:          instruction, output
"""

from dataclasses import dataclass, replace
from typing import Any

from trapo_lite.config.data import DataColumns
from trapo_lite.data.bad_row import BadRow
from trapo_lite.data.cells import first, has_column, require_column

PROBLEM_COLUMNS = ("prompt", "problem", "question", "messages", "conversations", "conversation")
TURNS_ANSWER = "conversations.-1.ground_truth.value"
ANSWER_COLUMNS = ("reward_model.ground_truth", "answer", "final_answer")
# Each entry holds the columns of one form. UFT's rows hold steps in `hint` and a number in `target`, so hint is first.
SOLUTION_COLUMNS = (
    *(("extra_info.answer_list",), ("target_lst",), ("hint",), ("target",)),
    *(("generations",), ("solutions",), ("solution",)),
    ("r1_solution_1", "r1_solution_2", "r1_solution_3"),
)
SOLUTION_NAMES = tuple(name for names in SOLUTION_COLUMNS for name in names)
ATTEMPT_BY_THOUGHTS = {"thinking_trajectories": "attempt", "deepseek_thinking_trajectory": "deepseek_attempt"}
"""Maps a column with thoughts to the column with what was written after them: s1K and s1K-1.1."""


@dataclass(frozen=True)
class Form:
    """A Form names the columns of a row, in the order in which they are tried.

    solutions: the columns of an entry are read together.
    """

    problem: tuple[str, ...] = PROBLEM_COLUMNS
    answer: tuple[str, ...] = ANSWER_COLUMNS
    solutions: tuple[tuple[str, ...], ...] = SOLUTION_COLUMNS
    id: tuple[str, ...] = ("id", "uuid", "extra_info.uuid")


KNOWN = Form()
S1K = Form(answer=("solution",), solutions=tuple((thoughts,) for thoughts in ATTEMPT_BY_THOUGHTS))
REASONER_ZERO = Form(answer=(TURNS_ANSWER,))
INSTRUCTION = Form(problem=("instruction",), solutions=(*SOLUTION_COLUMNS, ("output",)))


def form_of(fields: dict[str, Any], columns: DataColumns | None) -> Form:
    """Return the form of a row; `columns` replace what they name. Raise BadRow if one of these is not in the row."""
    form = KNOWN
    if first(fields, ANSWER_COLUMNS)[1] is None:
        if first(fields, tuple(ATTEMPT_BY_THOUGHTS))[1] is not None:
            form = S1K
        elif _ends_in_answer(fields.get("conversations")):
            form = REASONER_ZERO
    if first(fields, PROBLEM_COLUMNS)[1] is None and fields.get("instruction") is not None:
        form = INSTRUCTION
        if columns is None or columns.problem is None:
            _require_no_input(fields)
    return form if columns is None else _with_columns(form, fields, columns)


def _require_no_input(fields: dict[str, Any]) -> None:
    """Raise BadRow if the row has text in `input`, which is a part of the problem in the form of Alpaca."""
    extra = fields.get("input")
    if extra is not None and str(extra).strip():
        fix = "write both into one text, or name the column of the whole problem (data.columns={problem: COLUMN})"
        raise BadRow("two places for the problem", field="input", found=f"found {extra!r:.40} besides", fix=fix)


def _ends_in_answer(turns: Any) -> bool:
    return isinstance(turns, list) and len(turns) > 0 and isinstance(turns[-1], dict) and "ground_truth" in turns[-1]


def _with_columns(form: Form, fields: dict[str, Any], columns: DataColumns) -> Form:
    for name, path in columns.named():
        require_column(fields, path, option=f"data.columns.{name}")
    if columns.problem is not None:
        form = replace(form, problem=(columns.problem,))
    if columns.answer is not None:
        form = replace(form, answer=(columns.answer,))
    if columns.solutions is not None:
        form = replace(form, solutions=(tuple(columns.solutions),))
    return form if columns.id is None else replace(form, id=(columns.id,))


def has_columns(fields: dict[str, Any], columns: DataColumns) -> bool:
    """Return whether the row has all columns that are named."""
    return all(has_column(fields, path) for _, path in columns.named())
