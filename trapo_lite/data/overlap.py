"""Which training problems stand, in whole or in part, in a set that is evaluated on: shared runs of words."""

import re
from collections.abc import Iterable, Iterator, Mapping

NUM_WORDS = 13  # as in the GPT-3 paper's decontamination (arXiv:2005.14165, appendix C)
_WORD = re.compile(r"[a-z0-9]+")


class Overlap:
    """The runs of `num_words` words of each set's problems; of a shorter problem, all its words.

    >>> overlap = Overlap({"amc": ["How many positive integers divide 196?"]}, num_words=4)
    >>> overlap.sets_with("So: how many positive  integers, less than 9?"), overlap.sets_with("How many are there?")
    (('amc',), ())
    """

    def __init__(self, problems: Mapping[str, Iterable[str]], *, num_words: int = NUM_WORDS) -> None:
        self._num_words = num_words
        self._names: dict[int, set[str]] = {}
        for name, texts in problems.items():
            for text in texts:
                for run in self._runs(text):
                    self._names.setdefault(run, set()).add(name)

    def sets_with(self, text: str) -> tuple[str, ...]:
        """Names of the sets that share a run of words with the text."""
        return tuple(sorted({name for run in self._runs(text) for name in self._names.get(run, ())}))

    def _runs(self, text: str) -> Iterator[int]:
        """Hashes: of a process, which is all they are used in."""
        words = _WORD.findall(text.casefold())
        for start in range(max(1, len(words) - self._num_words + 1)):
            yield hash(tuple(words[start : start + self._num_words]))
