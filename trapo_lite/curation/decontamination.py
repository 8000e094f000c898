"""Find training problems that occur, in whole or in part, in an evaluation set, by shared runs of words."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

NUM_WORDS = 13  # as in the GPT-3 paper's decontamination (arXiv:2005.14165, appendix C)
FEWEST_WORDS = 6  # of a shorter problem, only the whole text is compared
_WORD = re.compile(r"[^\W_]+")


class Overlap:
    """Hold the runs of NUM_WORDS words of each set's problems. A shorter problem is one run of all its words.

    A run in two different problems is a phrase ("where m and n are relatively prime ...") and does not count. A problem
    made only of phrases is found as a whole. Two problems that share half of their runs are not different: they are the
    same problem in two sets, or two questions on one text.

    >>> overlap = Overlap({"amc": ["How many positive whole numbers divide 196?"]})
    >>> overlap.sets_with("7. How many positive whole-numbers divide 196? Box it."), overlap.sets_with("How many?")
    (('amc',), ())
    """

    def __init__(self, problems: Mapping[str, Iterable[str]]) -> None:
        self._names: dict[int, set[str]] = {}
        self._wholes: dict[tuple[str, ...], set[str]] = {}
        self._lengths: set[int] = set()
        for name, texts in problems.items():
            for text in texts:
                self._wholes.setdefault(_words(text), set()).add(name)
        self._wholes.pop((), None)
        long_enough = [words for words in self._wholes if len(words) >= min(NUM_WORDS, FEWEST_WORDS)]
        runs_of = {words: frozenset(_runs(words, min(NUM_WORDS, len(words)))) for words in long_enough}
        phrases = _common_phrases(runs_of.values())
        for words, runs in runs_of.items():
            distinctive = runs - phrases
            self._lengths.add(min(NUM_WORDS, len(words)) if distinctive else len(words))
            for run in distinctive or _runs(words, len(words)):
                self._names.setdefault(run, set()).update(self._wholes[words])

    def sets_with(self, text: str) -> tuple[str, ...]:
        """Return the names of the sets that share a run of words, or the whole text, with this text."""
        words = _words(text)
        names = set(self._wholes.get(words, ()))
        for length in self._lengths:
            names |= {name for run in _runs(words, length) for name in self._names.get(run, ())}
        return tuple(sorted(names))


def _common_phrases(texts: Iterable[frozenset[int]]) -> set[int]:
    """Return the runs in two texts that share less than half of their runs. A text is given as the set of its runs."""
    first: dict[int, frozenset[int]] = {}
    return {
        run
        for runs in texts
        for run in runs
        if 2 * len(runs & first.setdefault(run, runs)) < min(len(runs), len(first[run]))
    }


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: Sequence[str], length: int) -> Iterator[int]:
    """Yield the hashes of the runs. They are valid in this process only."""
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))
