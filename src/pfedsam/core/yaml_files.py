"""YAML files written by users: limited in size and depth, and read more strictly than YAML does."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import yaml

from pfedsam.core.errors import OptionError
from pfedsam.core.files import read_regular

_ODD = (ValueError, RecursionError, OverflowError, TypeError)
"""The errors of the YAML library for values such as a number of five thousand digits, the 30th of February, or a list as a key."""


MAX_BYTES: Final = 4 * 2**20
MAX_DEPTH: Final = 30
MAX_NODES: Final = 100_000


class _Loader(yaml.SafeLoader):
    """Refuses a file that is nested deeper or is larger than any configuration; the content of an alias is counted each time it is used.

    It also refuses duplicate keys, such as two sites with the same name; YAML itself would keep the last.

    Only `true` and `false` are truth values, as in YAML 1.2: `off` is text, so that a site can be called `no`.

    A number is a number only in the forms that have the same value in YAML 1.1, in which configurations are written, and in YAML 1.2. All
    others are text, from which an option that is a number reads a decimal number: `010` is 10 there (8 in YAML 1.1), `1e-3` is 0.001, and
    `1:30` (90 in YAML 1.1) is refused. An option that is text keeps them as they are, so that a site can be called `007`.
    """

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise OptionError(f"it is nested more than {MAX_DEPTH} levels deep; a configuration has fewer.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _count_nodes(node, {}) > MAX_NODES:
            raise OptionError(f"it has more than {MAX_NODES} values when aliases are replaced; use fewer aliases.")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:  # `<<: *alias`; the keys beside it take precedence over those of the alias
                continue
            key, line = self.construct_object(key_node, deep=deep), key_node.start_mark.line + 1
            if key in lines:
                raise OptionError(
                    f"line {line}: the key {key!r} occurs twice (first in line {lines[key]}). Names of sites and options must differ."
                )
            lines[key] = line
        return super().construct_mapping(node, deep=deep)


def _count_nodes(node: yaml.Node, counted: dict[int, int]) -> int:
    """The number of values in a node, with the content of an alias counted each time it is used.

    Args:
        node: a node of the document.
        counted: the results for nodes that were counted before; a node that contains itself has infinitely many values.
    """
    if id(node) not in counted:
        counted[id(node)] = MAX_NODES + 1
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inside = parts if isinstance(node, yaml.CollectionNode) else []
        counted[id(node)] = 1 + sum(_count_nodes(part, counted) for part in inside)
    return counted[id(node)]


_MERGE = "tag:yaml.org,2002:merge"
_READ_ANEW: Final = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?[0-9]+\.[0-9]*(?:[eE][-+][0-9]+)?|\.[0-9]+(?:[eE][-+][0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
"""Tag -> the pattern of its values, instead of that of YAML 1.1, and the characters with which they begin."""
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _READ_ANEW]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _constructor(tag: str, pattern: str) -> Callable[[_Loader, yaml.ScalarNode], Any]:
    """The function that computes the value of a node with this tag, which a file may also write itself, as in `!!int 010`."""
    usual = yaml.SafeLoader.yaml_constructors[tag]

    def construct(loader: _Loader, node: yaml.ScalarNode) -> Any:  # noqa: ANN401 - a truth value or a number
        text = loader.construct_scalar(node)
        if not re.fullmatch(pattern, text):
            raise OptionError(
                f"line {node.start_mark.line + 1}: {text!r} has no value with the tag {node.tag!r}; leave the tag out."
            )
        return usual(loader, node)

    return construct


for _tag, (_pattern, _first) in _READ_ANEW.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
    _Loader.add_constructor(_tag, _constructor(_tag, _pattern))


def parse_yaml(text: str) -> Any:  # noqa: ANN401 - whatever YAML can hold
    """The content of a YAML text.

    Raises:
        OptionError: the text is not YAML, has a key twice, or is larger or deeper than any configuration.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, *_ODD) as error:
        raise OptionError(f"this is not YAML: {error}") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        OptionError: the file cannot be read, is not YAML, or is larger or deeper than any configuration.
    """
    try:
        content = parse_yaml(read_regular(path, MAX_BYTES).decode("utf-8"))
    except OSError as error:
        raise OptionError(f"{path.name} cannot be read: {error.strerror}. Give the path of a YAML file.") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path.name} is not YAML: it is not UTF-8 text.") from error
    except OptionError as error:
        raise OptionError(f"{path.name}, {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{path.name} must contain keys and values, such as `data:` and `training:`.")
    return content
