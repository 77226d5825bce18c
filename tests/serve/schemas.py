"""JSON Schemas as people send them, in the spirit of JSONSchemaBench: every feature alone, and together in use.

:data:`SCHEMAS` has them by name. Those of :data:`REFUSED` are not supported, and have to be refused with a message in
which the given words occur; a reply under any other has to be valid.
"""

from typing import Any

Schema = dict[str, Any]


def obj(required: str = "", /, *, more: Any = False, **properties: Any) -> Schema:
    """An object: names of ``required`` with spaces between ("*" for all), ``more`` for additionalProperties."""
    names = list(properties) if required == "*" else required.split()
    extra = {} if more is None else {"additionalProperties": more}
    return {"type": "object", "properties": properties, "required": names, **extra}


def arr(items: Any = None, **rules: Any) -> Schema:
    """An array."""
    return {"type": "array", **({} if items is None else {"items": items}), **rules}


def text(**rules: Any) -> Schema:
    """A string."""
    return {"type": "string", **rules}


def whole(**rules: Any) -> Schema:
    """An integer."""
    return {"type": "integer", **rules}


def num(**rules: Any) -> Schema:
    """A number."""
    return {"type": "number", **rules}


def enum(*values: Any) -> Schema:
    """One of some values."""
    return {"enum": list(values)}


def ref(name: str) -> Schema:
    """A definition of the same schema."""
    return {"$ref": f"#/$defs/{name}"}


def defs(root: Schema, **definitions: Any) -> Schema:
    """``root`` with definitions."""
    return {**root, "$defs": definitions}


YES: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
NAME = text(minLength=1, maxLength=12)
SHORT = text(maxLength=8)
COUNT = whole(minimum=0, maximum=99)


def numbers() -> dict[str, Schema]:
    """Scalars and their bounds."""
    return {
        "boolean": YES,
        "null": NULL,
        "integer-between": whole(minimum=-3, maximum=17),
        "integer-far": whole(minimum=1_000_000, maximum=9_999_999),
        "integer-negative": whole(minimum=-999, maximum=-100),
        "integer-exclusive": whole(exclusiveMinimum=0, exclusiveMaximum=4),
        "integer-one": whole(minimum=7, maximum=7),
        "integer-multiple": whole(minimum=0, maximum=60, multipleOf=5),
        "number-between": num(minimum=0, maximum=1),
        "number-exclusive": num(exclusiveMinimum=0, exclusiveMaximum=1),
        "number-small": num(minimum=0.001, maximum=0.01),
        "number-negative": num(minimum=-2.5, maximum=-0.5),
        "number-cents": num(minimum=0, maximum=100, multipleOf=0.25),
        "number-latitude": num(minimum=-90, maximum=90),
        "bounds-contradict": whole(minimum=5, maximum=4),
        "types-list": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        "types-many": {"type": ["boolean", "string", "null"], "maxLength": 5},
        "types-all": {"type": ["string", "integer", "object", "array", "boolean", "null"], "maxLength": 4,
                      "minimum": 0, "maximum": 9, "maxProperties": 0, "maxItems": 0},
        "const-number": {"const": 42},
        "const-decimal": {"const": 3.5},
        "const-null": {"const": None},
        "const-boolean": {"const": False},
    }  # fmt: skip


def strings() -> dict[str, Schema]:
    """Lengths, patterns, formats, enumerations."""
    patterns = {
        "digits": r"^[0-9]{3}-[0-9]{4}$",
        "hex": r"^#[0-9a-f]{6}$",
        "slug": r"^[a-z0-9]+(-[a-z0-9]+){0,3}$",
        "choice": r"^(red|green|blue)$",
        "optional": r"^v?[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{1,2}$",
        "escapes": r"^\d{2}\s\w{3}\.$",
        "upper": r"^[A-Z]{2,5}$",
        "hangul": "^[가-힣]{2,4}$",
        "kana": "^[ぁ-ん]{1,5}$",
        "negated": r"^[^a-zA-Z\s\"\\\x00-\x1f]{1,4}$",
        "quote": r'^"[ab]"$',
        "backslash": r"^\\[nt]$",
        "unanchored": r"[0-9]{2}",
        "dotted": r"^a.c$",
        "iban": r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{4}[0-9]{7}$",
        "semver": r"^(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})(-[0-9A-Za-z]{1,4})?$",
        "money": r"^\$[0-9]{1,3}(,[0-9]{3})?\.[0-9]{2}$",
        "lookahead": r"^(?=.*[0-9])[a-z0-9]{4,8}$",
        "backreference": r"^(a|b)\1$",
    }
    formats = ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
    languages = ["한국어", "English", "日本語", "中文", "español", "français", "Türkçe", "हिन्दी", "العربية"]
    found = {f"pattern-{name}": text(pattern=pattern) for name, pattern in patterns.items()}
    found |= {f"format-{name}": text(format=name) for name in formats}
    return found | {
        "string-empty": text(maxLength=0),
        "string-lengths": text(minLength=3, maxLength=9),
        "string-exact": text(minLength=5, maxLength=5),
        "string-long": text(minLength=60, maxLength=80),
        "pattern-and-length": text(pattern="^[a-c]+$", minLength=2, maxLength=6),
        "format-unknown": text(format="phone-number-of-a-cat", maxLength=9),
        "format-in-object": obj("*", id=text(format="uuid"), at=text(format="date"), ip=text(format="ipv4")),
        "enum-strings": enum("north", "east", "south", "west"),
        "enum-typed": {"type": "string", "enum": ["a", "b", 3]},
        "enum-mixed": enum("red", 7, 2.5, None, True, [1, "x"], {"k": "v"}),
        "enum-unicode": enum(*languages),
        "enum-emoji": enum("👍", "👎", "👨‍👩‍👧‍👦", "🏳️‍🌈"),
        "enum-escapes": enum('say "hi"', "back\\slash", "line\nbreak", "tab\t", "nul\u0000", "é", "</think>"),
        "enum-prefixes": enum("a", "aa", "aaa", "aaaa", "ab"),
        "enum-numbers": enum(1, 10, 100, -1, 0.5, 1e3),
        "enum-one": enum("only"),
        "enum-long": enum(*(f"item-{number:04}-{'abcdefghij'[number % 10] * 5}" for number in range(600))),
        "enum-countries": {"type": "string", "enum": [f"{a}{b}" for a in "ABCDEFGHIJ" for b in "KLMNOPQRSTUVWXYZ"]},
        "const-string": {"const": "exactly this"},
        "const-unicode": {"const": "안녕 — ¡hola! 👋"},
        "const-object": {"const": {"a": [1, 2, {"b": None}], "c": "d"}},
        "const-list": {"const": [[], {}, ""]},
        "string-tag-inside": {"const": "<|im_end|></think><tool_call>"},
    }


def arrays() -> dict[str, Schema]:
    """Lists and tuples."""
    return {
        "array-empty": arr(maxItems=0),
        "array-booleans": arr(YES, minItems=2, maxItems=4),
        "array-any-end": arr(COUNT, maxItems=3),
        "array-exact": arr(whole(minimum=0, maximum=1), minItems=8, maxItems=8),
        "array-enums": arr(enum("x", "o", " "), minItems=9, maxItems=9),
        "array-objects": arr(obj("*", id=COUNT, ok=YES), minItems=1, maxItems=3),
        "array-of-arrays": arr(arr(whole(minimum=0, maximum=9), minItems=2, maxItems=2), minItems=2, maxItems=2),
        "array-deep": arr(arr(arr(arr(YES, minItems=1, maxItems=1), maxItems=1), maxItems=1), minItems=1, maxItems=2),
        "array-union": arr({"anyOf": [YES, NULL, whole(minimum=0, maximum=5)]}, minItems=3, maxItems=5),
        "tuple": {"type": "array", "prefixItems": [SHORT, COUNT, YES], "items": False, "minItems": 3},
        "tuple-and-rest": {"type": "array", "prefixItems": [SHORT], "items": COUNT, "minItems": 1, "maxItems": 3},
        "tuple-partly": {"type": "array", "prefixItems": [YES, YES, YES], "items": False, "minItems": 1},
        "array-no-items-type": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3},
        "array-unique": arr(COUNT, minItems=2, maxItems=3, uniqueItems=True),
        "array-contains": {"type": "array", "contains": {"const": 1}, "maxItems": 3},
        "array-bounds-contradict": arr(YES, minItems=3, maxItems=2),
        "array-of-strings": arr(text(minLength=1, maxLength=5), minItems=1, maxItems=3),
        "array-of-dates": arr(text(format="date"), minItems=1, maxItems=2),
        "array-matrix": arr(arr(num(minimum=-1, maximum=1), minItems=3, maxItems=3), minItems=3, maxItems=3),
    }


def objects() -> dict[str, Schema]:
    """Names, what may be left out, maps."""
    deep: Schema = YES
    for level in range(10):
        deep = obj("*", **{f"level{level}": deep})
    return {
        "object-empty": obj(),
        "object-one": obj("*", a=COUNT),
        "object-optional": obj("b", a=COUNT, b=YES, c=SHORT, d=NULL),
        "object-all-optional": obj(a=YES, b=YES, c=YES),
        "object-required-out-of-order": {**obj("c a b", a=YES, b=YES, c=YES)},
        "object-required-undeclared": {"type": "object", "properties": {"a": YES}, "required": ["a", "z"],
                                       "additionalProperties": COUNT},
        "object-forbidden-but-required": {"type": "object", "properties": {"a": YES}, "required": ["z"],
                                          "additionalProperties": False},
        "object-nested": obj("*", a=obj("*", b=obj("*", c=obj("*", d=YES)))),
        "object-deep": deep,
        "object-wide": obj("*", **{f"field_{number}": YES for number in range(40)}),
        "object-wide-optional": obj("f3 f17", **{f"f{number}": COUNT for number in range(24)}),
        "object-unicode-names": obj("*", **{"이름": SHORT, "年齢": COUNT, "¿sí?": YES, "naïve": YES}),
        "object-odd-names": obj("*", **{"a b": YES, 'q"uote': YES, "back\\slash": YES, "new\nline": YES, "$ref": YES}),
        "object-empty-name": {"type": "object", "properties": {"": COUNT}, "required": [""],
                              "additionalProperties": False},
        "object-names-like-keywords": obj("*", type=SHORT, properties=YES, required=YES, enum=COUNT, items=NULL),
        "object-prefix-names": obj("*", a=YES, aa=YES, aaa=YES, ab=YES),
        "object-closed": obj("a", a=YES, b=COUNT, more=False),
        "map-counts": {"type": "object", "additionalProperties": COUNT, "maxProperties": 3},
        "map-of-objects": {"type": "object", "additionalProperties": obj("*", n=COUNT), "minProperties": 1,
                           "maxProperties": 2},
        "map-of-lists": {"type": "object", "additionalProperties": arr(YES, maxItems=2), "maxProperties": 2},
        "map-pattern": {"type": "object", "patternProperties": {"^x_[a-z]{1,4}$": COUNT},
            "additionalProperties": False},
        "map-two-patterns": {"type": "object", "patternProperties": {"^i_": COUNT, "^s_": SHORT},
                             "additionalProperties": False},
        "map-beside-names": {"type": "object", "properties": {"id": COUNT}, "required": ["id"],
                             "additionalProperties": YES},
        "map-names-by-pattern": {"type": "object", "propertyNames": {"pattern": "^[a-z]{2}$"},
                                 "additionalProperties": YES},
        "map-of-maps": {"type": "object", "maxProperties": 2,
                        "additionalProperties": {"type": "object", "additionalProperties": YES, "maxProperties": 2}},
        "object-most": {"type": "object", "maxProperties": 1, "additionalProperties": YES},
        "object-least-declared": {**obj("a b", a=YES, b=YES), "minProperties": 2},
        "object-open": obj("a", a=COUNT, more=None),
        "object-property-true": {"type": "object", "properties": {"a": True}, "required": ["a"],
                                 "additionalProperties": False},
        "object-property-never": {"type": "object", "properties": {"a": YES, "b": False}, "required": ["a"],
                                  "additionalProperties": False},
        "object-dependent": {**obj(a=YES, b=YES), "dependentRequired": {"a": ["b"]}},
        "object-dependent-schemas": {**obj(a=YES, b=YES), "dependentSchemas": {"a": {"required": ["b"]}}},
        "object-unevaluated": {"type": "object", "properties": {"a": YES}, "required": ["a"],
                               "unevaluatedProperties": False},
        "object-annotated": {**obj("*", a={**COUNT, "title": "A", "description": "of things", "default": 3,
                                           "examples": [1, 2]}),
                             "title": "T", "$comment": "c", "$schema": "https://json-schema.org/draft/2020-12/schema"},
        "object-read-only": obj("*", a={**YES, "readOnly": True, "deprecated": False}),
        "object-nullable": obj("*", a={"type": ["string", "null"], "maxLength": 5}, b={"anyOf": [COUNT, NULL]}),
    }  # fmt: skip


def unions() -> dict[str, Schema]:
    """Schemas of schemas."""
    cat = obj("*", kind={"const": "cat"}, lives=whole(minimum=0, maximum=9))
    dog = obj("*", kind={"const": "dog"}, good=YES)
    bird = obj("kind", kind={"const": "bird"}, wings=enum(0, 1, 2))
    return {
        "any-of-scalars": {"anyOf": [COUNT, YES, NULL, SHORT]},
        "any-of-objects": {"anyOf": [cat, dog, bird]},
        "any-of-in-list": arr({"anyOf": [cat, dog, bird]}, minItems=1, maxItems=3),
        "any-of-nested": {"anyOf": [{"anyOf": [YES, {"anyOf": [NULL, COUNT]}]}, arr(YES, maxItems=1)]},
        "any-of-overlapping": {"anyOf": [text(maxLength=3), text(pattern="^[a-z]{5}$")]},
        "any-of-with-siblings": {"type": "object", "properties": {"a": COUNT, "b": COUNT},
                                 "anyOf": [{"required": ["a"]}, {"required": ["b"]}], "additionalProperties": False},
        "any-of-one": {"anyOf": [COUNT]},
        "any-of-lengths": {"anyOf": [text(minLength=2, maxLength=2), text(minLength=4, maxLength=4)]},
        "one-of-kinds": {"oneOf": [cat, dog, bird]},
        "one-of-types": {"oneOf": [YES, COUNT, NULL]},
        "one-of-consts": {"oneOf": [{"const": 1, "title": "one"}, {"const": 2, "title": "two"}]},
        "one-of-overlapping": {"oneOf": [whole(minimum=0, maximum=5), whole(minimum=3, maximum=9)]},
        "one-of-shapes": {"oneOf": [obj("*", circle=COUNT), obj("*", square=COUNT)]},
        "all-of-merged": {"allOf": [obj("a", a=COUNT, more=None), obj("b", b=YES, more=None)]},
        "all-of-bounds": {"allOf": [whole(minimum=3), whole(maximum=8)]},
        "all-of-closed": {"allOf": [{"type": "object", "properties": {"a": COUNT}, "required": ["a"]}],
                          "properties": {"a": True, "b": YES}, "additionalProperties": False},
        "all-of-contradicts": {"allOf": [YES, COUNT]},
        "all-of-patterns": {"allOf": [text(pattern="^[a-z]{3,8}$"), text(minLength=4, maxLength=5)]},
        "all-of-enums": {"allOf": [enum("a", "b", "c"), enum("b", "c", "d")]},
        "not-a-type": {"not": {"type": "string"}},
        "not-a-value": {"type": "integer", "not": {"const": 3}},
        "if-then": {"type": "object", "properties": {"a": YES}, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        "nothing-fits": {"type": "object", "properties": {"a": False}, "required": ["a"]},
        "schema-true-inside": arr(True, minItems=1, maxItems=1),
        "nullable-object": {"anyOf": [obj("*", a=COUNT), NULL]},
    }  # fmt: skip


def references() -> dict[str, Schema]:
    """Definitions, by all ways of naming them, and recursion."""
    node = obj("value", value=COUNT, next={"anyOf": [ref("node"), NULL]})
    tree = obj("*", name=SHORT, children=arr(ref("tree"), maxItems=2))
    expression = {"anyOf": [COUNT, obj("*", op=enum("+", "-", "*"), left=ref("expr"), right=ref("expr"))]}
    html = obj("tag", tag=enum("p", "b", "i"), text=SHORT, children=arr(ref("element"), maxItems=2))
    even = obj(odd=ref("odd"))
    odd = obj(even=ref("even"))
    return {
        "ref-once": defs(obj("*", a=ref("t")), t=COUNT),
        "ref-root": defs(ref("t"), t=obj("*", a=YES)),
        "ref-twice": defs(obj("*", a=ref("t"), b=ref("t")), t=obj("*", x=COUNT, y=COUNT)),
        "ref-chain": defs(ref("a"), a=ref("b"), b=ref("c"), c=enum(1, 2)),
        "ref-siblings": defs({**ref("t"), "minimum": 50}, t=COUNT),
        "ref-definitions": {"$ref": "#/definitions/t", "definitions": {"t": obj("*", a=YES)}},
        "ref-escaped": {"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": COUNT}},
        "ref-percent": {"$ref": "#/$defs/a%20b", "$defs": {"a b": COUNT}},
        "ref-to-property": {"type": "object", "properties": {"a": COUNT, "b": {"$ref": "#/properties/a"}},
                            "required": ["a", "b"], "additionalProperties": False},
        "ref-unicode": {"$ref": "#/$defs/이름", "$defs": {"이름": SHORT}},
        "ref-anchor": {"$ref": "#here", "$defs": {"t": {"$anchor": "here", **COUNT}}},
        "ref-id": {"$id": "https://example.org/root", "$ref": "#/$defs/t", "$defs": {"t": COUNT}},
        "ref-remote": {"$ref": "https://example.org/other.json"},
        "ref-missing": {"$ref": "#/$defs/nothing"},
        "ref-itself": {"$ref": "#"},
        "ref-unused": defs(YES, unused={"type": "nonsense"}),
        "recursive-list": defs(ref("node"), node=node),
        "recursive-tree": defs(ref("tree"), tree=tree),
        "recursive-expression": defs(obj("*", result=ref("expr")), expr=expression),
        "recursive-root": obj("n", n=COUNT, inner={"anyOf": [{"$ref": "#"}, NULL]}),
        "recursive-mutual": defs(ref("even"), even=even, odd=odd),
        "recursive-html": defs(ref("element"), element=html),
        "recursive-json": defs(ref("value"), value={"anyOf": [
            NULL, YES, COUNT, SHORT, arr(ref("value"), maxItems=2),
            {"type": "object", "additionalProperties": ref("value"), "maxProperties": 2}]}),
        "recursive-comments": defs(arr(ref("comment"), minItems=1, maxItems=2),
                                   comment=obj("*", by=NAME, text=SHORT, replies=arr(ref("comment"), maxItems=1))),
        "recursive-menu": defs(obj("*", menu=arr(ref("item"), minItems=1, maxItems=2)),
                               item=obj("label", label=NAME, sub=arr(ref("item"), maxItems=2))),
        "recursive-query": defs(ref("q"), q={"anyOf": [
            obj("*", field=NAME, equals={"anyOf": [SHORT, COUNT, YES]}), obj("*", all=arr(ref("q"), maxItems=2)),
            obj("*", any=arr(ref("q"), maxItems=2)), obj("*", no=ref("q"))]}),
    }  # fmt: skip


def uses() -> dict[str, Schema]:
    """What people ask for: extractions, calls, documents, configurations."""
    point = {"type": "array", "prefixItems": [num(minimum=-180, maximum=180), num(minimum=-90, maximum=90)],
             "items": False, "minItems": 2}  # fmt: skip
    money = obj("*", amount=num(minimum=0, maximum=9999), currency=enum("KRW", "USD", "EUR", "JPY", "CNY"))
    address = obj("street city", street=NAME, city=NAME, zip=text(pattern="^[0-9]{5}$"), country=enum("KR", "JP", "ES"))
    person = obj("name age", name=NAME, age=whole(minimum=0, maximum=120), email=text(format="email"), address=address)
    step = obj("*", explanation=text(maxLength=30), output=text(maxLength=20))
    container = obj("name image", name=text(pattern="^[a-z]{1,8}$"), image=NAME,
                    ports=arr(obj("containerPort", containerPort=whole(minimum=1, maximum=65535)), maxItems=2),
                    env=arr(obj("*", name=NAME, value=SHORT), maxItems=2))  # fmt: skip
    return {
        "person": person,
        "people": arr(person, minItems=1, maxItems=2),
        "sum": obj("*", answer=whole(minimum=0, maximum=999), sure=YES),
        "math-steps": obj("*", steps=arr(step, minItems=1, maxItems=3), final=SHORT),
        "sentiment": obj("*", label=enum("positive", "negative", "neutral"), score=num(minimum=0, maximum=1)),
        "classification": obj("*", labels=arr(enum("sports", "news", "art", "science"), minItems=1, maxItems=3)),
        "entities": arr(obj("*", text=NAME, type=enum("PER", "LOC", "ORG"), span={
            "type": "array", "prefixItems": [COUNT, COUNT], "items": False, "minItems": 2}), minItems=1, maxItems=2),
        "weather-call": obj("*", name={"const": "get_weather"}, arguments=obj("city", city=NAME, unit=enum("C", "F"))),
        "any-call": {"anyOf": [obj("*", name={"const": f"tool_{n}"}, arguments=obj("*", **{f"arg{n}": COUNT}))
                               for n in range(12)]},
        "calendar": obj("title start", title=NAME, start=text(format="date-time"), minutes=whole(minimum=5,
            maximum=240),
                        people=arr(text(format="email"), maxItems=2), repeats=enum("never", "daily", "weekly")),
        "invoice": obj("*", number=text(pattern="^INV-[0-9]{4}$"), date=text(format="date"), total=money,
                       lines=arr(obj("*", item=NAME, quantity=whole(minimum=1, maximum=9), price=money), minItems=1,
                                 maxItems=2)),
        "recipe": obj("*", name=NAME, servings=whole(minimum=1, maximum=12), steps=arr(text(maxLength=25), minItems=1,
                      maxItems=3), vegan=YES, ingredients=arr(obj("*", what=NAME, grams=COUNT), minItems=1,
                          maxItems=3)),
        "geojson-point": obj("*", type={"const": "Point"}, coordinates=point),
        "geojson": {"oneOf": [obj("*", type={"const": "Point"}, coordinates=point),
                              obj("*", type={"const": "LineString"}, coordinates=arr(point, minItems=2, maxItems=3)),
                              obj("*", type={"const": "Polygon"}, coordinates=arr(arr(point, minItems=4, maxItems=4),
                                  minItems=1, maxItems=1))]},
        "pod": obj("*", apiVersion={"const": "v1"}, kind={"const": "Pod"}, metadata=obj("name", name=NAME, labels={
            "type": "object", "additionalProperties": SHORT, "maxProperties": 2}),
            spec=obj("containers", containers=arr(container, minItems=1, maxItems=2),
                     restartPolicy=enum("Always", "OnFailure", "Never"))),
        "package-json": obj("name version", name=text(pattern="^[a-z]{1,9}$"), private=YES,
                            version=text(pattern=r"^[0-9]\.[0-9]\.[0-9]$"), scripts={
                                "type": "object", "additionalProperties": SHORT, "maxProperties": 2}),
        "compose": obj("services", services={"type": "object", "minProperties": 1, "maxProperties": 2,
                       "additionalProperties": obj("image", image=NAME, restart=enum("no", "always"))}),
        "log-event": obj("level message", level=enum("debug", "info", "warn", "error"), message=text(maxLength=30),
                         context={"type": "object", "additionalProperties": {"type": ["string", "integer", "null"],
                                  "maxLength": 5, "minimum": 0, "maximum": 99}, "maxProperties": 2}),
        "http-request": obj("method url", method=enum("GET", "POST", "PUT", "DELETE"), url=text(format="uri"),
                            status=enum(200, 201, 204, 400, 404, 500)),
        "resume": obj("*", name=NAME, skills=arr(NAME, minItems=1, maxItems=3), jobs=arr(obj("*", title=NAME,
            start=text(
            pattern="^(19|20)[0-9]{2}$"), end={"anyOf": [text(pattern="^(19|20)[0-9]{2}$"), {"const": "now"}]}),
            minItems=1, maxItems=2)),
        "chess-move": obj("*", piece=enum("K", "Q", "R", "B", "N", "P"), to=text(pattern="^[a-h][1-8]$"), check=YES),
        "sudoku-row": arr(whole(minimum=1, maximum=9), minItems=9, maxItems=9),
        "board": arr(arr(enum("x", "o", ""), minItems=3, maxItems=3), minItems=3, maxItems=3),
        "quiz": obj("*", question=text(maxLength=30), options=arr(NAME, minItems=4, maxItems=4), right=enum(0, 1, 2,
            3)),
        "translation": obj("*", **{code: text(maxLength=15) for code in ("ko", "en", "ja", "zh", "es")}),
        "한국어-양식": obj("*", **{"성명": NAME, "생년월일": text(format="date"), "성별": enum("남", "여", "기타"),
                         "연락처": text(pattern="^010-[0-9]{4}-[0-9]{4}$")}),
        "bank-transfer": obj("*", iban=text(pattern="^[A-Z]{2}[0-9]{8}$"), amount=money, reference=SHORT, urgent=YES),
        "color": {"anyOf": [text(pattern="^#[0-9a-f]{6}$"), arr(whole(minimum=0, maximum=255), minItems=3, maxItems=3),
                            enum("red", "green", "blue")]},
        "sql": obj("*", select=arr(NAME, minItems=1, maxItems=3), table=NAME, where=arr(obj("*", column=NAME, op=enum(
            "=", "<", ">", "like"), value={"anyOf": [COUNT, SHORT]}), maxItems=2), limit=COUNT),
        "diagnosis": obj("*", code=text(pattern=r"^[A-Z][0-9]{2}(\.[0-9])?$"), severity=whole(minimum=1, maximum=5),
                         certain={"type": ["boolean", "null"]}),
        "ui": defs(ref("part"), part=obj("kind label", kind=enum("div", "button", "field"), label=SHORT, parts=arr(ref(
            "part"), maxItems=2), attributes=arr(obj("*", name=NAME, value=SHORT), maxItems=1))),
        "agent-step": {"anyOf": [obj("*", thought=text(maxLength=30), action=enum("search", "read"), input=SHORT),
                                 obj("*", thought=text(maxLength=30), final=text(maxLength=30))]},
        "judge": obj("*", reasoning=text(maxLength=40), score=whole(minimum=1, maximum=10), winner=enum("A", "B",
            "tie")),
        "time-table": {"type": "object", "properties": {day: arr(text(pattern="^[0-2][0-9]:[0-5][0-9]$"), maxItems=2)
                       for day in ("mon", "tue", "wed", "thu", "fri")}, "required": ["mon", "fri"],
                       "additionalProperties": False},
        "openapi-parameter": obj("name in", name=NAME, required=YES, schema=obj("type", type=enum("string", "integer")),
                                 **{"in": enum("query", "path", "header", "cookie")}),
        "feature-flags": {"type": "object", "patternProperties": {"^flag_[a-z]{1,6}$": YES},
                          "additionalProperties": False},
        "order": obj("*", id=text(format="uuid"), placed=text(format="date-time"), state=enum("new", "paid", "sent"),
                     customer={"anyOf": [obj("*", id=COUNT), obj("*", guest=text(format="email"))]}, gift={
                         "type": ["string", "null"], "maxLength": 10}),
        "survey": arr({"oneOf": [obj("*", type={"const": "scale"}, value=whole(minimum=1, maximum=5)),
                                 obj("*", type={"const": "text"}, value=text(maxLength=15)),
                                 obj("*", type={"const": "choice"}, value=arr(COUNT, maxItems=3))]}, minItems=2,
                      maxItems=3),
        "network": obj("*", host=text(format="hostname"), v4=text(format="ipv4"), v6=text(format="ipv6"),
                       port=whole(minimum=1, maximum=65535)),
        "changelog": arr(obj("*", version=text(pattern=r"^[0-9]\.[0-9]$"), date=text(format="date"),
                             changes=arr(text(maxLength=20), minItems=1, maxItems=2)), minItems=1, maxItems=2),
        "dungeon": obj("*", hero=obj("*", name=NAME, hp=whole(minimum=1, maximum=100), items=arr(enum(
            "sword", "potion", "map"), maxItems=3)), exits=arr(enum("n", "e", "s", "w"), minItems=1, maxItems=4)),
    }  # fmt: skip


SCHEMAS: dict[str, Schema] = numbers() | strings() | arrays() | objects() | unions() | references() | uses()
"""By name."""

REFUSED: dict[str, str] = {
    "all-of-contradicts": "incompatible types",
    "array-bounds-contradict": "minItems (3) is greater than maxItems (2)",
    "array-contains": "contains",
    "array-unique": "uniqueItems",
    "bounds-contradict": "minimum (5) is greater than maximum (4)",
    "format-unknown": "phone-number-of-a-cat",
    "if-then": '"if", "then"',
    "map-names-by-pattern": "propertyNames",
    "not-a-type": "not",
    "not-a-value": "not",
    "nothing-fits": "required property 'a' is unsatisfiable",
    "object-dependent": "dependentRequired",
    "object-dependent-schemas": "dependentSchemas",
    "object-forbidden-but-required": "required property 'z' is unsatisfiable",
    "object-unevaluated": "unevaluatedProperties",
    "one-of-overlapping": "oneOf",
    "pattern-backreference": "backreferences are not supported",
    "pattern-lookahead": "look-around",
    "ref-itself": "every value holds another of its kind",
    "ref-missing": "/$defs/nothing",
    "ref-remote": "https://example.org/other.json",
}
"""What each that is not supported has to be told."""
