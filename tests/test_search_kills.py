"""A study whose workers and controllers are killed at random moments loses nothing; `--kills N` runs it alone."""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rnnc.search.scheduler import Processes
from rnnc.search.settings import Settings
from rnnc.search.store import Store
from rnnc.search.tune import tune
from rnnc.search.values import Uniform

ROOT = Path(__file__).parents[1]
WORKERS, LONGEST_S = 4, 1800.0


def score(configuration) -> float:
    """A bowl after a nap; each end is noted."""
    time.sleep(0.05 + 0.2 * configuration["nap"])
    value = bowl(configuration)
    with open(os.environ["RNNC_ENDS"], "a", encoding="utf-8") as file:
        file.write(f"{configuration['x']!r} {configuration['nap']!r}\n")
    return value


def bowl(configuration) -> float:
    return -((configuration["x"] - 0.3) ** 2) - 0.01 * configuration["nap"]


def control(path: str, trials: int) -> None:
    """The controller under test, one whole command; forks are cheap where nothing else runs."""
    with Processes(WORKERS, method="fork") as workers:
        settings = Settings(trials=trials, batch=2 * WORKERS)
        tune(score, {"x": Uniform(0, 1), "nap": Uniform(0, 1)}, settings, scheduler=workers, store=path, resume=True)


def _workers(controller: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{controller}/task/{controller}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _done(path: Path) -> dict[int, tuple[str, float | None]]:
    with Store(path, write=False) as store:
        return {t.number: (t.configuration, t.value) for t in store.trials("done")}


def deal(kills: int, controllers: int, trials: int, seed: int, folder: Path) -> str:
    """Deal that many kills; a line about it. Raises AssertionError where a law is broken."""
    path, rng, began = folder / "study.db", random.Random(seed), time.monotonic()
    environment = {**os.environ, "RNNC_ENDS": str(folder / "ends"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--control", str(path), str(trials)]
    dealt = dead = starts = 0
    seen: dict[int, tuple[str, float | None]] = {}
    while True:
        starts += 1
        controller = subprocess.Popen(command, env=environment, start_new_session=True)
        last = dealt
        while controller.poll() is None:
            assert time.monotonic() - began < LONGEST_S, "it hangs"
            time.sleep(rng.uniform(0.02, 0.15))
            workers = _workers(controller.pid)
            if workers and dealt < kills:
                os.kill(rng.choice(workers), signal.SIGKILL)
                dealt += 1
            if path.exists() and workers:
                now = _done(path)
                assert seen.items() <= now.items(), "a result was lost or changed"
                seen = now
            if dead < controllers and dealt - last >= kills // (controllers + 1):
                controller.kill()
                dead += 1
                break
        if controller.wait() == 0:
            break
        assert controller.returncode == -signal.SIGKILL, f"the controller ended with {controller.returncode}"
    return _checked(path, folder / "ends", trials, seen, f"{dealt} workers and {dead} controllers killed", began)


def _checked(
    path: Path, ends: Path, trials: int, seen: dict[int, tuple[str, float | None]], what: str, began: float
) -> str:
    with Store(path, write=False) as store:
        found = store.trials()
    space = {t.number: t for t in found}
    assert list(space) == list(range(trials)), "each number stands once"
    assert {t.state for t in found} <= {"done", "failed"}, "none waits or runs for ever"
    assert seen.items() <= _done(path).items()
    assert len({t.configuration for t in found}) == trials, "no configuration is counted twice"
    for trial in found:
        if trial.state == "failed":
            assert trial.reason == "its process died: signal SIGKILL", trial.reason
    again = len(ends.read_text().splitlines()) - sum(t.state == "done" for t in found)
    most = sum(t.starts - 1 for t in found) + sum(t.state == "failed" for t in found)
    assert 0 <= again <= most, "only what a dead controller had not heard of was computed again"
    failed = sum(t.state == "failed" for t in found)
    return (
        f"{what}: {trials} trials, {trials - failed} results, {failed} failed for a killed worker, 0 lost, 0 stuck, "
        f"0 counted twice; {time.monotonic() - began:.0f} s"
    )


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers under /proc")
def test_some_kills(tmp_path):
    assert deal(6, 1, 40, 0, tmp_path).startswith("6 workers and 1 controllers killed: 40 trials")


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    assert deal(100, 5, 300, 1, tmp_path).startswith("100 workers and 5 controllers killed: 300 trials")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--controllers", type=int, default=5)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--control", nargs=2, metavar=("FILE", "TRIALS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.control:
        control(args.control[0], int(args.control[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            print(deal(args.kills, args.controllers, args.trials, args.seed, Path(name)), flush=True)
