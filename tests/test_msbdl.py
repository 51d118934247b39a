"""Dictionaries of several views: EM against plain numpy, its laws, planted atoms, missing views, labels."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rnnc.bayes import codes, coupled, foretell, msbdl, review, task
from rnnc.bayes.msbdl import Model, Msbdl, State
from rnnc.recipes.planted import noise_share, paired, plant, recovered

KEY = jax.random.key(3)


def views(count=40, sizes=(5, 4), seed=0):
    rng = np.random.default_rng(seed)
    on = rng.random((count, 6)) < 0.3
    return [(on * rng.standard_normal((count, 6))) @ rng.standard_normal((6, n)) for n in sizes]


def fixed(config, given, share):
    """A state whose noise stays at this share of the energy."""
    state = msbdl.start(config, given, KEY)
    return dataclasses.replace(state, noise=state.noise * share, floor=state.noise * share)


def plain_em(y, d, gamma, noise, sweeps):
    """Sparse Bayesian dictionary learning of one view as it stands in books: M x M inverses, sample by sample."""
    costs = []
    for _ in range(sweeps):
        cross, square, cost, renewed = 0, 0, 0, []
        for yi, gi in zip(y, gamma):
            sigma = np.linalg.inv(d.T @ d / noise + np.diag(1 / gi))
            mu = sigma @ d.T @ yi / noise
            s = noise * np.eye(len(d)) + d @ np.diag(gi) @ d.T
            cost += np.linalg.slogdet(s)[1] + yi @ np.linalg.inv(s) @ yi
            cross, square = cross + np.outer(yi, mu), square + sigma + np.outer(mu, mu)
            renewed.append(np.diag(sigma) + mu**2)
        d, gamma = cross @ np.linalg.inv(square), np.array(renewed)
        norm = np.linalg.norm(d, axis=0)
        d, gamma = d / norm, gamma * norm**2
        costs.append(cost)
    return d, gamma, costs


def test_one_view_is_plain_em():
    with jax.enable_x64(True):
        (y,) = views(sizes=(5,))
        config = Msbdl(atoms=(7,), sweeps=6, noise_share=(0.0,), review_every=0, anneal=1.0, norm="root")
        state = fixed(config, [y], 0.1)
        done = msbdl.fit(config, [y], state)
        d, gamma, costs = plain_em(
            y / float(state.scale[0]), *map(np.asarray, (state.dictionaries[0], state.gamma, state.noise[0])), 6
        )
        # the ridge of 20 eps in the M step, over six sweeps
        np.testing.assert_allclose(done.dictionaries[0], d, rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(done.gamma, gamma, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(done.cost, costs, rtol=1e-9)


def test_posterior_is_that_of_the_explicit_matrix():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        d, y, gamma = rng.standard_normal((4, 9)), rng.standard_normal((3, 4)), rng.exponential(size=(3, 9))
        found = coupled.posterior(*map(jnp.asarray, (d, gamma, 0.3, y)))
        total = np.zeros((9, 9))
        for i in range(3):
            sigma = np.linalg.inv(d.T @ d / 0.3 + np.diag(1 / gamma[i]))
            mu = sigma @ d.T @ y[i] / 0.3
            np.testing.assert_allclose(found.mean[i], mu, rtol=1e-9)
            np.testing.assert_allclose(found.variance[i], np.diag(sigma), rtol=1e-9)
            s = 0.3 * np.eye(4) + d @ np.diag(gamma[i]) @ d.T
            cost = np.linalg.slogdet(s)[1] + y[i] @ np.linalg.solve(s, y[i])
            np.testing.assert_allclose(found.cost[i], cost, rtol=1e-9)
            total += sigma + np.outer(mu, mu)
        np.testing.assert_allclose(coupled.second_moment(found, jnp.asarray(gamma)), total, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("atoms", [(7,), (6, 6), (4, 8), (6, 4)])
def test_the_objective_falls_every_sweep(atoms):
    with jax.enable_x64(True):
        given = views()[: len(atoms)]
        common = {"atoms": atoms, "sweeps": 25, "noise_share": (0.0,) * len(atoms), "review_every": 0, "anneal": 1.0}
        config = Msbdl(**common, norm="root")
        steps = np.diff(msbdl.fit(config, given, fixed(config, given, 0.05)).cost)
        assert (steps < 0).all()
        assert steps.sum() < -10


def test_unit_norms_cost_likelihood_that_root_norms_keep():
    with jax.enable_x64(True):
        common = {"atoms": (6, 6), "sweeps": 27, "noise_share": (0.0, 0.0), "review_every": 0, "anneal": 1.0}
        root, unit = (Msbdl(**common, norm=norm) for norm in ("root", "unit"))
        settled = msbdl.fit(root, views(), fixed(root, views(), 0.05), until=25)
        one, other = (msbdl.fit(config, views(), settled).cost for config in (root, unit))
        assert one[26] < one[25]
        assert other[26] > other[25]


@pytest.mark.parametrize("norm", ["unit", "root"])
def test_swapped_views_swap_dictionaries_and_leave_gamma(norm):
    a, b = views()
    config = Msbdl(atoms=(6, 6), sweeps=8, noise_share=(0.1, 0.1), review_every=0, norm=norm)
    one, two = (msbdl.fit(config, given, msbdl.start(config, given, KEY)) for given in ([a, b], [b, a]))
    # float32, sums over the views in another order
    np.testing.assert_allclose(one.gamma, two.gamma, rtol=1e-3, atol=1e-6)
    for d, e in zip(one.dictionaries, reversed(two.dictionaries)):
        np.testing.assert_allclose(d, e, rtol=1e-3, atol=1e-5)


def test_views_may_have_any_scale():
    a, b = views()
    config = Msbdl(atoms=(6, 6), sweeps=8, noise_share=(0.1, 0.1))
    one, two = (msbdl.fit(config, given, msbdl.start(config, given, KEY)) for given in ([a, b], [a, 1024 * b]))
    # a power of two changes no mantissa, but for the scale's own rounding
    np.testing.assert_allclose(one.gamma, two.gamma, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(two.scale / one.scale, [1, 1024], rtol=1e-6)


def test_gamma_of_a_group_is_the_mean_over_its_atoms():
    rng = np.random.default_rng(2)
    atoms = (3, 5)
    found = [
        coupled.Posterior(
            *(jnp.asarray(rng.random((4, m)), jnp.float32) for _ in range(2)), jnp.zeros(()), jnp.zeros(())
        )
        for m in atoms
    ]
    owner = coupled.owners(atoms)
    got = coupled.shared(found, owner, 3)
    for i in range(4):
        for root in range(3):
            own = [
                p.mean[i, m] ** 2 + p.variance[i, m] for p, w in zip(found, owner) for m in np.flatnonzero(w == root)
            ]
            assert got[i, root] == pytest.approx(float(np.mean(own)), rel=1e-6)


def test_groups_of_one_are_one_to_one():
    values = jnp.asarray(np.random.default_rng(0).random((4, 5)), jnp.float32)
    owner = coupled.owners((5, 5))[1]
    np.testing.assert_array_equal(coupled.gathered(values, owner, 5), values)
    np.testing.assert_array_equal(values[:, owner], values)
    # a sixth root that owns nothing takes the way of groups
    np.testing.assert_allclose(coupled.gathered(values, owner, 6)[:, :5], values, rtol=1e-6)


def test_a_batch_of_everything_is_batch_em():
    given = views()
    whole = Msbdl(atoms=(6, 6), sweeps=6, noise_share=(0.1, 0.1), review_every=0)
    batch = dataclasses.replace(whole, batch=40)
    one, two = (msbdl.fit(config, given, msbdl.start(config, given, KEY)) for config in (whole, batch))
    # float32, sums over the samples in another order
    np.testing.assert_allclose(one.gamma, two.gamma, rtol=1e-2, atol=1e-5)
    np.testing.assert_allclose(one.cost, two.cost, rtol=1e-4)


def test_sums_forget():
    given = views()
    config = Msbdl(atoms=(6, 6), sweeps=1, batch=20, forgetting=0.5, noise_share=(0.1, 0.1), review_every=0)
    first = msbdl.start(config, given, KEY)
    ready = [jnp.asarray(y, jnp.float32) / s for y, s in zip(given, first.scale)]
    rows = [jnp.arange(20), jnp.arange(20, 40)]
    state, sums = first, []
    for at in rows:
        parts = [y[at] for y in ready]
        found = [coupled.posterior(d, state.gamma[at], n, y) for d, n, y in zip(state.dictionaries, state.noise, parts)]
        sums.append([y.T @ p.mean for y, p in zip(parts, found)])
        state, _ = msbdl._step(config, tuple(parts), state, at)
    for now, old, got in zip(sums[1], sums[0], state.cross):
        np.testing.assert_allclose(got, now + 0.5 * old, rtol=1e-5, atol=1e-6)


RESUMED = [
    Msbdl(atoms=(6, 9), sweeps=6, batch=12, forgetting=0.5, review_every=2, noise_share=(0.1, 0.1)),
    Msbdl(atoms=(6, 6), sweeps=6, review_every=2),
]


@pytest.mark.parametrize("config", RESUMED)
def test_stopping_and_going_on_changes_no_bit(config):
    given = views(sizes=(9, 8))
    first = msbdl.start(config, given, KEY)
    whole = msbdl.fit(config, given, first)
    file = io.BytesIO()
    np.savez(file, **msbdl.arrays(msbdl.fit(config, given, first, until=3)))
    file.seek(0)
    resumed = msbdl.fit(config, given, msbdl.restored(State, np.load(file)))
    for name, array in msbdl.arrays(whole).items():
        np.testing.assert_array_equal(msbdl.arrays(resumed)[name], array, err_msg=name)
    other = msbdl.fit(config, given, msbdl.start(config, given, jax.random.key(4)))
    assert not np.array_equal(other.gamma, whole.gamma)


def test_planted_atoms_are_found_and_paired():
    problem = plant(0, atoms=(16, 16), size=12, samples=300, on=2, snr_db=15)
    config = Msbdl(atoms=(16, 16), sweeps=120, anneal=0.96, review_every=10, noise_share=(noise_share(15),) * 2)
    alone = dataclasses.replace(config, pairing=False)
    done, never = (msbdl.fit(c, problem.views, msbdl.start(c, problem.views, KEY)) for c in (config, alone))
    found = [recovered(truth, np.asarray(d)) for truth, d in zip(problem.atoms, done.dictionaries)]
    assert min(found) >= 0.9
    assert paired(problem.atoms, done.dictionaries) >= 0.9
    assert paired(problem.atoms, never.dictionaries) <= 0.8


def test_the_noise_is_found():
    problem = plant(1, atoms=(16, 16), size=12, samples=300, on=2, snr_db=10)
    config = Msbdl(atoms=(16, 16), sweeps=120, anneal=0.96, review_every=10)
    state = msbdl.fit(config, problem.views, msbdl.start(config, problem.views, KEY))
    share = np.asarray(state.noise) * 12
    assert (share > 0.5 * noise_share(10)).all()  # it would go to 1e-3 by the schedule alone
    assert (share < 3 * noise_share(10)).all()


def test_pairing_undoes_a_shuffle():
    problem = plant(2, atoms=(8, 16), size=20, samples=300, on=2, snr_db=30)
    order = np.random.default_rng(0).permutation(16)
    d = [jnp.asarray(truth, jnp.float32) for truth in problem.atoms]
    scale = [np.sqrt(np.mean(np.sum(y**2, axis=1))) for y in problem.views]
    ready = [jnp.asarray(y / s) for y, s in zip(problem.views, scale)]
    flat = jnp.full((300, 8), 1 / 8, jnp.float32)
    _, moved = review.pairing([d[0], d[1][:, order]], jnp.full(2, 1e-3, jnp.float32), flat, ready)
    roots = coupled.owners((8, 16))[1]
    np.testing.assert_array_equal(roots[order[moved]], roots)


def test_silent_samples_and_columns_are_fine():
    a, b = views(count=60)
    a[:10], b[5:15], a[:, 1] = 0, 0, 0
    config = Msbdl(atoms=(6, 6), sweeps=10, noise_share=(0.1, 0.1), review_every=3)
    state = msbdl.fit(config, [a, b], msbdl.start(config, [a, b], KEY))
    assert all(np.isfinite(array).all() for array in msbdl.arrays(state).values())
    assert np.abs(state.dictionaries[0][1]).max() < 1e-6
    found = msbdl.transform(state.model(), [np.zeros_like(a), None])
    assert np.abs(found.means[0]).max() == 0


BAD = [
    ({"atoms": ()}, None, "atoms: is"),
    ({"atoms": (3, 0)}, None, "atoms: is"),
    ({"sweeps": 0}, None, "sweeps: is 0"),
    ({"forgetting": 1.0}, None, "forgetting: is 1.0"),
    ({"anneal": 0.0}, None, "anneal: is 0.0"),
    ({"noise_share": (0.1,)}, None, "noise_share: is"),
    ({"noise_share": None, "review_every": 0}, None, "one of them is needed"),
    ({"norm": "units"}, None, "norm: is 'units'"),
    ({"noise_share": None}, lambda a, b: [a, b], "too few to hide"),
    ({"batch": 41}, lambda a, b: [a, b], "batch: is 41, must be at most the 40"),
    ({}, lambda a, b: [], "views: are 0, must be 2"),
    ({}, lambda a, b: [a], "views: are 1, must be 2"),
    ({}, lambda a, b: [a, b[:-1]], r"views\[1\]: has 39 samples"),
    ({}, lambda a, b: [a, b[0]], r"views\[1\]: is float64 \[4\]"),
    ({}, lambda a, b: [a, b + 1j], r"views\[1\]: is complex"),
    ({}, lambda a, b: [a, np.where(b > 1, np.nan, b)], r"views\[1\]: holds NaN"),
    ({}, lambda a, b: [a, 0 * b], r"views\[1\]: is silent"),
    ({}, lambda a, b: [a[:5], b[:5]], "need 6 samples that no view is silent in, has"),
    ({"atoms": (6, 60)}, lambda a, b: [a, b], "need 60 samples"),
]


@pytest.mark.parametrize(("changes", "given", "message"), BAD)
def test_refuses(changes, given, message):
    def do():
        config = Msbdl(**{"atoms": (6, 6), "noise_share": (0.1, 0.1), **changes})
        assert given is not None
        msbdl.start(config, given(*views()), KEY)

    with pytest.raises(ValueError, match=message):
        do()


def test_refuses_what_does_not_fit_the_state():
    config = Msbdl(atoms=(6, 6), noise_share=(0.1, 0.1), sweeps=1)
    state = msbdl.start(config, views(), KEY)
    with pytest.raises(ValueError, match="state: is of 40 samples"):
        msbdl.fit(config, views(count=41), state)
    with pytest.raises(ValueError, match="none is there"):
        msbdl.transform(state.model(), [None, None])
    with pytest.raises(ValueError, match=r"views\[1\]: has 5 numbers a sample, must have 4"):
        msbdl.transform(state.model(), [None, views()[0]])
    with pytest.raises(ValueError, match=r"array 'dictionaries\.0' is missing"):
        msbdl.restored(Model, {"scale": np.ones(1)})


@pytest.fixture(scope="module")
def pair():
    """Two views with the same codes, and dictionaries learned from them."""
    rng = np.random.default_rng(5)
    x = (rng.random((300, 10)) < 0.2) * rng.standard_normal((300, 10))
    given = [(x @ rng.standard_normal((10, n)) + 0.05 * rng.standard_normal((300, n))) for n in (12, 9)]
    config = Msbdl(atoms=(10, 10), sweeps=80, anneal=0.94, review_every=10, noise_share=(0.01, 0.01))
    return given, msbdl.fit(config, given, msbdl.start(config, given, KEY)).model()


def test_a_missing_view_says_nothing(pair, monkeypatch):
    given, model = pair
    one = Model(dictionaries=model.dictionaries[:1], noise=model.noise[:1], scale=model.scale[:1], prior=model.prior)
    whole = msbdl.transform(model, [given[0], None])
    # float32: 30 passes of differently compiled sums; gamma of atoms that are off goes to zero in both
    near = {"rtol": 1e-3, "atol": 1e-5}
    np.testing.assert_allclose(whole.gamma, msbdl.transform(one, given[:1]).gamma, **near)
    assert not whole.means[1].any()
    monkeypatch.setattr(codes, "CHUNK", 77)
    np.testing.assert_allclose(msbdl.transform(model, [given[0], None]).gamma, whole.gamma, **near)


@pytest.mark.parametrize(("kind", "least_db"), [("full", 8), ("own", 6)])
def test_one_view_foretells_the_other(pair, kind, least_db):
    given, model = pair
    train, test = ([y[at] for y in given] for at in (slice(200), slice(200, None)))
    link = foretell.learn(model, train, kind=kind)
    guess = foretell.foretold(model, link, msbdl.transform(model, [test[0], None]))
    error = np.mean((guess - test[1]) ** 2) / np.mean(test[1] ** 2)
    assert -10 * np.log10(error) > least_db  # the mean alone gives 0 dB
    if kind == "own":
        assert np.count_nonzero(link.weight) == 10


def test_prior_power_is_the_spread_of_what_gamma_draws(pair):
    _, model = pair
    gamma = jnp.asarray(np.random.default_rng(0).exponential(size=(1, 10)), jnp.float32)
    x = np.random.default_rng(1).standard_normal((200_000, 10)) * np.sqrt(gamma)
    drawn = x @ np.asarray(model.dictionaries[1]).T * float(model.scale[1])
    # the spread of a variance over 200000 draws is 0.3 %
    np.testing.assert_allclose(foretell.prior_power(model, gamma, 1)[0], drawn.var(axis=0), rtol=0.02)


def test_links_refuse(pair):
    given, model = pair
    for changes, message in (
        ({"target": 2}, "target: is 2"),
        ({"kind": "ful"}, "kind: is 'ful'"),
        ({"ridge": 0.0}, "ridge: is 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            foretell.learn(model, given, **changes)


def test_the_gradient_of_the_task_is_its_slope():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        how = task.Task(classes=3, decay=0.1)
        model = Model(dictionaries=(), noise=jnp.array([0.1, 0.2]), scale=jnp.array([1.0, 2.0]), prior=jnp.ones(3))
        params = task.Params(
            (jnp.asarray(rng.standard_normal((4, 3))), jnp.asarray(rng.standard_normal((5, 6)))),
            *(jnp.asarray(rng.standard_normal(shape)) for shape in ((9, 3), (3,))),
        )
        some = [jnp.asarray(rng.standard_normal((7, n))) for n in (4, 5)]
        gamma, labels = jnp.asarray(rng.exponential(size=(7, 3))), jnp.arange(7) % 3

        def loss(params):
            return task.loss(how, model, jnp.asarray(0.7), params, some, labels, gamma)

        flat, tree = jax.tree.flatten(params)
        slopes = jax.tree.leaves(jax.grad(loss)(params))
        for i, leaf in enumerate(flat):
            way = jnp.asarray(rng.standard_normal(leaf.shape))
            up, down = (
                loss(jax.tree.unflatten(tree, [*flat[:i], leaf + e * way, *flat[i + 1 :]])) for e in (1e-6, -1e-6)
            )
            # central differences: 1e-12 of curvature, 1e-10 of rounding
            assert float(jnp.sum(slopes[i] * way)) == pytest.approx(float(up - down) / 2e-6, rel=1e-6, abs=1e-8)


def test_the_loss_sees_the_codes_of_transform():
    with jax.enable_x64(True):
        given = views()
        config = Msbdl(atoms=(6, 6), sweeps=5, noise_share=(0.1, 0.1), review_every=0)
        model = msbdl.fit(config, given, msbdl.start(config, given, KEY)).model()
        how = task.Task(classes=2, decay=0.0, passes=4)
        labels = (given[0][:, 0] > 0).astype(np.int32)
        state = task.begin(how, model, given, labels, KEY)
        found = msbdl.transform(model, given, 4)
        scores = np.asarray(task.logits(state, found))
        plain = np.mean(np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(40), labels])
        ready = [jnp.asarray(y) for y in given]
        params = task.Params(model.dictionaries, state.weight, state.bias)
        got = task.loss(how, model, state.spread, params, ready, jnp.asarray(labels), found.gamma)
        assert float(got) == pytest.approx(float(plain), rel=1e-9)


def test_labels_move_atoms_and_classify_better():
    rng = np.random.default_rng(0)
    signs = rng.standard_normal((200, 6))
    labels = (signs[:, 0] > 0).astype(np.int32)
    given = [signs @ rng.standard_normal((6, n)) + 0.3 * rng.standard_normal((200, n)) for n in (4, 4)]
    config = Msbdl(atoms=(6, 6), sweeps=20, noise_share=(0.2, 0.2))
    model = msbdl.fit(config, given, msbdl.start(config, given, KEY)).model()
    how = task.Task(classes=2, epochs=20, batch=50, atom_rate=0.01, decay=1e-4)
    first = task.begin(how, model, given, labels, KEY)

    def entropy(state):
        codes = msbdl.transform(state.model, given, how.passes)
        gap = task.logits(state, codes)
        return float(jnp.mean(jax.nn.logsumexp(gap, axis=1) - gap[jnp.arange(200), labels]))

    half = task.fit(how, given, labels, first, until=7)
    whole = task.fit(how, given, labels, first)
    assert entropy(whole) < 0.9 * entropy(first)
    for a, b in zip(jax.tree.leaves(task.fit(how, given, labels, half)), jax.tree.leaves(whole)):
        np.testing.assert_array_equal(a, b)
    still = task.fit(dataclasses.replace(how, atom_rate=0.0), given, labels, first)
    np.testing.assert_allclose(still.model.dictionaries[0], model.dictionaries[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(whole.model.dictionaries[0], model.dictionaries[0], atol=1e-3)
    for wrong, message in ((labels[:-1], "must be 200 integers"), (labels + 1, "must be 0 to 1")):
        with pytest.raises(ValueError, match=message):
            task.begin(how, model, given, wrong, KEY)


def test_the_mean_of_a_code_is_foretold_too():
    model = Model(dictionaries=(jnp.eye(3),) * 2, noise=jnp.full(2, 0.01), scale=jnp.ones(2), prior=jnp.ones(3))
    y = 3 + np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    link = foretell.learn(model, [y, 2 * y], ridge=1e-6)
    guess = foretell.foretold(model, link, msbdl.transform(model, [y, None]))
    assert np.mean((guess - 2 * y) ** 2) < 0.01 * np.mean((2 * y) ** 2)


def test_the_cost_of_batches_stands_for_all_samples():
    given = views()
    whole = Msbdl(atoms=(6, 6), sweeps=1, noise_share=(0.1, 0.1), review_every=0)
    part = dataclasses.replace(whole, batch=21)  # one batch; 19 samples are left out
    one, two = (float(msbdl.fit(c, given, msbdl.start(c, given, KEY)).cost[0]) for c in (whole, part))
    assert two == pytest.approx(one, rel=0.2)


def test_a_review_moves_the_sums_with_the_atoms():
    problem = plant(2, atoms=(8, 8), size=20, samples=300, on=2, snr_db=30)
    config = Msbdl(atoms=(8, 8), sweeps=1, noise_share=(1e-3, 1e-3))
    first = msbdl.start(config, problem.views, KEY)
    order = np.random.default_rng(0).permutation(8)
    d = [jnp.asarray(truth, jnp.float32) for truth in problem.atoms]
    mark = jnp.arange(8, dtype=jnp.float32)
    state = dataclasses.replace(
        first,
        dictionaries=(d[0], d[1][:, order]),
        noise=jnp.full(2, 1e-3, jnp.float32),
        cross=(d[0], d[1][:, order]),
        square=(jnp.outer(mark, mark), jnp.outer(mark[order], mark[order])),
    )
    done = msbdl._review(config, tuple(jnp.asarray(y) / s for y, s in zip(problem.views, first.scale)), state)
    for got, wanted in ((done.dictionaries, d), (done.cross, d), (done.square, [jnp.outer(mark, mark)] * 2)):
        np.testing.assert_array_equal(got[1], wanted[1])


def test_hidden_numbers_are_scored_by_the_conditional_normal():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        d, y = jnp.asarray(rng.standard_normal((8, 5))), jnp.asarray(rng.standard_normal((3, 8)))
        order = np.asarray(jax.random.permutation(KEY, 8))
        hidden, seen = order[: 8 // review.HIDDEN], order[8 // review.HIDDEN :]
        flat = jnp.full((3, 5), 1 / 5)
        gamma, _ = coupled.infer([d[seen]], jnp.full(1, 0.1), flat, [y[:, seen]], 2 * review.ALONE)
        wanted = []
        for row, g in zip(np.asarray(y), np.asarray(gamma)):
            s = np.asarray(d) * g @ np.asarray(d).T + 0.1 * np.eye(8)
            gain = s[np.ix_(hidden, seen)] @ np.linalg.inv(s[np.ix_(seen, seen)])
            v = np.diag(s[np.ix_(hidden, hidden)] - gain @ s[np.ix_(seen, hidden)])
            wanted.append((row[hidden] - gain @ row[seen]) ** 2 / v + np.log(v))
        got = float(review.hidden_loss(d, jnp.asarray(0.1), y, KEY))
        assert got == pytest.approx(float(np.mean(wanted)), rel=1e-8)


@pytest.mark.parametrize("atoms", [(12,), (12, 12)])
def test_noise_may_fall_to_its_least(atoms):
    planted = plant(0, atoms=(12, 12), size=20, samples=200, on=3, snr_db=30)
    given = planted.views[: len(atoms)]
    config = Msbdl(atoms=atoms, sweeps=60, anneal=0.85, noise_share=(0.0,) * len(atoms))
    state = msbdl.fit(config, given, msbdl.start(config, given, jax.random.key(0)))
    assert all(np.isfinite(a).all() for a in codes.arrays(state).values() if a.dtype.kind == "f")
    np.testing.assert_allclose(20 * state.noise, 1e-6, rtol=1e-5)


def test_no_noise_is_too_small_for_a_factor(monkeypatch):
    """Below 4 eps of what the atoms give, it is that; the rest is the explicit matrix's."""
    monkeypatch.setattr(msbdl, "SMALLEST_NOISE", 1e-9)
    given = plant(0, atoms=(12, 12), size=20, samples=200, on=3, snr_db=30).views
    config = Msbdl(atoms=(12, 12), sweeps=60, anneal=0.85, noise_share=(0.0, 0.0))
    state = msbdl.fit(config, given, msbdl.start(config, given, jax.random.key(0)))
    assert np.isfinite(state.cost).all()
    with pytest.raises(ValueError, match="noise_share: the posterior is not finite from sweep 0 on"):
        msbdl.fit(config, given, dataclasses.replace(state, cost=jnp.full(1, jnp.nan)), until=0)
    d, gamma, y = jnp.array([[1.0, 0.6], [0.0, 0.8]]), jnp.array([[100.0, 1.0]]), jnp.array([[3.0, 1.0]])
    level = 4 * float(jnp.finfo(jnp.float32).eps) * 101
    s = level * np.eye(2) + np.asarray(d, float) @ np.diag([100.0, 1.0]) @ np.asarray(d, float).T
    cost = np.linalg.slogdet(s)[1] + y[0] @ np.linalg.solve(s, y[0])
    np.testing.assert_allclose(coupled.posterior(d, gamma, jnp.array(1e-9), y).cost[0], cost, rtol=1e-3)


def test_views_are_taken_in_the_precision_of_the_model():
    given = plant(0, atoms=(6, 6), size=20, samples=80, on=2).views
    config = Msbdl(atoms=[6, 6], sweeps=3, noise_share=[0.1, 0.1])
    state = msbdl.fit(config, given, msbdl.start(config, given, jax.random.key(0)), until=2)
    wide = [y.astype(np.float64) for y in given]
    with jax.enable_x64(True):
        found = msbdl.transform(state.model(), [wide[0], None])
        more = msbdl.fit(config, wide, state)
    np.testing.assert_array_equal(found.gamma, msbdl.transform(state.model(), [given[0], None]).gamma)
    np.testing.assert_array_equal(more.gamma, msbdl.fit(config, given, state).gamma)


def test_numbers_that_single_precision_cannot_hold_are_refused():
    with pytest.raises(ValueError, match=r"views\[0\]: holds NaN, infinity or what float32 cannot hold"):
        codes.checked([np.full((3, 4), 1e39)], [2])


def test_decay_pulls_the_classifier():
    """At the optimum of mean cross entropy + decay |W|^2 / 2 its slope is nothing, by the explicit formula."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((60, 3)).astype(np.float32), rng.integers(0, 2, 60)
    weight, bias = (np.asarray(a) for a in task.linear(jnp.asarray(x), labels, 2, 0.1, steps=3000))
    scores = x @ weight + bias
    share = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    slope = x.T @ (share - np.eye(2)[labels]) / 60 + 0.1 * weight
    np.testing.assert_allclose(slope, 0, atol=1e-4)
    assert np.abs(0.1 * weight).max() > 1e-3
