"""Define the tiny world: running sums, a tokenizer, and a base of about a million parameters trained from scratch.

It fits a CPU and resembles the real case: the base solves easy problems by steps and guesses at most of the harder
ones. Expert solutions solve more, in a style that the base hardly ever begins by itself.

    problems     problems, expert solutions, the shipped rows   (standard library only)
    corpus       what the base reads in pretraining              (standard library only)
    tokenizer    text <-> ids
    measure      sampling at temperature 1, accuracy with its interval
    pretrain     trains the base and writes it
"""

from pathlib import Path

DATA_DIR = Path(__file__).parent / "data"
BASE_DIR = Path(__file__).parent / "base"
