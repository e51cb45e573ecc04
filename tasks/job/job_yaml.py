"""YAML as its version 1.2 means it: `yes`, `no`, `on` and `off`, `12:30` and a date are text.

PyYAML parses; it knows version 1.1's meaning of plain words alone, so the core schema of YAML 1.2.2 (section 10.3.2)
stands here.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys in silence; here they are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(problem=f"key {key!r} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, 0 if text.startswith(("0o", "0x")) else 10)


_Loader.yaml_implicit_resolvers = {}  # not the parent's, which are 1.1's
for _name, _pattern, _first in _CORE:
    _firsts = ["" if character == "\0" else character for character in _first]
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), _firsts)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


def read_yaml(text: str) -> Any:
    """The text's value. Raises yaml.YAMLError where it is no YAML, or a mapping has a key twice."""
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except yaml.reader.ReaderError as problem:
        raise yaml.YAMLError(f"{problem.reason} (character {problem.character:#x})") from None
    except (ValueError, TypeError, LookupError, AttributeError) as problem:  # a tag whose value is not of its kind
        raise yaml.YAMLError(f"a value is not what its tag or its form says ({str(problem)[:100]})") from None
