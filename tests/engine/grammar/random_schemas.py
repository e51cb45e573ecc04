"""Random JSON schemas, each from its seed alone: what a person may write, nested, bounded and referring to itself."""

import string
from random import Random
from typing import Any

Schema = dict[str, Any]

PATTERNS = (
    r"^[A-Z]{2}-[0-9]{3}$",
    r"^(red|green|blue)$",
    r"^\d{4}-\d{2}$",
    r"^[a-f0-9]{8}$",
    r"^#[0-9A-F]{6}$",
    r"^v\d\.\d{1,2}(-rc\d)?$",
    r"[0-9]{2}(kg|cm)",
    r"^[\w.]{1,12}@[a-z]{2,8}\.(org|net)$",
)
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
WORDS = ("name", "id", "größe", "a b", 'quote"d', "back\\slash", "line\nbreak", "zip", "tags", "π", "x", "unit", "ok?")
CONSTANTS: tuple[Any, ...] = (None, True, 0, -17, 2.5, "", "a", "é\t", 'say "no"', [1, "two"], {"k": None}, 10**12)


def random_schema(seed: int) -> Schema:
    """An object, array or value of up to four levels, with definitions that it may refer to."""
    draw = Random(seed)
    names = [f"d{number}" for number in range(draw.choice((0, 0, 1, 2)))]
    schema = _any(draw, 3, names) if draw.random() < 0.25 else _object(draw, 3, names)
    if names:
        schema = schema | {"$defs": {name: _definition(draw, name) for name in names}}
    return schema


def _definition(draw: Random, name: str) -> Schema:
    """Half of them may hold themselves, in a list that may be empty or a property that may be missing."""
    if draw.random() < 0.5:
        return _any(draw, 1, [])
    this = {"$ref": f"#/$defs/{name}"}
    inner = draw.choice((this, {"type": "array", "items": this, "maxItems": 2}, {"anyOf": [{"type": "null"}, this]}))
    return {
        "type": "object",
        "properties": {"value": _scalar(draw), "next": inner},
        "required": ["value"],
        "additionalProperties": False,
    }


def _any(draw: Random, depth: int, names: list[str]) -> Schema:
    if names and draw.random() < 0.2:
        return {"$ref": f"#/$defs/{draw.choice(names)}"}
    kinds = [_scalar] * 3
    if depth > 0:
        deep = (_object, _object, _array, _tuple, _any_of)
        kinds += [lambda draw, make=make: make(draw, depth - 1, names) for make in deep]
    return draw.choice(kinds)(draw)


def _object(draw: Random, depth: int, names: list[str]) -> Schema:
    keys = draw.sample(WORDS, draw.randrange(5))
    schema: Schema = {"type": "object", "properties": {key: _any(draw, depth, names) for key in keys}}
    required = [key for key in keys if draw.random() < 0.6]
    if required or draw.random() < 0.5:
        schema["required"] = required
    more = draw.random()
    if more < 0.7:
        schema["additionalProperties"] = False
    elif more < 0.85:
        schema["additionalProperties"] = _scalar(draw)
    return schema


def _array(draw: Random, depth: int, names: list[str]) -> Schema:
    least = draw.randrange(3)
    schema: Schema = {"type": "array", "items": _any(draw, depth, names), "maxItems": least + draw.randrange(3)}
    return schema | ({"minItems": least} if least else {})


def _tuple(draw: Random, depth: int, names: list[str]) -> Schema:
    count = 1 + draw.randrange(3)
    items = [_any(draw, depth, names) for _ in range(count)]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": count}


def _any_of(draw: Random, depth: int, names: list[str]) -> Schema:
    return {"anyOf": [_any(draw, depth, names) for _ in range(2 + draw.randrange(2))]}


def _scalar(draw: Random) -> Schema:
    return draw.choice((_string, _string, _pattern, _integer, _number, _enum, _constant, _plain))(draw)


def _string(draw: Random) -> Schema:
    least = draw.randrange(5)
    return {"type": "string", "minLength": least, "maxLength": least + draw.randrange(12)}


def _pattern(draw: Random) -> Schema:
    if draw.random() < 0.6:
        return {"type": "string", "pattern": draw.choice(PATTERNS), "maxLength": 24}
    return {"type": "string", "format": draw.choice(FORMATS)}


def _integer(draw: Random) -> Schema:
    low = draw.randrange(-1000, 1000)
    kinds: tuple[Schema, ...] = (
        {"minimum": low, "maximum": low + draw.randrange(2000)},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + 2 + draw.randrange(50)},
        {"minimum": 0, "maximum": 60, "multipleOf": draw.choice((2, 5, 12))},
        {"minimum": low},
    )
    return {"type": "integer"} | draw.choice(kinds)


def _number(draw: Random) -> Schema:
    low = round(draw.uniform(-50, 50), 2)
    kinds: tuple[Schema, ...] = (
        {"minimum": low, "maximum": round(low + draw.uniform(0.5, 99), 2)},
        {"exclusiveMinimum": 0, "maximum": 1},
        {},
    )
    return {"type": "number"} | draw.choice(kinds)


def _enum(draw: Random) -> Schema:
    if draw.random() < 0.5:
        return {"enum": ["".join(draw.choices(string.ascii_letters, k=1 + draw.randrange(8))) for _ in range(3)]}
    return {"enum": draw.sample(CONSTANTS, 3)}


def _constant(draw: Random) -> Schema:
    return {"const": draw.choice(CONSTANTS)}


def _plain(draw: Random) -> Schema:
    return {"type": draw.choice(("boolean", "null", "string", ["integer", "null"], ["number", "boolean"]))}
