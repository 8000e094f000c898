"""Answers without a box: where they are found, and what stands beside them."""

import os
from pathlib import Path

import pytest

from trapo_lite.reward import MathVerifier
from trapo_lite.reward.grading import grade

TRAIN = Path(os.environ.get("TRAPO_LITE_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "train"
ROWS = TRAIN / "gsm8k_train512_openr1_schema.parquet"


def test_without_a_box_the_end_of_the_text_counts_unless_a_box_is_required():
    unfinished = "First 30 - 4 = 26, then 26 / 2 is 13"
    assert grade(unfinished, "13", require_box=False)[0] == "correct"
    assert grade(unfinished, "13", require_box=True) == ("no_answer", None)
    assert grade("It has no numbers.", "13", require_box=False) == ("no_answer", None)
    assert grade(r"We get $13$, so \boxed{13", "13", require_box=False) == ("no_answer", None)
    assert grade("The answer is B.", "B", require_box=False)[0] == "correct"
    assert grade("The answer is a little hard to see.", "A", require_box=False) == ("no_answer", None)
    assert grade("work\n#### 1,300", "1300", require_box=False)[0] == "correct"


@pytest.mark.parametrize(
    ("text", "one", "graded"),
    [
        ("So the answer is 7 or 8.", "7", "7 or 8"),
        ("The answer is between 3 and 10.", "3", "3 and 10"),
        ("The answer is A, B.", "A", "A, B"),
        ("Answer: (A) or (C)", "A", "(A) or (C)"),
        ("It is $-2$ or 3.", "3", "$-2$ or 3"),
        ("We find 1, 2, and 3", "3", "1, 2, and 3"),
        ("The final answer is 7 or 8, because 7 is odd.", "7", "7 or 8"),
        ("So x = 7 or x = 8", "7", "x = 7 or x = 8"),
    ],
)
def test_without_a_box_one_of_several_answers_is_none_of_them(text, one, graded):
    assert grade(text, one, require_box=False) == ("wrong", graded)
    assert grade(text, graded, require_box=False) == ("correct", graded)


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("The final answer is $14$. It lies between 140 and 150.", "14"),
        ("The final answer is $5$, since 15 or 25 fail.", "5"),
        ("The final answer is 5. (We also tried 3, 4, 5.)", "5"),
        ("The answer is (3,4).", "(3,4)"),
        ("The answer is C) light", "C"),
        (r"The answer is \text{C}.", "C"),
        ("The answer is **C**.", "C"),
        ("the correct option is C", "C"),
        ("Answer: option C", "C"),
        ("I think so.\n(C).", "C"),
        ("The answer is A? No, the answer is B.", "B"),
        ("The answer is 7 dozen.", "84"),
        ("The answer is **7**.", "7"),
        ("The answer is 7cm.", "7"),
        ("So there are 7 apples.", "7"),
        ("It is at least 5, so the answer is 12.", "12"),
        ("From 3 to 9 there are 12.", "12"),
        ("Thus 3 + 4 = 7.", "7"),
        ("The answer is 7, because 3 > 2.", "7"),
        ("The answer is x > 7", "x > 7"),
        ("answer: 9 (nine)", "9"),
        ("It is $0.25/post * 360 posts/hour = $90/hour.", "90"),
    ],
)
def test_without_a_box_the_answer_is_found_in_its_place(text, gold):
    assert grade(text, gold, require_box=False)[0] == "correct"


@pytest.mark.long
def test_a_text_without_an_answer_gets_a_verdict():
    """Not a timeout, though blanks and stars might be shared out among the parts of a pattern in very many ways."""
    texts = ["answer is" + " " * 1400 + "7\nx y", "answer" + "*" * 1400, "answer is" + "\n" * 1400]
    with MathVerifier(num_workers=1, deadline_seconds=10.0) as verifier:
        kinds = [one.kind for one in verifier.grade([(text, gold) for text in texts for gold in ("7", "A")])]
    assert not {"timeout", "crash"} & set(kinds)


def test_without_a_box_numbers_elsewhere_are_not_offered_beside_the_answer():
    assert grade("It holds for 1, 2 and 3; the answer is 5.", "5", require_box=False)[0] == "correct"
    assert grade("It is 3 or 4, but the final answer is 4.", "4", require_box=False)[0] == "correct"
    assert grade("The answer is A, I think.", "A", require_box=False) == ("correct", "A")
    assert grade("The answer is 1,234 apples.", "1234", require_box=False)[0] == "correct"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "The answer is minus 7",
        "The answer is 7x",
        "The answer is 7!",
        "The answer is the square root of 7",
        "The answer is 7 squared",
        "The answer is not 7.",
        "The answer isn't 7.",
        "The answer is at least 7.",
        "The answer is 7 or more",
        "so x >= 7",
        "so x \u2260 7",
        "The answer is 7 dozen eggs.",
        "The answer is 7 (or 8).",
        "The answer is 7; 8.",
        "3 | 7",
        "x_1 = 3, x_2 = 7",
        "It is 7 or maybe 8",
        "either 7, or perhaps 8",
        "7 and/or 8",
        "**8** or **7**",
    ],
)
def test_without_a_box_what_qualifies_a_number_is_part_of_the_answer(text):
    assert grade(text, "7", require_box=False)[0] == "wrong"


@pytest.mark.long
@pytest.mark.skipif(not ROWS.exists(), reason=f"the shared training rows are not at {ROWS}")
def test_thoughts_that_people_wrote_are_read():
    """GSM8K's, which end in a sentence and have no box. The rest states another number last, or none."""
    from pyarrow import parquet

    rows = parquet.read_table(ROWS).to_pylist()
    pairs = [
        (row["target"][0]["content"].partition("</think>")[0], row["reward_model"]["ground_truth"]) for row in rows
    ]
    with MathVerifier(num_workers=1, deadline_seconds=5.0) as verifier:
        verdicts = verifier.grade([(thought, str(gold)) for thought, gold in pairs])
    assert sum(verdict.is_correct for verdict in verdicts) >= 495 and len(pairs) == 512
