"""Schemas that clients send: what is refused before llguidance sees it, and how they are put in words that it knows."""

import json
import string
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote, unquote

from axk1.serve.errors import Refusal
from axk1.serve.settings import Settings

_DATA = {"const", "enum", "default", "examples"}
"""Words of a schema that hold values, not schemas."""
_NAMED = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
"""Words that hold schemas by names, which may be any word."""


def prepared(schema: Mapping[str, Any], limits: Settings) -> dict[str, Any]:
    """``schema`` as llguidance is given it.

    Raises:
        Refusal: more text or depth than allowed, a regular expression that is too long or nested, or a schema whose
            values could never end.
    """
    _check_depth(schema, limits, limits.max_schema_depth)
    size = len(json.dumps(schema))
    if size > limits.max_schema:
        raise Refusal(f"The schema has {size} characters; {limits.max_schema} are taken.", param="response_format")
    endless = _endless(schema)
    if id(schema) in endless:
        raise Refusal(
            "Nothing fits the schema: by its references, every value holds another of its kind, without end; let one "
            "of them be null, left out, or an empty list.",
            param="response_format",
        )
    return _plainer(schema, endless)


def _plainer(schema: Any, endless: Collection[int]) -> Any:
    """The same schema in words that llguidance knows: references as URIs are written, ``oneOf`` of constants that
    differ, as enumerations with titles are, as ``anyOf``, and false for what could never end: else a reply could begin
    it."""
    if isinstance(schema, list):
        return [_plainer(each, endless) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    if id(schema) in endless:
        return False
    plain = {}
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, Mapping):
            plain[key] = {name: _plainer(each, endless) for name, each in value.items()}
        else:
            plain[key] = value if key in _DATA else _plainer(value, endless)
    if isinstance(name := plain.get("$ref"), str):
        plain["$ref"] = quote(name, safe=string.punctuation)
    cases = plain.get("oneOf")
    if isinstance(cases, list) and "anyOf" not in plain and all(isinstance(c, Mapping) and "const" in c for c in cases):
        constants = {json.dumps(case["const"], sort_keys=True) for case in cases}
        if len(constants) == len(cases) and not any(isinstance(case["const"], float) for case in cases):
            plain["anyOf"] = plain.pop("oneOf")
    return plain


def _check_depth(value: Any, limits: Settings, left: int) -> None:
    if left == 0:
        raise Refusal(f"The schema is more than {limits.max_schema_depth} deep.", param="response_format")
    if isinstance(value, Mapping):
        patterns = [value.get("pattern"), *_keys(value.get("patternProperties"))]
        for pattern in patterns:
            if isinstance(pattern, str):
                check_pattern(pattern, limits)
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_depth(item, limits, left - 1)


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, Mapping) else []


def check_pattern(pattern: str, limits: Settings) -> None:
    """Refuses a regular expression that would take long to compile.

    Raises:
        Refusal: it is too long or nested.
    """
    if len(pattern) > limits.max_pattern or pattern.count("(") > 64 or pattern.count("{") > 64:
        raise Refusal(
            f"A regular expression has {len(pattern)} characters, {pattern.count('(')} groups and {pattern.count('{')} "
            f"repetitions; {limits.max_pattern}, 64 and 64 are taken.",
            param="response_format",
        )


def _endless(root: Any) -> set[int]:
    """The schemas in ``root``, by their ids, that have no value that ends, as far as references say. What else makes a
    schema impossible is found by llguidance, which follows references one by one and does not see that they go round.

    A schema has a value once all of its :func:`_parts` have; a list of cases, once one of them has. Each is looked at
    once, and again for each of its parts that turns out to have one: the time is that of reading ``root``.
    """
    missing: dict[int, int] = {}
    wanted_by: dict[int, list[int]] = {}
    unseen, ended = [root], []
    while unseen:
        schema = unseen.pop()
        if id(schema) in missing:
            continue
        unseen += schema if isinstance(schema, list) else schema.values() if isinstance(schema, Mapping) else []
        parts = _parts(schema, root)
        missing[id(schema)] = len(parts) if isinstance(schema, Mapping) else min(len(parts), 1)
        for part in parts:
            wanted_by.setdefault(id(part), []).append(id(schema))
        ended += [] if missing[id(schema)] else [id(schema)]
    while ended:
        for schema in wanted_by.pop(ended.pop(), []):
            missing[schema] -= 1
            ended += [] if missing[schema] else [schema]
    return {schema for schema, count in missing.items() if count > 0}


def _parts(schema: Any, root: Any) -> list[Any]:
    """What every value of ``schema`` holds or is a value of: schemas, or lists of schemas of which it is one."""
    if isinstance(schema, list):
        return schema
    if not isinstance(schema, Mapping):
        return []
    parts = [cases for word in ("anyOf", "oneOf") if isinstance(cases := schema.get(word), list) and cases]
    parts += cases if isinstance(cases := schema.get("allOf"), list) else []
    parts += _target(schema.get("$ref"), root)
    properties, required = schema.get("properties"), schema.get("required")
    if schema.get("type") == "object" and isinstance(properties, Mapping) and isinstance(required, list):
        parts += [properties[name] for name in required if isinstance(name, str) and name in properties]
    least = schema.get("minItems")
    if schema.get("type") == "array" and isinstance(least, int):
        first = cases if isinstance(cases := schema.get("prefixItems"), list) else []
        parts += first[: max(least, 0)]
        parts += [schema["items"]] if least > len(first) and "items" in schema else []
    return parts


def _target(reference: Any, root: Any) -> list[Any]:
    """The schema that a pointer within the document names, if there is one."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return []
    target = root
    for name in unquote(reference[2:]).split("/") if reference != "#" else []:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and name.isdecimal() and len(name) < 9 and int(name) < len(target):
            target = target[int(name)]
        elif isinstance(target, Mapping) and name in target:
            target = target[name]
        else:
            return []
    return [target]
