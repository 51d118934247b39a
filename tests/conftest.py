"""Strict flags for every test, two CPU devices, quick compiling where that is no part of the law, and a key."""

from collections.abc import Iterator

import jax
import pytest

# Laws whose programs are compiled to run once, and which hold for any compiling
QUICKLY = (
    *(
        "test_bayes",
        "test_blob",
        "test_cost",
        "test_dictionary",
        "test_estimator",
        "test_export",
        "test_factors",
        "test_firmware",
        "test_front",
        "test_forged",
        "test_fuzz",
    ),
    *(
        "test_kernels",
        "test_latency",
        "test_msbdl",
        "test_msbdl_study",
        "test_sparse_recovery",
        "test_static",
        "test_structure",
        "test_targets",
        "test_tune",
        "test_work",
    ),
)

jax.config.update("jax_num_cpu_devices", 2)  # for data parallel laws; before JAX starts
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="module")
def compiling(request: pytest.FixtureRequest) -> Iterator[None]:
    """Some modules are compiled quickly; none of their programs is left to others."""
    quickly = request.module.__name__ in QUICKLY
    jax.config.update("jax_disable_most_optimizations", quickly)
    yield
    if quickly:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
