"""Every example in a docstring runs, and everything public has a docstring."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import jax
import pytest

import rnnc

MODULES = ["rnnc", *sorted(found.name for found in pkgutil.walk_packages(rnnc.__path__, "rnnc."))]
LIBRARY = [name for name in MODULES if not name.startswith("rnnc.recipes")]


def _nameless(tree: ast.Module) -> list[str]:
    """The module, or its public functions and classes, that have no docstring."""
    public = [
        node
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    without = [node.name for node in public if not ast.get_docstring(node)]
    return without if ast.get_docstring(tree) else ["the module", *without]


@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")  # an example need not sweep its folder
@pytest.mark.parametrize("name", MODULES)
def test_examples(name, capsys):
    """With the promotion of types that JAX has for everybody: an example is a user's program."""
    with jax.numpy_dtype_promotion("standard"):
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0, capsys.readouterr().out


@pytest.mark.parametrize("name", LIBRARY)
def test_all_that_is_public_says_what_it_does(name):
    path = importlib.import_module(name).__file__
    assert path
    assert not _nameless(ast.parse(Path(path).read_text(encoding="utf-8")))


def test_a_missing_docstring_is_found():
    source = "class A: pass\ndef f():\n    'Says.'\ndef g(): pass\ndef _h(): pass"
    assert _nameless(ast.parse(source)) == ["the module", "A", "g"]
