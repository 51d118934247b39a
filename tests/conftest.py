"""Strict flags for every test, two CPU devices, and a key."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 2)  # for data parallel laws; before JAX starts
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
