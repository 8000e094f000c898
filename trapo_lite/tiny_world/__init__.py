"""The tiny world: running sums, a tokenizer and a base of about a million parameters, trained on them from scratch.

It fits a CPU and is shaped like the real case: the base solves easy problems by steps, guesses at most of the harder
ones, and expert solutions reach further in a style it hardly ever opens by itself.

    problems     problems, expert solutions, the shipped rows   (standard library only)
    corpus       what the base reads while it is pretrained      (standard library only)
    tokenizer    text <-> ids
    measure      sampling at temperature 1, accuracy with its interval
    pretrain     trains the base and writes it
"""

from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
BASE_DIR = Path(__file__).parent / "base"
