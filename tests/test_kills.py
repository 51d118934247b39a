"""A run killed at random moments and resumed ends with the bits of one that was not; `--kills N` runs it alone.

The parent imports everything but never starts JAX, so that each child is a cheap fork that starts it afresh.
"""

import argparse
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SETTINGS = {
    "data.rooms": 1,
    "data.valid_items": 2,
    "data.test_items": 1,
    "data.corpus.speech_minutes": 0.2,
    "data.corpus.noise_minutes": 0.2,
    "mix.seconds": 0.5,
    "model.units": [8],
    "model.hidden": 8,
    "model.bands.count": 16,
    "train.steps": 60,
    "train.batch": 2,
    "train.valid_every": 3,
    "train.log_every": 1,
    "train.devices": 1,
}
LONGEST_S = 300.0  # of a child that nobody kills


def child(work: Callable[[], int | None], quiet: bool = True) -> int:
    """Fork; the child does `work` and leaves with its result, or with 99 and a traceback where it fails."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        if quiet:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
        status = work() or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """The exit status (negative: the signal), or None if it still runs after that time."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.002)


def call(work: Callable[[], int | None]) -> None:
    """Do `work` in a child and insist that it succeeds."""
    if (status := wait(child(work), LONGEST_S)) != 0:
        raise AssertionError(f"the child ended with {status}")


def train(out: Path, *more: str) -> int:
    """The run under test, one whole command."""
    from rnnc.recipes import enhance

    changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    return enhance.main(["train", "--config", "smoke", "--out", str(out), *changes, *more])


def check(out: Path) -> None:
    """What a kill may leave: complete files or none."""
    import orbax.checkpoint as ocp

    from rnnc import container
    from rnnc.train import checkpoint

    for step in checkpoint.steps(out / "checkpoints"):
        with ocp.StandardCheckpointer() as checkpointer:
            table = checkpointer.restore((out / "checkpoints" / f"step_{step:08d}").absolute())
        assert int(table["format"]) == checkpoint.FORMAT, step
    if (out / "model.rnnc").exists():
        container.read(out / "model.rnnc")
    if (out / "result.json").exists():
        json.loads((out / "result.json").read_text())


def digest(out: Path, file: Path) -> None:
    """Write a sha256 of the parameters in the newest checkpoint and in model.rnnc to a file."""
    import orbax.checkpoint as ocp

    from rnnc import container
    from rnnc.train import checkpoint

    step = checkpoint.steps(out / "checkpoints")[-1]
    with ocp.StandardCheckpointer() as checkpointer:
        table = checkpointer.restore((out / "checkpoints" / f"step_{step:08d}").absolute())
    arrays, meta = container.read(out / "model.rnnc")
    state = hashlib.sha256(f"{step} {meta['step']}".encode())
    for name, array in [*sorted(table.items()), *sorted(arrays.items())]:
        state.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [(event["step"], event["loss"]) for event in log if "loss" in event]
    assert losses == sorted(set(losses)), "each step stands once in the log"
    state.update(repr(losses).encode())
    file.write_text(state.hexdigest())


def digest_of(out: Path) -> str:
    """The digest, taken by a child."""
    file = out.with_suffix(".sha256")
    call(lambda: digest(out, file))
    return file.read_text()


def deal(kills: int, seed: int, folder: Path) -> str:
    """Deal that many kills; a line about it. Raises AssertionError where a law is broken."""
    os.environ["RNNC_CACHE"] = str(folder / "cache")
    import jax

    import rnnc.recipes.enhance  # noqa: F401  for the children
    from rnnc.train import checkpoint

    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    call(lambda: train(folder / "first"))  # fills the caches
    began = time.monotonic()
    call(lambda: train(folder / "whole"))
    whole_s = time.monotonic() - began
    wanted = digest_of(folder / "whole")
    assert digest_of(folder / "first") == wanted
    rng, dealt, runs, saved = random.Random(seed), 0, 0, 0
    while dealt < kills or runs == 0:
        out, alive = folder / f"killed{runs}", True
        while alive:
            pid = child(lambda out=out: train(out, "--resume"))
            status = wait(pid, rng.uniform(0.1, 0.8 * whole_s) if dealt < kills else LONGEST_S)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                dealt += 1
                saved += any((out / "checkpoints").glob("*tmp*"))
            else:
                assert status == 0, f"run {runs} after {dealt} kills ended with {status}"
                alive = False
            call(lambda out=out: check(out))
        assert checkpoint.steps(out / "checkpoints")[-1] == SETTINGS["train.steps"]
        assert digest_of(out) == wanted, f"run {runs} differs from the one that was never killed"
        runs += 1
    seconds = time.monotonic() - began
    return (
        f"{dealt} kills, {saved} of them within a save, {runs} runs to the end of {whole_s:.1f} s each: "
        f"all checkpoints readable, same bits; {seconds:.0f} s"
    )


@pytest.mark.slow
def test_a_hundred_kills():
    """In a process of its own, whose JAX has not started."""
    command = [sys.executable, __file__, "--kills", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^100 kills, .* same bits", done.stdout, re.MULTILINE), done.stdout[-3000:]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(deal(args.kills, args.seed, Path(name)), flush=True)
