"""Write numbers, times and sizes for people."""

import math


def counted(num: int, noun: str) -> str:
    """Return the number and the noun, which takes an s unless it is one.

    >>> counted(1, "step"), counted(2, "step"), counted(0, "GPU")
    ('1 step', '2 steps', '0 GPUs')
    """
    return f"{num} {noun}{'' if num == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a time in the unit that a person would use, rounded up.

    >>> duration(3.2), duration(200.0), duration(7201.0)
    ('4 seconds', '4 minutes', '3 hours')
    """
    for unit, length, most in (("second", 1, 120), ("minute", 60, 7200)):
        if seconds <= most:
            return counted(max(1, math.ceil(seconds / length)), unit)
    return counted(math.ceil(seconds / 3600), "hour")


def size_text(num_bytes: float) -> str:
    """Return a size in GiB, or in MiB where GiB would round it to nearly nothing.

    >>> size_text(1.5 * 2**30), size_text(2**20)
    ('1.50 GiB', '1.00 MiB')
    """
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 0.1 * 2**30 else f"{num_bytes / 2**20:.2f} MiB"
