"""The tuner on a Dask cluster of this machine: a study ends, workers that die or hang cost at most their trial."""

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="the cluster is an extra: rnnc[tune]")

from rnnc.search.cluster import Dask
from rnnc.search.scheduler import SchedulerError
from rnnc.search.settings import Settings
from rnnc.search.tune import tune
from rnnc.search.values import Uniform

pytestmark = pytest.mark.filterwarnings("ignore")  # the cluster's own, as it starts, restarts and ends

BOWL = {"x": Uniform(0, 1), "y": Uniform(0, 1)}


def bowl(configuration) -> float:
    """For workers."""
    return -((configuration["x"] - 0.3) ** 2) - (configuration["y"] - 0.6) ** 2


def faulty(configuration) -> float:
    """An objective with faults, decided by its configuration."""
    if configuration["x"] < 0.1:
        os.kill(os.getpid(), signal.SIGKILL)
    if configuration["x"] < 0.2:
        time.sleep(600)
    if configuration["x"] < 0.3:
        raise ValueError("no good")
    return bowl(configuration)


def once(configuration) -> float:
    """Kills its worker the first time."""
    file = Path(configuration["folder"]) / f"{configuration['x']:.6f}"
    if not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return bowl({**configuration, "y": 0.5})


def test_a_study_on_a_cluster_is_the_one_in_this_process():
    settings = Settings(trials=20, batch=5)
    with Dask(workers=2) as cluster:
        assert cluster.workers == 2
        found = tune(bowl, BOWL, settings, scheduler=cluster)
        joined = Dask(cluster._client.scheduler.address)
        assert tune(bowl, BOWL, Settings(trials=5, batch=5), scheduler=joined).best
        joined.close()
    wanted = tune(bowl, BOWL, settings)
    assert [(o.configuration, o.value) for o in found.outcomes] == [(o.configuration, o.value) for o in wanted.outcomes]


@pytest.mark.slow
def test_faults_cost_one_trial_each():
    first = [{"x": x, "y": 0.5} for x in (0.05, 0.15, 0.25, 0.5, 0.6)]
    with Dask(workers=2, limit_s=3) as cluster:
        result = tune(faulty, BOWL, Settings(trials=5, batch=5), scheduler=cluster, first=first)
    reasons = [o.trial.reason for o in result.outcomes]
    assert reasons == ["its workers died", "ran past the time limit of 3 s", "ValueError: no good", "", ""]


@pytest.mark.slow
def test_a_lost_worker_costs_nothing(tmp_path):
    space = {"x": Uniform(0, 1), "folder": [str(tmp_path)]}
    with Dask(workers=2) as cluster:
        result = tune(once, space, Settings(trials=2, batch=2), scheduler=cluster)
    assert len(list(tmp_path.iterdir())) == 2, "each killed one"
    assert [o.trial.state for o in result.outcomes] == ["done", "done"]


def test_no_cluster_says_so():
    with pytest.raises(SchedulerError, match=r"scheduler tcp://127\.0\.0\.1:1: cannot be reached"):
        Dask("tcp://127.0.0.1:1", timeout_s=0.5)


def nap(configuration) -> float:
    """Two seconds, then a bowl."""
    time.sleep(2.0)
    return bowl(configuration)


def throughput(trials: int, kill: int) -> str:
    """The same study in this process and on four workers, of which some are killed; a line about it."""
    settings, seconds, found = Settings(trials=trials, batch=16), {}, {}
    with Dask(workers=4) as cluster:
        tune(bowl, BOWL, Settings(trials=16, batch=16), scheduler=cluster)  # workers that have imported what they need
        for name, who in (("serial", None), ("four workers", cluster)):
            began = time.monotonic()
            found[name] = tune(nap, BOWL, settings, scheduler=who)
            seconds[name] = time.monotonic() - began
        killed = []

        def observe(outcome) -> None:
            if len(killed) < kill and outcome.trial.number >= 8 * (len(killed) + 1):
                workers = cluster._client.run(os.getpid)
                killed.append(sorted(workers.values())[0])
                os.kill(killed[-1], signal.SIGKILL)

        with_kills = tune(nap, BOWL, settings, scheduler=cluster, observe=observe)
    wanted = [(o.configuration, o.value) for o in found["serial"].outcomes]
    for result in (found["four workers"], with_kills):
        assert [(o.configuration, o.value) for o in result.outcomes] == wanted, "another study"
    ratio = seconds["serial"] / seconds["four workers"]
    serial_s, four_s = seconds.values()
    return (
        f"{trials} trials: serial {serial_s:.1f} s, four workers {four_s:.1f} s, {ratio:.2f} times as fast; "
        f"the same trials, also with {len(killed)} workers killed"
    )


if __name__ == "__main__":
    print(throughput(64, 2))
