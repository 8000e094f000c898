"""The tiny world: right and reproducible rows, an exact tokenizer, a shipped base that is what it claims to be."""

import itertools
import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trapo_lite.tiny_world import BASE_DIR, DATA_DIR
from trapo_lite.tiny_world.corpus import TEXTBOOK_QUESTION, documents
from trapo_lite.tiny_world.measure import is_solved, measure_accuracy, sample
from trapo_lite.tiny_world.pretrain import BATCH_SIZE, IGNORED_LABEL, batches
from trapo_lite.tiny_world.problems import (
    DATA_SIZES,
    MAX_TOTAL,
    Problem,
    distinct_problems,
    jsonl,
    rows,
    split_of,
)
from trapo_lite.tiny_world.tokenizer import END_OF_TEXT_ID, SPECIAL_TOKENS, build_tokenizer, encode, prompt_text

SPLITS = list(DATA_SIZES)
ACCURACY = json.loads((BASE_DIR / "accuracy.json").read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE_DIR)


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(BASE_DIR, dtype=torch.float32).eval()


def shipped_rows(split):
    return [json.loads(line) for line in (DATA_DIR / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def terms_in(text):
    return tuple(int(term) for term in re.findall(r"-?\d+", text.replace("- ", "-")))


def pretraining_documents():
    return itertools.islice(documents(seed=3), 500)


# --- problems and rows


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
def test_the_generator_reproduces_the_shipped_rows_byte_for_byte(split):
    assert (DATA_DIR / f"{split}.jsonl").read_bytes() == jsonl(rows(split)).encode()


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_the_promised_kinds_and_no_problem_twice(split):
    shipped = shipped_rows(split)
    assert {kind: sum(row["kind"] == kind for row in shipped) for kind in DATA_SIZES[split]} == DATA_SIZES[split]
    assert len({terms_in(row["problem"]) for row in shipped}) == len(shipped) == sum(DATA_SIZES[split].values())


def test_splits_are_disjoint_because_the_terms_decide():
    for split in SPLITS:
        assert {split_of(terms_in(row["problem"])) for row in shipped_rows(split)} == {split}
    assert {split_of(problem.terms) for problem, _ in pretraining_documents()} == {"pretrain"}


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_and_every_expert_step_is_right(split):
    for row in shipped_rows(split):
        terms = terms_in(row["problem"])
        totals = [sum(terms[: count + 1]) for count in range(len(terms))]
        assert row["answer"] == str(totals[-1])
        assert all(0 <= total <= MAX_TOTAL for total in totals)
        assert len(row["solutions"]) == len(set(row["solutions"])) == 2
        for solution in row["solutions"]:
            *steps, last = solution.split("\n\n")
            assert [int(re.findall(r"\d+", step)[-1]) for step in steps] == totals
            assert re.findall(r"\\boxed\{(.*)\}", last) == [row["answer"]]


def test_the_web_solves_easy_sums_and_mostly_misses_hard_ones():
    solved = {"easy": [], "hard": []}
    for problem, solution in pretraining_documents():
        if problem.question != TEXTBOOK_QUESTION:
            solved[problem.kind].append(is_solved(problem, solution))
    assert all(solved["easy"])
    assert 0 < sum(solved["hard"]) < 0.25 * len(solved["hard"])


def test_no_shipped_problem_is_asked_in_the_words_of_a_textbook():
    words = TEXTBOOK_QUESTION.split("{")[0]
    assert not any(row["problem"].startswith(words) for split in SPLITS for row in shipped_rows(split))


# --- tokenizer


@pytest.mark.slow
def test_the_tokenizer_returns_the_world_exactly(tokenizer):
    texts = [prompt_text(problem.text) + solution for problem, solution in pretraining_documents()]
    texts += [text for row in shipped_rows("dev") for text in (prompt_text(row["problem"]), *row["solutions"])]
    for text in texts:
        assert tokenizer.decode(encode(tokenizer, text)) == text


def test_the_shipped_tokenizer_is_the_built_one(tokenizer):
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    text = "What is 100 + 7?\n\n\nany ~text~ \\boxed{99}"
    assert encode(tokenizer, text) == encode(build_tokenizer(), text)


def test_numbers_breaks_and_specials_are_one_token_each(tokenizer):
    single = ["\n", "\n\n", *map(str, range(100)), *SPECIAL_TOKENS]
    ids = [encode(tokenizer, text) for text in single]
    assert all(len(token_ids) == 1 for token_ids in ids)
    assert len({token_ids[0] for token_ids in ids}) == len(single)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|endoftext|>", END_OF_TEXT_ID)


def test_text_from_outside_the_world_comes_back_exactly_too(tokenizer):
    text = "Let $x = 100$; then\t\u221ax = 10, \u4e2d\u6587."
    assert tokenizer.decode(encode(tokenizer, text)) == text


# --- pretraining and measuring


def test_a_batch_labels_the_solutions_and_their_ends_only(tokenizer):
    parts = next(batches(tokenizer, seed=0))
    assert sum(len(ids) for ids, _ in parts) == BATCH_SIZE
    start_of_answer = tokenizer.convert_tokens_to_ids("assistant\n")
    for ids, labels in parts:
        for row_ids, row_labels in zip(ids.tolist(), labels.tolist(), strict=True):
            first, end = row_ids.index(start_of_answer) + 1, row_ids.index(END_OF_TEXT_ID)
            expected = [token if first <= place <= end else IGNORED_LABEL for place, token in enumerate(row_ids)]
            assert row_labels == expected


@pytest.mark.slow
def test_the_sampler_draws_from_the_model_token_by_token(base, tokenizer):
    problem = distinct_problems("test", "easy", 1, seed=1)[0]
    prompt_ids = torch.tensor([encode(tokenizer, prompt_text(problem.text))] * 2)
    eos_id, width = END_OF_TEXT_ID, prompt_ids.shape[1]
    completions = sample(base, prompt_ids, eos_id=eos_id, generator=torch.Generator().manual_seed(0))
    generator, expected = torch.Generator().manual_seed(0), prompt_ids
    for _ in range(completions.shape[1]):
        probabilities = base(input_ids=expected).logits[:, -1].softmax(-1)
        is_done = (expected[:, width:] == eos_id).any(1)
        drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0].masked_fill(is_done, eos_id)
        expected = torch.cat([expected, drawn[:, None]], dim=1)
    assert completions.tolist() == expected[:, width:].tolist()


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        ("\\boxed{5}", True),
        ("\\boxed{4} \\boxed{5}", True),
        ("\\boxed{5} \\boxed{4}", False),
        ("5", False),
        ("", False),
    ],
)
def test_the_last_box_decides(solution, expected):
    assert is_solved(Problem((2, 3), "Compute {sum}."), solution) is expected


# --- the shipped base


def test_the_base_is_small_and_has_about_a_million_parameters(base):
    assert 0.8e6 < sum(parameter.numel() for parameter in base.parameters()) < 1.1e6
    assert sum(path.stat().st_size for path in BASE_DIR.iterdir()) <= 2_000_000
    assert AutoModelForCausalLM.from_pretrained(BASE_DIR).dtype == torch.bfloat16


def test_the_base_is_as_good_as_its_part_in_the_story_needs():
    assert ACCURACY["easy"]["accuracy"] >= 0.8
    assert 0 < ACCURACY["hard"]["interval_95"][0] < ACCURACY["hard"]["interval_95"][1] <= 0.2


@pytest.mark.long
@pytest.mark.parametrize("kind", ["easy", "hard"])
def test_sampling_the_base_again_agrees_with_the_accuracy_table(base, tokenizer, kind):
    problems = distinct_problems("test", kind, 200, seed=7)
    accuracy = measure_accuracy(base, tokenizer, problems, seed=7)
    (low, high), (table_low, table_high) = accuracy.interval_95, ACCURACY[kind]["interval_95"]
    assert low <= table_high and table_low <= high
