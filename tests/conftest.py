"""Strict flags for every test, two CPU devices, quick compiling where that is no part of the law, and a key."""

from collections.abc import Iterator

import jax
import pytest

OPTIMISED = ("test_cells", "test_layers", "test_model", "test_steps", "test_train")  # laws of exact numbers

jax.config.update("jax_num_cpu_devices", 2)  # for data parallel laws; before JAX starts
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)  # most programs here are compiled to run once


@pytest.fixture(autouse=True, scope="module")
def compiling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Some modules are compiled as users compile; no program goes from one kind to the other."""
    if request.module.__name__ not in OPTIMISED:
        yield
        return
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
