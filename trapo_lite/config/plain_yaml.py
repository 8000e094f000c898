"""Read and write YAML for configurations: ambiguous text, and references that stand for very many values, are errors.

Differences from YAML 1.1 as PyYAML reads it:

    1e-5          is a number; PyYAML needs 1.0e-5
    010, 1:30     are 10 (not the octal 8) and the text "1:30" (not 90)
    2026-01-31    is text, not a date
    {r: 8, r: 9}  is an error; PyYAML drops the first of two equal keys
"""

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_CHARACTERS = 1 << 18
MAX_DEPTH = 64
MAX_VALUES = 100_000  # a reference to a list of ten values counts as ten

INT_TAG, FLOAT_TAG, DATE_TAG = (f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$")
FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class _Loader(yaml.SafeLoader):
    """A _Loader reads one text; it raises yaml.YAMLError, or ValueError for a number with thousands of digits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self._depth == MAX_DEPTH:
            raise ConstructorError(None, None, f"more than {MAX_DEPTH} levels", self.peek_event().start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> Node | None:
        node = super().get_single_node()
        if node is not None and _num_values(node, {}) > MAX_VALUES:
            raise ConstructorError(None, None, f"stands for more than {MAX_VALUES:,} values", node.start_mark)
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                continue
            if key.value in names:
                raise ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """A _Dumper quotes every text that PyYAML or this module's loader would read as another type."""


def _num_values(node: Node, known: dict[int, int | None]) -> int:
    """Return how many values a node stands for, after following references."""
    if id(node) not in known:
        known[id(node)] = None
        children: list[Node] = []
        if isinstance(node, SequenceNode):
            children = node.value
        elif isinstance(node, MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_num_values(child, known) for child in children)
    count = known[id(node)]
    if count is None:
        raise ConstructorError(None, None, "refers to itself", node.start_mark)
    return count


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT_TAG, FLOAT_TAG, DATE_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(FLOAT_TAG, FLOAT, list("-+0123456789."))
    _class.add_implicit_resolver(INT_TAG, INT, list("-+0123456789"))


def parse(text: str) -> Any:
    """Return the content of the text; raise ValueError with one line about what is wrong with it."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text):,} characters; a configuration has at most {MAX_CHARACTERS:,}")
    try:
        return yaml.load(text, Loader=_Loader)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
        raise ValueError(f"not valid YAML: {error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise ValueError(f"not valid YAML: a number cannot be read ({error})") from None


def dump(content: Any) -> str:
    """Return YAML text from which `parse` reads the same content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def in_one_line(content: Any) -> str:
    """Return the content as YAML text in one line.

    >>> in_one_line({"type": "trust_region", "alpha": 0.2})
    '{type: trust_region, alpha: 0.2}'
    """
    text = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
