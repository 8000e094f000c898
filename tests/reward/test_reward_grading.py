r"""What counts as the same answer: examples of every rule in docs/verifier.md, and the shared collection of cases."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from trapo_lite.reward import MathVerifier
from trapo_lite.reward.extraction import find_answer, is_readable, nesting_depth
from trapo_lite.reward.grading import gold_readings, grade
from trapo_lite.reward.notation import plain
from trapo_lite.reward.quantity import read_quantity
from trapo_lite.reward.spelling import spelling
from trapo_lite.reward.symbolic import _Latex2Sympy, _parse_formula, parse_quickly, same_expression

SHARED = Path(os.environ.get("TRAPO_LITE_SHARED", Path(__file__).parents[3] / "shared"))
BENCHMARKS = SHARED / "data" / "benchmarks"
CASES = SHARED / "data" / "verifier_cases.jsonl"

SAME = [  # (gold, what stands in the box)
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("4.5e33", "45 * 10^32"),
    ("1/3", "0.333333"),
    ("1\\frac{3}{4}", "1.75"),
    ("12,345", r"12{,}345"),
    ("\\$1,250.50", "1250.5"),
    ("17.0", "17"),
    ("0.35", r"35\%"),
    (r"35\%", "35"),
    (r"75^\circ", "75"),
    (r"6\text{ cm}^2", "6"),
    ("8 hours", "8"),
    ("132_5", "132"),
    ("3:4", "6:8"),
    (r"\text{Monday}", "monday"),
    ("D", r"\text{(D)}"),
    ("D", "D) photosynthesis"),
    ("x=7", "7"),
    ("f(x) = 3x - 1", "y = 3x-1"),
    ("(a,b)=(2,5)", "(2,5)"),
    ("2, 9, 4", "4, 2, 9"),
    (r"\{2, 9\}", r"9 \text{ and } 2"),
    ("x \\in [2, \\infty)", r"[2,\infty)"),
    (r"\frac{\sqrt{8}}{2}", r"\sqrt2"),
    ("x^2 - 1", "(x-1)(x+1)"),
    ("2 < x < 5", "(2, 5)"),
    ("(-\\infty, 4]", r"x \le 4"),
    (r"1-\frac{1}{e}", r"1 - e^{-1}"),
    ("8", "2³"),
    (r"\frac{\pi}{6}", "π/6"),
    ("10,11,12,13,14,-2,-1,0,1,2", "-2,-1,0,1,2,10,11,12,13,14"),
    ("1000000", "1 000 000"),
    ("3/2", "1 1/2"),
    ("5 kJ", "5"),
    ("60 mph", r"60\text{ miles per hour}"),
    (r"60 \text{ km/h}", "60 km per hour"),
    ("2 mg", "2"),
    ("B", "B) 42"),
    ("B", r"\textbf{(B) } 42"),
    ("B", "B. 3.5 m"),
    ("B", "B) -5"),
    ("B", r"\text{Option B}"),
    ("B) 12", "B"),
    ("5", r"5\,\mathrm{J}"),
    ("5", r"5\,m"),
    (r"5\text{ m}", "5 m"),
    ("5 h", "5 hours"),
    ("5 hours", "5 h"),
    ("5000000", r"5 \text{ million}"),
    ("5 million dollars", r"\$5{,}000{,}000"),
    (r"5\text{ red apples}", r"5\text{ Apples}"),
    ("5", r"5\text{ square units}"),
    (r"5\text{ square cm}", r"5\text{ cm}^2"),
    (r"75^\circ C", r"75\text{ degrees Celsius}"),
    (r"75^\circ", r"75^\circ C"),
    (r"\$3, \$4", r"\$4, \$3"),
    (r"\$x+5", "x+5"),
    ("0.5", r"\displaystyle .5"),
    (r"0.\overline{3}", "0.3\u0305"),
    (r"3\text{ pm}", r"3\text{ p.m.}"),
    ("{1,3}", "3, 1"),  # braces that are not printed
    ("04:40", "4:40"),
    ("A: light", "A"),
    ("A: light", "A: light"),
    ("B", "B) f(a)"),
    ("\\begin{pmatrix}1\\\\\n2\\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"5\sqrt{2}", r"5\sqrt{2}\ \mathrm{cm}"),
    (r"12\pi\text{ cm}^2", r"12\pi"),
    (r"12\pi", r"12\pi \text{ square units}"),
    (r"0.\overline{3}", r"\frac13"),
    (r"\frac16", r"0.1\dot{6}"),
    ("60", r"60^\circ\text{C}"),
    ("1:2:3", "2:4:6"),
    ("1e-10", r"\frac{1}{10^{10}}"),
    (r"\emptyset", r"\varnothing"),
    ("(2,4)", "{(2,4)}"),
    ("12", r"\color{red}{12}"),
    ("12", "=12"),
    (r"(3,\frac{\pi}{2})", r"\left(3,\frac\pi2\right)"),
    ("C", "Answer: C"),
    (r"\frac13", r"x = \frac13 \approx 0.333"),
    ("7", "m+n=3+4=7"),
    ("5", "f(2) = 5"),
    ("X=3", "x=3"),
    (r"x = \pm 3", r"x=3 \text{ or } x=-3"),
    ("25", "x^2+y^2 = 3^2+4^2 = 25"),
    (r"\pi", r"\pi \approx 3.14"),
    (r"\frac12", r"\sin x = \frac12"),
    ("x=1,y=2", "(1,2)"),
    ("x=1,y=2", "y=2,x=1"),
    ("1,2", r"x=2 \text{ or } x=1"),
    (r"\{1\pm\sqrt5,-2\}", r"\{-2,1+\sqrt5,1-\sqrt5\}"),
    ("y=2x+1", "2x-y+1=0"),
    ("A^T", "A^{T}"),
    (r"I \frac{d \omega}{d t}+2 B \omega=T", r"T=I\frac{d\omega}{dt}+2B\omega"),
    ("2^{1009}", "2^{1009}"),
]
DIFFERENT = [
    ("4.5e33", "4.5e32"),
    ("2.88e-19", "9.1e-25"),  # both round to 0.000000
    (r"\frac{1}{30!}", r"\frac{1}{31!}"),
    ("1000000", "1000001"),
    ("1000000", "1000000.9"),
    ("1/3", "0.33"),
    ("5 cm", "5 km"),
    ("132_5", "42"),  # its value
    ("132_5", "132_6"),
    ("3:4", "4:3"),
    (r"\text{odd}", r"\text{oddly}"),
    ("D", "B"),
    ("x=7", "y=7"),
    ("(2,5)", "(5,2)"),
    ("[2,5]", "(2,5)"),
    ("(2,5]", "[2,5]"),
    ("(2,5]", "(2,5)"),
    ("2, 9, 4", "2, 9"),
    ("9", "7, 8, 9"),
    ("1, 2, \\ldots, n", "1, 3, \\ldots, n"),
    (r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
    (r"\sin(x) = \frac12", r"\cos(x) = \frac12"),
    ("0", r"\text{zero or so}"),
    ("", "1"),
    ("$", "1"),
    (r"\boxed{}", "1"),
    ("10,11,12,13,14,-2,-1,0,1,2", "-2,-1,0,1,2,10,11,12,13,13"),
    ("11/2", "1 1/2"),
    ("12", "1 2"),
    (r"5\text{ kJ}", r"5 \text{ J}"),
    ("5 kW", "5 W"),
    (r"60\text{ km/h}", r"60\text{ m/s}"),
    ("2mg", "2"),
    (r"\frac{1}{2}mg", r"\frac12"),
    ("B", "C) B is false"),
    ("B", "B) or C)"),
    ("B", "B) and C"),
    ("B", "(B), (C)"),
    ("B", "42"),
    ("B) 12", "B) 13"),
    ("B) 12", "C"),
    ("5 m", "5"),  # m may be a length or a variable
    ("5 m", "5 s"),
    (r"5\text{ m}", "5 s"),
    (r"5\text{ million}", r"5\text{ billion}"),
    ("5", r"5\text{ million}"),
    ("5", r"5\text{ or more}"),
    ("5", r"5\text{ does not work}"),
    (r"3\mathbf{i}", r"3\mathbf{j}"),
    ("2", r"2\mathbf{i}"),
    ("2", r"2\mathrm{x}"),
    (r"3\text{ p.m.}", r"3\text{ a.m.}"),
    (r"30\text{ north}", r"30\text{ south}"),
    (r"5\text{ m}", r"5\text{ nm}"),
    (r"3\text{ MeV}", r"3\text{ keV}"),
    (r"5^\circ C", r"5^\circ F"),
    (r"\$50", r"50\text{ cents}"),
    (r"\$5", r"5\text{ euros}"),
    (r"60\text{ km/h}", r"60\text{ km}"),
    (r"5\text{ cm}", r"5\text{ cm}^2"),
    ("5", r"\displaystyle .5"),
    ("0.3", "0.3\u0305"),
    ("(1,100)", "1100"),
    ("(1,2)", r"\{1,2\}"),
    (r"\{1,2\}", "(2,1)"),
    ("4:40", "2:20"),
    ("(a)^2", "a"),
    ("a", "a:b"),
    ("e", "e.5"),
    ("A", "(a), (b)"),
    ("A", "(A) and (b)"),
    ("R-r", "r-R"),
    (r"\pi(R^2-r^2)", "0"),
    (r"\frac{m}{m+M}", r"\frac12"),
    (r"\Omega", r"\omega"),
    ("AB", "ab"),
    ("x+y=3", "3"),
    ("a+b=c", "c"),
    (r"\frac{dx}{dt}=kx-a", r"\frac{dt}{dx}=kx-a"),
    (r"I \frac{d \omega}{d t}+2 B \omega=T", r"q \frac{d\omega}{dt}+2B\omega=T"),
    (r"\{0,\pi\}", r"(0,\pi)"),
    (r"\{1,\sqrt2,3\}", r"(3,1,\sqrt2)"),
    (r"0,\pi", r"(\pi,0)"),
    ("x=1,y=2", "2,1"),
    ("m=3,n=5", "(5,3)"),
    (r"\sqrt2,\sqrt3", r"\sqrt2,\sqrt3,\sqrt2"),
    ("2^{1009}", "2^{1009}+1"),
    (r"1-\frac{1}{2^{100}}", "1"),
    (r"\frac{2^{100}-1}{3}", r"\frac{2^{100}+1}{3}"),
    ("7", r"x \not= 7"),
    ("7", r"x=8 \lor x=7"),
    ("7", r"8 \text{ for } n=7"),
    ("7", "x=8 x=7"),
    ("7", r"\text{not } x=7"),
    ("5", r"5 \text{ thirds}"),
    ("5", r"5\text{ squared}"),
    (r"5\text{ m/s}", r"5\text{ m s}"),
    ("C", r"\text{(C)} \text{ or } 17"),
    ("C", "C) light or option D"),
    ("f'(x)", "f(x)"),
    ("f''(x)", "f'(x)"),
    (r"\angle ABC", r"\angle ACB"),
    ("A^T", "A"),
    ("no", "on"),
    (r"\lim_{x\to 0}x", "1024"),
    (r"m l \ddot{\theta}(t)-m g \sin \theta(t)=f(t) \cos \theta(t)", "x=x"),
    (
        r"m l \ddot{\theta}(t)-m g \sin \theta(t)=f(t) \cos \theta(t)",
        r"m l \ddot{\theta}(t)+m g \sin \theta(t)=f(t) \cos \theta(t)",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("gold", "boxed"), SAME)
def test_other_spellings_of_an_answer_are_correct(gold, boxed):
    assert grade(rf"Hence \boxed{{{boxed}}}.", gold, require_box=True) == ("correct", boxed)


@pytest.mark.slow
@pytest.mark.parametrize(("gold", "boxed"), DIFFERENT)
def test_other_answers_are_wrong(gold, boxed):
    assert grade(rf"Hence \boxed{{{boxed}}}.", gold, require_box=True) == ("wrong", boxed)


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1} and then \boxed{2", "1"),  # the last one is cut off
        (r"<think>\boxed{1}</think> So \boxed{2}.", "2"),
        (r"<think>a</think>b</think>\boxed{2}", "2"),
        (r"<think>\boxed{1}</think> So it is 2.", "1"),  # none behind the thought
        (r"<think>\boxed{1}</think> So \boxed{2", None),  # one begun behind it
        (r"\boxed {\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{185\}", "185\\"),
        (r"\boxed{\boxed{4}}", r"\boxed{4}"),
        ("no box", None),
        (r"\boxed{" * 5000, None),
    ],
)
def test_the_last_complete_box_is_the_answer(text, last):
    assert find_answer(text).last == last


def test_neighbouring_boxes_are_one_list_only_for_a_gold_that_is_a_list():
    text = r"The roots are $\boxed{3}$ and $\boxed{-4}$."
    assert grade(text, "-4, 3", require_box=True) == ("correct", "3, -4")
    assert grade(text, "-4", require_box=True) == ("correct", "-4")
    assert grade(text, "3", require_box=True)[0] == "wrong"
    far_apart = r"\boxed{3} is one root, but there could well be another one. \boxed{-4}"
    assert grade(far_apart, "-4, 3", require_box=True)[0] == "wrong"


def test_a_vote_counts_a_letter_with_and_without_its_text_as_one_choice():
    assert spelling("(a)^2") != spelling("a") != spelling("a:b")
    assert spelling("B") == spelling(r"\text{(B)}") == spelling("B) 42") != spelling("C) 42")


def test_a_gold_that_is_a_whole_solution_is_read_like_an_answer():
    assert gold_readings(r"Adding up we get $\boxed{12}$.") == ("12",)
    assert gold_readings("the answer is 0.25") == ("0.25",)
    assert gold_readings("$") == ()


def test_depth_and_exact_values_are_what_they_say():
    assert nesting_depth("((1))") == 2
    assert read_quantity("-1/3").value * 3 == -1
    assert read_quantity("1e999999999") is None  # never computed


@pytest.mark.long
def test_the_quick_parser_reads_what_the_slow_one_reads(monkeypatch):
    pairs = [*SAME, *DIFFERENT]
    golds = [gold for path in BENCHMARKS.glob("*") for gold in benchmark_golds(path)] if BENCHMARKS.exists() else []
    texts = map(plain, {*golds, *(text for pair in pairs for text in pair)})
    formulas = [text for text in texts if "\\" in text and is_readable(text)]

    def readings() -> list[str]:
        return [repr(_parse_formula.__wrapped__(text)) for text in formulas]

    slow = readings()
    monkeypatch.setattr(_Latex2Sympy, "create_parser", _Latex2Sympy.create_parser)  # put back at the end
    parse_quickly()
    quick = readings()
    others = [(text, a, b) for text, a, b in zip(formulas, slow, quick, strict=True) if a != b]
    assert all(reading == "None" for _, reading, _ in others) and len(others) <= 2, (
        others
    )  # no formula, to the slow one
    assert sum(reading != "None" for reading in slow) > 20


@pytest.mark.slow
def test_math_verify_alone_would_call_tiny_numbers_equal():
    """The reason for comparing numbers here: math-verify rounds to six decimals."""
    from math_verify import parse, verify

    small, smaller = r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"
    assert verify(
        parse(f"${small}$", parsing_timeout=None), parse(f"${smaller}$", parsing_timeout=None), timeout_seconds=None
    )
    assert not same_expression(small, smaller)


@pytest.mark.long
def test_equations_that_a_point_tells_apart_are_not_solved():
    """math-verify alone needs more than the deadline for each of these."""
    gold = r"m l \ddot{\theta}(t)-m g \sin \theta(t)=f(t) \cos \theta(t)"
    others = ["x=x", "0=0", gold.replace("-", "+"), gold + "+1", r"\frac12 " + gold]
    with MathVerifier(num_workers=1, deadline_seconds=5.0) as verifier:
        kinds = [one.kind for one in verifier.grade([(rf"\boxed{{{other}}}", gold) for other in [*others, gold]])]
    assert kinds == ["wrong"] * len(others) + ["correct"]


@pytest.mark.long
@pytest.mark.skipif(not CASES.exists(), reason=f"the shared verifier cases are not at {CASES}")
def test_agreement_with_the_stated_verdicts():
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    with MathVerifier(num_workers=2, deadline_seconds=5.0) as verifier:
        verdicts = verifier.grade([(row["answer_text"], row["gold"]) for row in rows])
        assert verifier.grade([(r"\boxed{1}", "1")])[0].is_correct
    total, agreed = Counter(), Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        if row["expected"] is not None:
            total[row["rule"]] += 1
            agreed[row["rule"]] += verdict.is_correct == row["expected"]
        assert verdict.kind != "crash", row
    print({rule: f"{agreed[rule]} / {total[rule]}" for rule in total})
    assert agreed["core"] / total["core"] >= 0.97


def benchmark_golds(path: Path) -> list[str]:
    """The different golds of one benchmark file."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        golds = [row["ground_truth"] for row in parquet.read_table(path).column("reward_model").to_pylist()]
    else:
        golds = [str(json.loads(line)["answer"]).rpartition("####")[2] for line in path.read_text().splitlines()]
    return list(dict.fromkeys(str(gold).strip() for gold in golds))


@pytest.mark.long
@pytest.mark.skipif(not BENCHMARKS.exists(), reason=f"the shared benchmark files are not at {BENCHMARKS}")
def test_every_benchmark_gold_equals_itself_and_no_small_number():
    golds = [gold for path in sorted(BENCHMARKS.iterdir()) for gold in benchmark_golds(path)]
    others = [other for other in ("0", "1", "2", "3", "10", "x") for _ in golds]
    with MathVerifier(num_workers=2, deadline_seconds=10.0) as verifier:
        same = verifier.grade([(rf"\boxed{{{gold}}}", gold) for gold in golds])
        other = verifier.grade([(rf"\boxed{{{o}}}", gold) for o, gold in zip(others, golds * 6, strict=True)])
    assert [gold for gold, verdict in zip(golds, same, strict=True) if not verdict.is_correct] == []
    accepted = {(o, gold) for o, gold, v in zip(others, golds * 6, other, strict=True) if v.is_correct}
    spelled = {f"{prefix}{n}{suffix}" for n in others for prefix in ("", "+", "k=", "f(x)=") for suffix in ("", ".0")}
    assert {(o, gold) for o, gold in accepted if gold.strip("$") not in spelled} == set()
