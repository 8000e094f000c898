"""Lay out what `--help` prints. Only the standard library is imported."""

import argparse
from collections.abc import Sequence

EXAMPLES = "examples:"


class HelpPage(argparse.HelpFormatter):
    """Wrap a command's description, and keep the lines of its examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith(EXAMPLES) else super()._fill_text(text, width, indent)


def examples_text(examples: Sequence[tuple[str, str]]) -> str | None:
    """Return the end of a page. examples: arguments of the command, and what it does with them."""
    lines = [f"  %(prog)s {arguments}".rstrip() + f"\n      {purpose}" for arguments, purpose in examples]
    return "\n".join([EXAMPLES, *lines]) if lines else None
