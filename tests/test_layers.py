"""The house: which module may import which, and that importing the library starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "rnnc"

# From the bottom up: a row's name, its modules in their order, and the lower rows it may import. A module may import
# those before it in its own row. A new file needs a place here.
LAYERS = (
    ("root", "rnnc", ""),
    ("base", "config container", ""),
    ("fixed", "fixed", ""),
    (
        "bayes",
        "bayes bayes.moments bayes.priors bayes.esteps bayes.rsbl bayes.estimator bayes.coupled bayes.codes"
        " bayes.review bayes.msbdl bayes.foretell bayes.task",
        "",
    ),
    (
        "audio",
        "audio audio.sentences audio.espeak audio.voices audio.mumble audio.noises audio.io audio.corpus audio.rooms"
        " audio.mix audio.data audio.metrics audio.stft audio.front",
        "base fixed",
    ),
    ("arith", "arith", "fixed"),
    ("structure", "factors structure", "arith"),
    ("steps", "steps unroll skip", "arith structure"),
    ("cells", "cells", "arith structure steps"),
    ("linen", "linen", "arith structure steps"),
    ("model", "model chip cost", "base audio fixed arith structure steps cells linen"),
    (
        "compress",
        "compress compress.factor compress.prune compress.affine compress.groups compress.quantise",
        "base audio fixed arith structure steps cells linen model",
    ),
    (
        "export",
        "export export.tables export.records export.store export.front export.model export.blob export.host"
        " export.emulate export.work export.latency export.budget export.firmware",
        "base audio fixed arith structure steps cells model",
    ),
    (
        "search",
        "search search.values search.space search.gaussian search.propose search.store search.scheduler search.cluster"
        " search.settings search.study search.tune search.importance search.estimator",
        "",
    ),
    ("train", "train train.loss train.checkpoint train.loop", "base audio"),
    (
        "recipes",
        "recipes recipes.console recipes.machine recipes.page recipes.rundata recipes.figures recipes.scores"
        " recipes.report recipes.run recipes.runner recipes.denoise recipes.export recipes.evaluate recipes.enhance"
        " recipes.bench_kernels recipes.bench_latency recipes.bench_budget"
        " recipes.bench_gains recipes.bench"
        " recipes.tasks recipes.classifier recipes.methods recipes.classify_report recipes.classify"
        " recipes.ladder_report recipes.ladder recipes.adding"
        " recipes.rivals recipes.tune_bench recipes.tune_report recipes.tune"
        " recipes.planted recipes.halves recipes.msbdl_study recipes.sparse_recovery recipes.dictionaries"
        " recipes.dictionary",
        "root base bayes audio fixed arith structure steps cells linen model compress export search train",
    ),
)
PLACES = {module: row for row, modules, _ in LAYERS for module in modules.split()}
RECIPES_ONLY = {"rich", "matplotlib", "argparse"}


def _name(path: Path) -> str:
    """rnnc/audio/io.py -> audio.io, rnnc/audio/__init__.py -> audio, rnnc/__init__.py -> rnnc."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "rnnc"


FILES = {_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _imports(source: str) -> set[str]:
    """Full names of all that a file imports, wherever in it; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _modules(imports: set[str]) -> set[str]:
    """The modules of the library among imported names: rnnc.audio.io.Clip -> audio.io."""
    found = set()
    for name in imports:
        if name.split(".")[0] == "rnnc":
            inner = name.removeprefix("rnnc").removeprefix(".")
            while inner and inner not in PLACES:
                inner = inner.rpartition(".")[0]
            found.add(inner or "rnnc")
    return found


def _allowed(module: str) -> set[str]:
    _, order, lower = next(layer for layer in LAYERS if layer[0] == PLACES[module])
    order = order.split()
    below = {other for other, place in PLACES.items() if place in lower.split()}
    return below | set(order[: order.index(module)])


def test_the_table_is_ordered():
    rows = [row for row, _, _ in LAYERS]
    for i, (row, _, lower) in enumerate(LAYERS):
        assert set(lower.split()) <= set(rows[:i]), row


def test_every_module_has_a_place():
    assert set(FILES) == set(PLACES)
    assert len(PLACES) == sum(len(modules.split()) for _, modules, _ in LAYERS)


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down(module):
    wrong = _modules(_imports(FILES[module].read_text(encoding="utf-8"))) - _allowed(module)
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("module", [name for name in FILES if PLACES.get(name) != "recipes"])
def test_only_recipes_talk_to_people(module):
    tops = {name.split(".")[0] for name in _imports(FILES[module].read_text(encoding="utf-8"))}
    assert not tops & RECIPES_ONLY


def test_the_package_imports_nothing():
    assert not _imports(FILES["rnnc"].read_text(encoding="utf-8"))


def test_imports_are_found():
    source = (
        "import rnnc\nfrom rnnc import cells\ndef f():\n    from rnnc.audio.io import Clip\n    import rnnc.model\n"
    )
    assert _modules(_imports(source)) == {"rnnc", "cells", "audio.io", "model"}


def test_importing_the_library_starts_no_device():
    """JAX accepts a number of devices only until its backend starts."""
    modules = [f"rnnc.{name}" for name in FILES if PLACES.get(name) not in ("recipes", "root")]
    program = f"import {', '.join(modules)}\nimport jax\njax.config.update('jax_num_cpu_devices', 2)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
