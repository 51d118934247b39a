"""A model as bytes: what loads equals what is compiled in, and whatever else is given is refused or harmless."""

import re

from kernels import KERNELS
from rnnc.export import records


def test_records_are_the_structures_of_the_header():
    """Every field in its order, with what it holds; every constant with its number."""
    header = re.sub(r"/\*.*?\*/", "", (KERNELS / "rnnc.h").read_text(), flags=re.DOTALL)
    found = {}
    for body, name in re.findall(r"typedef struct \{([^}]*)\} (\w+);", header):
        found[name] = {}
        for kind, stars, fields in re.findall(r"(?:const )?(\w+) ((?:\*|const )*)([^;]+);", body):
            held = (kind + "*" * bool(stars)) if kind in records.FIELDS else "array" if stars else "int"
            found[name] |= dict.fromkeys(map(str.strip, fields.split(",")), held)
    ours = {
        name: [(field, held.replace("[]", "*")) for field, held in fields.items()]
        for name, fields in records.FIELDS.items()
    }
    assert {name: list(fields.items()) for name, fields in found.items()} == ours
    enums = re.findall(r"typedef enum \{(.*?)\} \w+;", header, re.DOTALL)
    assert {c.strip(): i for body in enums for i, c in enumerate(body.split(","))} == records.CONSTANTS
