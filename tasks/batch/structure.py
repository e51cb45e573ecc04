"""What a chat's text has to be: `response_format`, a tool that has to be called, or vLLM's structured outputs."""

from tasks.batch.endpoint import BadRequestError, Json

STRUCTURE = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
_GUIDED = "guided_"


def structure_of(body: Json) -> tuple[str, Json] | None:
    """The parameter that asks for a form, and the sampling's `structured_outputs` of it; None for free text.

    Raises BadRequestError for two, or a wrong one.
    """
    given = [name for name in STRUCTURE if name in body]
    asked = [(name, one) for name in given if (one := _one(name, body[name])) is not None]
    if len(asked) > 1:
        raise BadRequestError("invalid_value", f"{' and '.join(given)} exclude each other", given[1])
    return asked[0] if asked else None


def _one(name: str, value: object) -> Json | None:
    if name.startswith(_GUIDED):
        return {name.removeprefix(_GUIDED): value}
    if not isinstance(value, dict):
        raise BadRequestError("invalid_type", f"{name} is an object, not {value!r:.60}", name)
    return dict(value) if name == "structured_outputs" else _response_format(value)


def _response_format(value: Json) -> Json | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        said = f"response_format.type is text, json_object or json_schema, not {kind!r:.60}"
        raise BadRequestError("invalid_value", said, "response_format.type")
    named = value.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        name = "response_format.json_schema.schema"
        raise BadRequestError("missing_required_parameter", f"{name} is required, and is an object", name)
    return {"json": schema}
