"""Regular expressions and schemas such as clients send, for the tests of structured output."""

import random

REGEXES = [
    *("a", "abc|abd|b", "[a-z]+", "[0-9]{3}-[0-9]{4}", r"\d{4}-\d{2}-\d{2}", "(yes|no|maybe)", "a?b?c?", "(ab)*"),
    *(
        "(ab)+c",
        "[^x]",
        "[^a-z]{1,4}",
        "x{0,3}y",
        "(a|b)*abb",
        "(a*)*b",
        "(a|aa)+c",
        "(x+x+)+y",
        "",
        "the king|the queen",
    ),
    *(r"\w+@\w+\.(com|org)", "#[0-9a-f]{6}", "(0|[1-9][0-9]*)", r"-?\d+(\.\d+)?", r"\$\d+\.\d{2}", r"[A-Z][a-z]{2,8}"),
    *(r"\s?thou\s?", ".{1,5}", ".*love.{3}", "é+", "[à-ü]{2}", "(😀|😁)x", r"\u00e9|\u00e8", r"[\w ]{5,10}", r"\S{4}"),
    *(
        "(?:a(?:b(?:c)?)?)?",
        "(?:a{2}){2}",
        "[ab]{10}",
        "((a|b)(c|d)){2,3}",
        r"\(\[\{\}\]\)",
        r"a\/b",
        r'"[^"]*"',
        "^abc$",
    ),
    *("(foo|bar|baz){1,3}", "(?i:hello)", r"\d+(,\d+)*", r"\[(\d(,\d)*)?\]", "O (Romeo|Juliet)[!?.]", "a.c", r"\t?\n"),
    *("x(?:1|2|3)?y", r"[\-+]?\d", "[a-cx-z]{2,}z"),
]


def random_schema(rng: random.Random, depth: int) -> dict[str, object]:
    """A schema of kinds that occur in practice, which some value satisfies."""
    kind = rng.choice(["string", "pattern", "integer", "number", "enum", "boolean", "null", "const", "ref"])
    if depth and rng.random() < 0.75:
        kind = rng.choice(["object", "array", "tuple", "anyOf"])
    low = rng.randrange(-50, 50)
    match kind:
        case "string":
            return {"type": "string", "minLength": rng.randrange(4), "maxLength": rng.randrange(4, 12)}
        case "pattern":
            return {"type": "string", "pattern": rng.choice(["^[a-z]{2,5}$", "^x[0-9]+$", "ab"]), "maxLength": 30}
        case "integer":
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(200)}
        case "number":
            return {"type": "number", "exclusiveMinimum": low, "maximum": low + 1.5 + rng.randrange(9)}
        case "enum":
            return {"enum": rng.sample(["thou", "art", 3, None, [1, {"a": True}], "é"], rng.randrange(1, 5))}
        case "const":
            return {"const": {"k": rng.choice(["v", 1.5, [], None])}}
        case "ref":
            return {"$ref": "#/$defs/leaf"}
        case "array":
            return {
                "type": "array",
                "items": random_schema(rng, depth - 1),
                "minItems": rng.randrange(2),
                "maxItems": 3,
            }
        case "tuple":
            return {
                "type": "array",
                "prefixItems": [random_schema(rng, depth - 1) for _ in range(2)],
                "items": False,
                "minItems": 2,
            }
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]}
        case "object":
            names = rng.sample(["name", "age", "lines", "é", "in love"], rng.randrange(1, 5))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": rng.sample(names, rng.randrange(len(names) + 1)),
                "additionalProperties": rng.choice([False, {"type": "boolean"}]),
            }
    return {"type": kind}
