"""Lines through counted instructions: laws that need no emulator."""

import numpy as np
import pytest

from rnnc.audio.stft import Stft
from rnnc.export import latency, work
from rnnc.export.latency import KINDS, TERMS, Latency, Line
from rnnc.export.work import Products, Work
from rnnc.recipes import bench_latency


def _works() -> list[Work]:
    """Layers of every kind, and sizes that have nothing to do with one another."""
    rng, found = np.random.default_rng(0), []
    for kind in KINDS * 12:
        most = (100_000, 20_000, 20_000, 10_000, 5000, 5000, 100_000, 30_000, 90_000, 30_000, 9000, 5000)
        *products, elementwise = map(int, rng.integers(1, most))
        found.append(Work(name="", products={kind: Products(*products)}, elementwise=elementwise))
    return found


def _terms(layer: Work) -> np.ndarray:
    return np.array([getattr(layer.products[layer.kind], term) for term in TERMS], np.float64)


def test_a_fit_finds_the_lines_that_were_planted():
    planted = {k: np.array([1.0 + i, 3.0 * i, 20.0 - i, 9, 50.0 * i, 4, 2, 7 + i, 1]) for i, k in enumerate(KINDS)}
    works = _works()
    counted = [planted[w.kind] @ _terms(w) + 7 * w.elementwise for w in works]
    found = latency.fit("m4", "gcc", works, counted)
    for kind, line in found.lines.items():
        np.testing.assert_allclose(line.per, planted[kind], rtol=1e-6, atol=1e-6)
        assert line.r2 == pytest.approx(1.0, abs=1e-9)
        assert line.worst < 1e-6
        assert line.layers == 12
        assert line.macs_r2 < 0.99  # of the MACs alone: the others are not there
    np.testing.assert_allclose(found.per_elementwise, 7.0, rtol=1e-6)
    np.testing.assert_allclose(found.instructions(works), sum(counted), rtol=1e-6)


def test_a_fit_says_how_wrong_it_is():
    """Errors of 10 % up and down: the worst is about that, and r2 is below 1."""
    works = _works()
    rng = np.random.default_rng(1)
    counted = [w.products[w.kind].padded * (1 + 0.1 * rng.choice((-1, 1))) for w in works]
    for line in latency.fit("m4", "gcc", works, counted).lines.values():
        assert 0.02 < line.worst < 0.3
        assert 0.9 < line.r2 < 1 - 1e-5


def test_layers_of_several_kinds_are_the_sum_of_them():
    """A kernel of one kind and a recurrent matrix of another."""
    lines = {
        kind: Line(per=(i, 10 * i, 100 * i, 17, 1000 * i, 7, 9, 11, 13), r2=1, macs_r2=1, worst=0, layers=1)
        for i, kind in enumerate(KINDS, 1)
    }
    line = Latency(core="m4", compiler="gcc", per_elementwise=5, lines=lines)
    each = {
        "kron": Products(1, 8, 2, calls=3, fours=4, padded=100, thin=5, thin_calls=2, thin_weights=1),
        "dense": Products(1, 4, 1, calls=5, fours=6, rests=2, padded=1000),
    }
    both = Work(name="", products=each, elementwise=6)
    dense = 1000 + 10 * 1 + 100 * 6 + 17 * 2 + 1000 * 5
    assert line.instructions([both]) == 3 * (100 + 10 * 2 + 100 * 4 + 1000 * 3) + 5 * 9 + 2 * 11 + 13 + dense + 5 * 6
    assert line.instructions([both, both]) == 2 * line.instructions([both])


def test_a_front_end_s_line_finds_what_was_planted():
    """Transforms in passes of 4, the last of 2 where the power is odd."""
    fronts = [(Stft(window=2**k, hop=2 ** (k - 1)), bands) for k in range(6, 12) for bands in (8, 24)]
    passes = {64: 3, 128: 3, 256: 4, 512: 4, 1024: 5, 2048: 5}
    counted = [9 * stft.window * passes[stft.window] + 50 * stft.window + 300 * bands for stft, bands in fronts]
    found = latency.fit_front(fronts, counted)
    np.testing.assert_allclose((found.per_pass, found.per_sample, found.per_band), (9, 50, 300), rtol=1e-6)
    assert found.worst < 1e-6


def test_random_models_are_of_every_kind_and_size():
    """What is promised of them: one or two layers, units in fours from 32 to 256; the same ones each time."""
    models = [bench_latency._random(i) for i in range(20)]
    layers = [layer for model in models for layer in work.layers(model)]
    assert {layer.kind for layer in layers} == set(KINDS)
    assert {len(model) for model in models} == {1, 2}
    units = [cell.hidden_features for model in models for cell in model]
    assert all(32 <= m <= 256 and m % 4 == 0 for m in units)
    assert len(set(units)) > 10
    assert work.layers(bench_latency._random(3)) == work.layers(models[3])
