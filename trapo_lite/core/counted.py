"""Write a number with its noun."""


def counted(num: int, noun: str) -> str:
    """Return the number and the noun, which takes an s unless it is one.

    >>> counted(1, "step"), counted(2, "step"), counted(0, "GPU")
    ('1 step', '2 steps', '0 GPUs')
    """
    return f"{num} {noun}{'' if num == 1 else 's'}"
