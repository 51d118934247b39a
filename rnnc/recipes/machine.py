"""Settings of the machine that must be made before JAX starts; for recipes only, never on import of the library."""

import contextlib
import ctypes
import os
import sys

ITEMS_A_DEVICE = 8  # fewer make the matrix products too small to be worth a device


def prepare(batch: int, devices: int = 0) -> None:
    """Let training use the processor's cores as data-parallel devices, and keep freed memory.

    XLA gives its temporary buffers back to the system after every call and takes them again at the next; glibc can be
    told to keep them, which saves a sixth to a quarter of a training step. Other C libraries are left alone.

    Args:
      batch: items of a training step.
      devices: wanted number of devices; 0: one for every `ITEMS_A_DEVICE` items, up to the number of cores.
    """
    import jax

    _keep_freed_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = [n for n in range(1, min(cores, max(1, batch // ITEMS_A_DEVICE)) + 1) if batch % n == 0]
    with contextlib.suppress(RuntimeError):  # JAX has started already: its devices stay as they are
        jax.config.update("jax_num_cpu_devices", devices or fitting[-1])


def _keep_freed_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in (
        (-4, 0),
        (-1, 2**31 - 1),
        (-8, 1),
        (-2, 64 << 20),
    ):  # no mmap, no trim, one arena, 64 MiB
        mallopt(option, value)
