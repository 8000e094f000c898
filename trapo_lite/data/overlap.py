"""Which training problems stand, in whole or in part, in a set that is evaluated on: shared runs of words."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

NUM_WORDS = 13  # as in the GPT-3 paper's decontamination (arXiv:2005.14165, appendix C)
FEWEST_WORDS = 6  # of a shorter problem, only the whole text
_WORD = re.compile(r"[a-z0-9]+")


class Overlap:
    """The runs of `num_words` words of each set's problems; of a shorter problem, all its words as one run.

    A run that several problems share is a way of speaking ("where m and n are relatively prime ...") and not counted.

    >>> overlap = Overlap({"amc": ["How many positive whole numbers divide 196?"]})
    >>> overlap.sets_with("7. How many positive whole-numbers divide 196? Box it."), overlap.sets_with("How many?")
    (('amc',), ())
    """

    def __init__(self, problems: Mapping[str, Iterable[str]], *, num_words: int = NUM_WORDS) -> None:
        self._num_words = num_words
        self._names: dict[int, set[str]] = {}
        self._wholes: dict[tuple[str, ...], set[str]] = {}
        self._lengths: set[int] = {num_words}
        first: dict[int, tuple[str, ...]] = {}
        shared: set[int] = set()
        for name, texts in problems.items():
            for text in texts:
                words = _words(text)
                self._wholes.setdefault(words, set()).add(name)
                length = min(num_words, len(words))
                if length < min(num_words, FEWEST_WORDS):
                    continue
                self._lengths.add(length)
                for run in _runs(words, length):
                    if first.setdefault(run, words) != words:
                        shared.add(run)
                    self._names.setdefault(run, set()).add(name)
        for run in shared:
            del self._names[run]

    def sets_with(self, text: str) -> tuple[str, ...]:
        """Names of the sets that share a run of words, or the whole text, with this one."""
        words = _words(text)
        found = set(self._wholes.get(words, ()))
        for length in self._lengths:
            found |= {name for run in _runs(words, length) for name in self._names.get(run, ())}
        return tuple(sorted(found))


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _runs(words: Sequence[str], length: int) -> Iterator[int]:
    """Hashes: of a process, which is all they are used in."""
    for start in range(len(words) - length + 1):
        yield hash(tuple(words[start : start + length]))
