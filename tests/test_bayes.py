"""R-SBL: its moments by quadrature, its E-steps by explicit matrices and integrals, its loop by planted problems."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from rnnc.bayes import moments, rsbl
from rnnc.bayes.esteps import AMP, ESTEPS, LMMSE, MCMC, Diagonal, EStep, Gaussian, normal
from rnnc.bayes.priors import PRIORS, Flat, Laplace, Prior, StudentT

EXACT = [Gaussian(), Diagonal(), LMMSE()]
ALL = [*EXACT, MCMC(sweeps=4, burn=1), AMP()]
KINDS = [Flat(), Laplace(3.0), StudentT(2.0, scale=0.1)]


@pytest.fixture
def doubles():
    with jax.enable_x64(True):
        yield


def planted(seed: int, n: int, m: int, k: int, count: int = 1, sigma: float = 0.01):
    """phi [count, n, m] with columns of length 1, x with k numbers in 0.5 .. 1.5, and y of this noise."""
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((count, n, m))
    phi /= np.linalg.norm(phi, axis=1, keepdims=True)
    x = np.zeros((count, m))
    for row in x:
        row[rng.choice(m, k, replace=False)] = rng.uniform(0.5, 1.5, k)
    return phi, x, np.einsum("bnm,bm->bn", phi, x) + sigma * rng.standard_normal((count, n))


def cut_moments(a: float) -> tuple[float, float]:
    """E[x], E[x^2] of N(-a, 1) cut to x >= 0, by quadrature of its density divided by that at the largest point."""
    top = max(-a, 0.0)
    weigh = lambda x: np.exp(-((x + a) ** 2 - (top + a) ** 2) / 2)
    reach = 40 / a if a > 3 else 12.0
    low, high = max(0.0, top - reach), top + reach
    mass, first, second = (
        integrate.quad(lambda x, p=p: x**p * weigh(x), low, high, epsabs=0, epsrel=1e-13)[0] for p in range(3)
    )
    return first / mass, second / mass


def test_moments_equal_quadrature(doubles):
    a = np.concatenate([np.linspace(-30, 30, 61), [2.999, 3.001]])
    found = moments.rectified(jnp.array(-2 * a), jnp.full(len(a), 2.0))
    exact = np.array([cut_moments(v) for v in a])
    # The tail that the quadrature leaves out is below 1e-15; a^2 = 9 makes rounding larger near FAR.
    np.testing.assert_allclose(found.mean / 2, exact[:, 0], rtol=1e-12)
    np.testing.assert_allclose(found.second / 4, exact[:, 1], rtol=1e-11)
    np.testing.assert_allclose(found.log_mass, stats.norm.logsf(a), rtol=1e-10, atol=1e-15)  # of the series of log_ndtr


def test_moments_in_single_precision():
    a = np.linspace(-30, 30, 61, dtype=np.float32)
    found = moments.rectified(jnp.array(-a), jnp.ones(len(a)))
    exact = np.array([cut_moments(float(v)) for v in a])
    # Below 3 the differences lose a factor of at most (1 + 9) / 0.15 = 70 of float32's 6e-8, about ten times.
    np.testing.assert_allclose(found.mean, exact[:, 0], rtol=2e-5)
    np.testing.assert_allclose(found.second, exact[:, 1], rtol=5e-5)


@pytest.mark.parametrize("a", [-30.0, 0.0, 2.9, 3.1, 30.0])
def test_draws_have_the_distribution(doubles, a):
    x = np.asarray(moments.draw(jax.random.key(3), jnp.full(4000, -2 * a), jnp.full(4000, 2.0)))
    upper = np.exp(stats.norm.logsf(x / 2 + a) - stats.norm.logsf(a))  # uniform, if x is right
    assert stats.kstest(upper, "uniform").pvalue > 0.01


def test_normal_equals_the_explicit_inverse(doubles):
    (phi,), _, (y,) = planted(0, 6, 9, 3)
    gamma, sigma2 = np.random.default_rng(1).uniform(0.1, 2, 9), 0.05
    sigma = np.linalg.inv(phi.T @ phi / sigma2 + np.diag(1 / gamma))
    found = normal(jnp.array(phi), jnp.array(y), jnp.array(gamma), jnp.array(sigma2))
    np.testing.assert_allclose(found.mu, sigma @ phi.T @ y / sigma2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.variance, np.diag(sigma), rtol=1e-9)
    np.testing.assert_allclose(found.trace.sum(), np.trace(phi @ sigma @ phi.T), rtol=1e-9)
    s = sigma2 * np.eye(6) + phi * gamma @ phi.T
    np.testing.assert_allclose(found.evidence, np.linalg.slogdet(s)[1] + y @ np.linalg.solve(s, y), rtol=1e-9)


def run(estep: EStep, phi, y, gamma, sigma2):
    """One E-step with the state of a first run."""
    args = [jnp.array(a) for a in (phi, y, gamma, sigma2)]
    if estep.rotated:
        u = jnp.linalg.svd(args[0])[0]
        args[:2] = u.T @ args[0], u.T @ args[1]
    return estep.run(*args, estep.start(args[1], args[2]), jax.random.key(0))[0]


def exact(phi, y, gamma, sigma2, reach=8.0, points=400):
    """Mean, second moment and -2 log p(y | gamma) of the cut posterior of one or two atoms, by a sum over a grid."""
    axes = [np.linspace(0, reach * np.sqrt(g), points + 1)[:-1] + reach * np.sqrt(g) / points / 2 for g in gamma]
    grid = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")])
    log = -np.sum((y[:, None] - phi @ grid) ** 2, axis=0) / (2 * sigma2) - np.sum(
        grid**2 / (2 * gamma[:, None]), axis=0
    )
    weight = np.exp(log - log.max())
    cell = np.prod([a[1] - a[0] for a in axes])
    prior = np.prod(np.sqrt(2 / (np.pi * gamma)))
    likelihood = weight.sum() * cell * prior * np.exp(log.max()) / (2 * np.pi * sigma2) ** (len(y) / 2)
    share = weight / weight.sum()
    return grid @ share, grid**2 @ share, -2 * np.log(likelihood) - len(y) * np.log(2 * np.pi)


@pytest.mark.parametrize("top", [-1.0, 0.3, 2.0])
def test_diagonal_is_exact_for_one_atom(doubles, top):
    phi, y, gamma, sigma2 = np.array([[0.6], [0.8]]), np.array([top, 0.2]), np.array([1.5]), 0.3
    mean, second, objective = exact(phi, y, gamma, sigma2, points=20000)
    found = run(Diagonal(), phi, y, gamma, sigma2)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)  # of the grid
    np.testing.assert_allclose(found.second, second, rtol=1e-6)
    np.testing.assert_allclose(found.objective, objective, rtol=1e-6)
    spread = second - mean**2
    np.testing.assert_allclose(found.residual, np.sum((y - phi @ mean) ** 2) + spread.sum(), rtol=1e-6)


def test_diagonal_is_exact_for_orthogonal_atoms(doubles):
    phi, y, gamma, sigma2 = np.diag([1.0, 2.0]), np.array([0.4, -0.5]), np.array([1.0, 0.5]), 0.2
    mean, second, objective = exact(phi, y, gamma, sigma2, points=1500)
    found = run(Diagonal(), phi, y, gamma, sigma2)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4)  # of the grid
    np.testing.assert_allclose(found.second, second, rtol=1e-4)
    np.testing.assert_allclose(found.objective, objective, rtol=1e-4)


@pytest.mark.parametrize("angle", [0.5 * np.pi, 0.15 * np.pi])
def test_mcmc_agrees_with_the_integral(doubles, angle):
    phi = np.array([[1.0, np.cos(angle)], [0.0, np.sin(angle)]])
    y, gamma, sigma2 = np.array([0.5, 0.1]), np.array([1.0, 2.0]), 0.2
    mean, second, _ = exact(phi, y, gamma, sigma2)
    found = run(MCMC(sweeps=20000, burn=100), phi, y, gamma, sigma2)
    # 20,000 sweeps, correlated over about ten at the small angle: standard errors of about 2 %.
    np.testing.assert_allclose(found.mean, mean, rtol=0.05)
    np.testing.assert_allclose(found.second, second, rtol=0.05)


def test_lmmse_equals_the_formula(doubles):
    (phi,), _, (y,) = planted(2, 6, 9, 3)
    gamma, sigma2 = np.random.default_rng(3).uniform(0.1, 2, 9), 0.05
    prior, c = np.sqrt(2 * gamma / np.pi), np.diag(gamma * (1 - 2 / np.pi))
    gain = c @ phi.T @ np.linalg.inv(sigma2 * np.eye(6) + phi @ c @ phi.T)
    x = np.maximum(prior + gain @ (y - phi @ prior), 0)
    found = run(LMMSE(), phi, y, gamma, sigma2)
    np.testing.assert_allclose(found.mean, x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.second, x**2 + np.diag(c - gain @ phi @ c), rtol=1e-8)


def test_amp_is_near_the_sampler(doubles):
    (phi,), _, (y,) = planted(4, 40, 80, 8, sigma=0.2)
    gamma = np.full(80, 0.1)
    sampled = run(MCMC(sweeps=600, burn=50), phi, y, gamma, 0.04)
    passed = run(AMP(rounds=60), phi, y, gamma, 0.04)
    # A law of large numbers: in 40 rows both differ by some hundredths; the prior's mean alone is off by half.
    assert np.linalg.norm(passed.mean - sampled.mean) < 0.1 * np.linalg.norm(sampled.mean)


@pytest.mark.parametrize("prior", KINDS, ids=repr)
@pytest.mark.parametrize("second", [1e-3, 0.7, 20.0])
def test_a_prior_gives_its_best_gamma(doubles, prior: Prior, second):
    cost = lambda log: float(log + second / np.exp(log) + prior.penalty(np.exp(log)))
    best = np.exp(optimize.minimize_scalar(cost, bounds=(-20, 10), method="bounded", options={"xatol": 1e-9}).x)
    assert float(prior.gamma(np.float64(second))) == pytest.approx(best, rel=1e-6)  # the minimum is flat


@pytest.mark.parametrize(
    ("estep", "orthogonal"), [(Gaussian(), False), (Diagonal(), True)], ids=["gaussian", "diagonal, orthogonal"]
)
@pytest.mark.parametrize("prior", KINDS, ids=repr)
def test_the_objective_falls_where_theory_says_so(estep, orthogonal, prior):
    (phi,), _, (y,) = planted(5, 12, 12 if orthogonal else 20, 3)
    phi = np.linalg.qr(phi)[0] if orthogonal else phi
    trace = [
        rsbl.fit(phi, y, sigma2=0.01, estep=estep, prior=prior, iterations=i, tolerance=0, prune=0).objective
        for i in range(1, 12)
    ]
    assert np.all(np.diff(trace) <= 1e-9), trace
    assert trace[-1] < trace[0] - 0.1


@pytest.mark.parametrize("estep", ALL, ids=repr)
def test_a_batch_equals_single_problems_and_compacting_changes_nothing(estep, monkeypatch):
    phi, _, y = planted(6, 16, 32, 3, count=3)
    options = {"sigma2": 1e-4, "estep": estep, "iterations": 20, "point": "mode"}
    together = rsbl.fit(phi, y, **options)
    monkeypatch.setattr(rsbl, "COMPACT", 1)
    small = rsbl.fit(phi, y, **options)
    monkeypatch.undo()
    alone = [rsbl.fit(p, v, **options).x for p, v in zip(phi, y)]
    if estep.stochastic:  # each problem has its own key, and leaving out atoms draws anew: only what is found can agree
        np.testing.assert_allclose(small.x, together.x, atol=0.1)
        return
    # Rounding is carried on by up to 20 steps of a problem of condition 1e4.
    np.testing.assert_allclose(together.x, np.stack(alone), atol=1e-6)
    np.testing.assert_allclose(small.x, together.x, atol=1e-6)
    np.testing.assert_array_equal(small.iterations, together.iterations)


@pytest.mark.parametrize("estep", ALL, ids=repr)
def test_a_planted_code_is_found(estep):
    phi, x, y = planted(7, 24, 48, 4, count=3)
    found = rsbl.fit(phi, y, sigma2=1e-4, estep=estep, iterations=100)
    error = np.linalg.norm(found.x - x, axis=1) / np.linalg.norm(x, axis=1)
    # Least squares that knows the support is off by sigma sqrt(k) / |x| = 1 %; the sampler moves slowly along atoms
    # that are alike.
    assert np.all(error < (0.3 if estep.stochastic else 0.05)), error
    assert not (estep.stochastic and found.converged.any())
    np.testing.assert_array_equal(found.converged, found.iterations < 100)


def test_one_design_for_many():
    phi, _, _ = planted(8, 12, 20, 3)
    y = phi[0] @ np.random.default_rng(9).uniform(0, 1, (2, 3, 20, 1)) * [[[[1]]]]
    shared = rsbl.fit(phi[0], y[..., 0], sigma2=0.01, iterations=30)
    own = rsbl.fit(np.broadcast_to(phi[0], (2, 3, 12, 20)), y[..., 0], sigma2=0.01, iterations=30, batch=4)
    assert shared.x.shape == (2, 3, 20)
    np.testing.assert_allclose(shared.x, own.x, atol=1e-7)  # rounding


@pytest.mark.parametrize("prior", [Flat(), Laplace(0.02), StudentT(2.0, scale=3.0)], ids=repr)
def test_units_do_not_matter(prior):
    """y in other units, and columns of other lengths: x follows, if the prior is in the units of x."""
    phi, _, y = planted(10, 12, 20, 3)
    base = rsbl.fit(phi[0], 10 * y[0], sigma2=0.01, prior=prior, iterations=25)
    length = np.random.default_rng(11).uniform(0.1, 10, 20) if isinstance(prior, Flat) else np.full(20, 5.0)
    other = {Laplace: Laplace(0.02 * 25), StudentT: StudentT(2.0, scale=0.6)}.get(type(prior), prior)
    found = rsbl.fit(phi[0] * length, 10 * y[0], sigma2=0.01, prior=other, iterations=25)
    np.testing.assert_allclose(found.x * length, base.x, rtol=1e-6, atol=1e-9)  # rounding
    louder = rsbl.fit(phi[0], 1e4 * y[0], sigma2=1e4, iterations=25)
    np.testing.assert_allclose(louder.x / 1e3, rsbl.fit(phi[0], 10 * y[0], sigma2=0.01, iterations=25).x, rtol=1e-6)


def test_the_noise_is_learnt():
    phi, _, y = planted(12, 100, 20, 3, sigma=0.1)
    for estep in (Gaussian(), Diagonal(), AMP()):
        found = rsbl.fit(phi[0], y[0], estep=estep)
        # 80 degrees of freedom are left: a standard error of 16 %.
        assert float(found.sigma2) == pytest.approx(0.01, rel=0.5), estep


def test_a_warm_start_is_quicker():
    phi, _, y = planted(13, 24, 48, 4)
    first = rsbl.fit(phi[0], y[0], sigma2=1e-4)
    again = rsbl.fit(phi[0], y[0], sigma2=1e-4, gamma=first.gamma)
    assert again.iterations < first.iterations / 3
    np.testing.assert_allclose(again.x, first.x, atol=1e-3)


@pytest.mark.parametrize("estep", ALL, ids=repr)
def test_odd_problems_end_as_stated(estep):
    phi, _, y = planted(14, 12, 20, 3)
    phi, y = phi[0].copy(), y[0]
    phi[:, 3] = 0  # dropped
    phi[:, 5] = phi[:, 4]  # told apart by nothing
    found = rsbl.fit(
        phi, [y, np.zeros(12), 1e-9 * y, -phi[:, 0]], sigma2=[1e-4, 1e-4, 1e-22, 1e-4], estep=estep, iterations=30
    )
    assert np.isfinite(found.x).all()
    assert np.all(found.x[:, 3] == 0)
    assert np.all(found.x[1] == 0)
    if not isinstance(estep, Gaussian):
        assert np.all(found.x >= 0)
    if not estep.stochastic:
        np.testing.assert_allclose(found.x[:, 4], found.x[:, 5], atol=1e-9)
        np.testing.assert_allclose(
            found.x[2], 1e-9 * rsbl.fit(phi, y, sigma2=1e-4, estep=estep, iterations=30).x, rtol=1e-5
        )


@pytest.mark.parametrize("estep", EXACT, ids=repr)
def test_ill_conditioned_and_low_rank_designs_stay_finite(estep):
    rng = np.random.default_rng(15)
    u, _, v = np.linalg.svd(rng.standard_normal((12, 20)), full_matrices=False)
    for values in (np.geomspace(1, 1e-9, 12), np.r_[np.ones(4), np.zeros(8)]):
        phi = u * values @ v
        found = rsbl.fit(phi, phi @ np.eye(20)[3], sigma2=1e-8, estep=estep, iterations=60)
        assert np.isfinite(found.x).all()
        assert np.linalg.norm(phi @ found.x - phi[:, 3]) < 0.05 * np.linalg.norm(phi[:, 3])


def test_computing_in_doubles_leaves_the_caller_alone():
    found = rsbl.fit(np.eye(2), [1.0, 2.0], sigma2=0.1)
    assert found.x.dtype == np.float64
    assert jnp.zeros(1).dtype == jnp.float32
    single = rsbl.fit(np.eye(2), [1.0, 2.0], sigma2=0.1, dtype=np.float32)
    assert single.x.dtype == np.float32
    np.testing.assert_allclose(single.x, found.x, rtol=1e-4)


ONE = np.eye(2)
BAD = {
    "phi .* nan|not finite": dict(phi=[[np.nan, 1.0], [0, 1]]),
    "y: 1 of 2": dict(y=[np.inf, 1.0]),
    r"must be \[\.\.\., N, M\]": dict(y=[1.0, 2.0, 3.0]),
    r"shapes \(2,\)": dict(phi=[1.0, 2.0]),
    r"\(2, 0\)": dict(phi=np.zeros((2, 0))),
    "leading axes": dict(phi=np.zeros((3, 2, 2)), y=np.zeros((2, 2))),
    "real numbers": dict(y=[1j, 0]),
    "sigma2: must be above 0": dict(sigma2=0.0),
    "sigma2: has shape": dict(sigma2=[1.0, 2.0, 3.0]),
    "sigma2: 1 of 1": dict(sigma2=np.nan),
    "gamma: must be 0 or more": dict(gamma=[-1.0, 1.0]),
    "gamma: has shape": dict(gamma=[1.0, 1.0, 1.0]),
    "point: is 'median'": dict(point="median"),
    "prune: is 1": dict(prune=1.0),
    "tolerance: is -1": dict(tolerance=-1.0),
    "iterations: is 0": dict(iterations=0),
    "batch: is 0": dict(batch=0),
    "batch: is 2.5": dict(batch=2.5),
    "dtype: is .*float16": dict(dtype=np.float16),
    "dtype: is .*int": dict(dtype=int),
    "estep: is 'diagonal', must be an object": dict(estep="diagonal"),
    "estep: is .*class.*, must be an object": dict(estep=Diagonal),
    r"prior: is 'flat', must be an object of a member, such as Flat\(\)": dict(prior="flat"),
    "sigma2: must be above 0, and above 2e-14": dict(sigma2=1e-16),
    "sigma2: must be above 0, and above 1e-05 of .* float32": dict(sigma2=1e-6, dtype=np.float32),
    "phi: its columns and y are of sizes too far apart": dict(phi=1e200 * np.eye(2)),
    "phi: its columns and y .* float32": dict(phi=1e-25 * np.eye(2), dtype=np.float32),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        rsbl.fit(**{"phi": ONE, "y": [1.0, 2.0], "sigma2": 0.1, **BAD[message]})


@pytest.mark.parametrize(
    "make",
    [
        lambda: MCMC(sweeps=0),
        lambda: MCMC(burn=-1),
        lambda: AMP(damping=1.0),
        lambda: AMP(rounds=0),
        lambda: Laplace(0.0),
        lambda: StudentT(0.0),
        lambda: StudentT(1.0, scale=-1.0),
    ],
)
def test_bad_options_are_named(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_the_tables_name_all_members():
    assert {type(member) for member in ALL} == set(ESTEPS.values())
    assert {type(member) for member in KINDS} == set(PRIORS.values())
    assert all(name == member.__name__.lower() for name, member in itertools.chain(ESTEPS.items(), PRIORS.items()))


@pytest.mark.parametrize("estep", [LMMSE(), MCMC(sweeps=200, burn=10)], ids=repr)
def test_the_residual_counts_the_spread_of_x(doubles, estep):
    phi, y, gamma, sigma2 = np.array([[0.6], [0.8]]), np.array([0.9, 0.7]), np.array([1.5]), 0.3
    found = run(estep, phi, y, gamma, sigma2)
    spread = float(np.sum(found.second - found.mean**2))
    assert spread > 0.05
    left = np.sum((y - phi @ np.asarray(found.mean)) ** 2)
    assert float(found.residual) == pytest.approx(left + spread, rel=1e-6)  # the column has length 1


def test_the_residual_of_amp_is_near_the_samplers(doubles):
    (phi,), _, (y,) = planted(4, 40, 80, 8, sigma=0.2)
    gamma = np.full(80, 0.1)
    sampled = run(MCMC(sweeps=600, burn=50), phi, y, gamma, 0.04)
    passed = run(AMP(rounds=60), phi, y, gamma, 0.04)
    assert float(passed.residual) == pytest.approx(float(sampled.residual), rel=0.2)  # a law of large numbers


@pytest.mark.parametrize("estep", [Diagonal(), LMMSE(), AMP()], ids=repr)
def test_the_mode_is_cut_at_0(estep):
    phi, _, _ = planted(14, 12, 20, 3)
    assert np.all(rsbl.fit(phi[0], -phi[0][:, 0], sigma2=1e-2, estep=estep, point="mode", iterations=3).x >= 0)


def test_the_objective_is_in_the_callers_units():
    phi, _, y = planted(10, 12, 20, 3)
    quiet, loud = (rsbl.fit(phi[0], c * y[0], sigma2=0.01 * c**2, iterations=5).objective for c in (1.0, 1e3))
    assert loud - quiet == pytest.approx(2 * 12 * np.log(1e3), rel=1e-6)  # a density of 12 numbers


def test_a_samplers_late_steps_are_averaged(doubles):
    (phi,), _, (y,) = map(jnp.array, planted(7, 12, 20, 3))
    estep, gamma = MCMC(sweeps=2, burn=0), jnp.full(20, 0.5)
    old = rsbl._Carry(
        x=jnp.ones(20),
        gamma=gamma,
        sigma2=jnp.array(0.01),
        objective=jnp.zeros(()),
        iterations=jnp.array(7),
        status=jnp.array(rsbl.RUNNING),
        state=estep.start(y, gamma),
        key=jax.random.key(0),
    )
    settings, limits = rsbl._Settings(estep, Flat(), True, False), rsbl._Limits(0.0, 0.0, 10, 12)
    new = rsbl._step(settings, limits, phi, y, jnp.ones(20), old)
    found, _ = estep.run(phi, y, gamma, old.sigma2, old.state, jax.random.fold_in(old.key, 7))
    np.testing.assert_allclose(new.x, 1 + (found.mean - 1) / 3, rtol=1e-12)  # 5 and 6 came before
    np.testing.assert_allclose(new.gamma, gamma + (found.second - gamma) / 3, rtol=1e-12)
    np.testing.assert_allclose(new.sigma2, 0.01 + (found.residual / 12 - 0.01) / 3, rtol=1e-12)


def test_atoms_below_the_share_are_dropped():
    phi, _, y = planted(7, 24, 48, 4)
    all_of_them, some = (rsbl.fit(phi[0], y[0], sigma2=1e-4, prune=p, iterations=30).gamma for p in (0.0, 1e-2))
    assert np.all(all_of_them > 0)
    assert 4 <= np.sum(some > 0) < 48
    assert some[some > 0].min() > 1e-2 * some.max()  # columns of length 1


@pytest.mark.parametrize(("y", "dtype"), [([1e200, 2e200], np.float64), ([1e-24, 1e-24], np.float32)])
def test_numbers_whose_squares_leave_the_range_are_refused(y, dtype):
    with pytest.raises(ValueError, match="y: its squares leave the range of float"):
        rsbl.fit(np.eye(2), np.array(y), sigma2=1e-3, dtype=dtype)


@pytest.mark.parametrize(("size", "dtype"), [(1e100, np.float64), (1e-100, np.float64), (1e15, np.float32)])
def test_columns_of_any_size_give_the_same_fit(size, dtype):
    """Squares of columns may leave the range; what is found only follows their size."""
    (phi,), _, (y,) = planted(3, 12, 20, 3)
    options = {"sigma2": 1e-4, "dtype": dtype, "prune": 1e-4}
    one, other = rsbl.fit(phi, y, **options), rsbl.fit(size * phi, y, **options)
    np.testing.assert_allclose(size * other.x, one.x, rtol=1e-3, atol=1e-3)  # steps to converge may differ
    assert np.sum(one.x > 0.1) == 3


@dataclass(frozen=True)
class Breaks(Diagonal):
    """Gives NaN for y that begins above 0, once atoms were dropped."""

    def run(self, phi, y, gamma, sigma2, state, key):
        found, state = super().run(phi, y, gamma, sigma2, state, key)
        return found._replace(mean=jnp.where((y[0] > 0) & (gamma.min() == 0), jnp.nan, found.mean)), state


def test_one_that_diverged_keeps_its_last_finite_x():
    (phi,), _, (y,) = planted(3, 12, 20, 3)
    y = y * np.sign(y[0])
    options = {"sigma2": 1e-4, "estep": Breaks()}
    both = rsbl.fit(phi * np.ones((2, 1, 1)) * np.array([[[1]], [[-1]]]), np.stack([y, -y]), **options)
    assert both.converged.tolist() == [False, True]
    whole = rsbl.fit(phi, y, sigma2=1e-4, iterations=int(both.iterations[0]) + 1)
    before = rsbl.fit(phi, y, sigma2=1e-4, iterations=int(both.iterations[0]))
    np.testing.assert_allclose(both.x[0], before.x, rtol=1e-9, atol=1e-12)
    assert np.any(whole.x != before.x), "it broke on the way"
    assert both.x[0].max() > 0.1
    np.testing.assert_allclose(both.x[1], rsbl.fit(phi, y, sigma2=1e-4).x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estep", [Gaussian(), Diagonal(), AMP(), MCMC(sweeps=4, burn=1)], ids=repr)
@pytest.mark.parametrize("known", [True, False])
def test_tall_problems_are_solved_in_few_rows(estep, known, monkeypatch):
    rng = np.random.default_rng(0)
    phi, x = rng.standard_normal((60, 5)), np.array([0.0, 1.0, 0.0, 2.0, 0.5])
    y = phi @ x + 0.1 * rng.standard_normal(60)
    options = {"estep": estep, "sigma2": 0.01 if known else None, "iterations": 60}
    short = rsbl.fit(phi, y, **options)
    monkeypatch.setattr(rsbl, "_shortened", lambda *given: given)
    whole = rsbl.fit(phi, y, **options)
    loose = 0.02 if estep.stochastic or estep.rotated else 1e-6  # draws and messages are others in other rows
    np.testing.assert_allclose(short.x, whole.x, rtol=loose, atol=loose)
    np.testing.assert_allclose(short.sigma2, whole.sigma2, rtol=max(loose, 1e-6))
    np.testing.assert_allclose(short.objective, whole.objective, rtol=max(loose, 1e-6))


def test_the_lowest_draw_is_finite(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype, minval: jnp.full(shape, minval, dtype))
    means = jnp.linspace(-8, 8, 65, dtype=jnp.float32)
    assert bool(jnp.isfinite(moments.draw(jax.random.key(0), means, jnp.ones_like(means))).all())


def test_learning_the_noise_of_plain_sbl_raises_the_evidence(doubles):
    """EM over gamma and sigma2 together, where the E-step is exact: the explicit -2 log p(y) never rises."""
    (phi,), _, (y,) = planted(5, 10, 16, 3, sigma=0.3)
    before = np.inf
    for count in range(1, 30):
        found = rsbl.fit(phi, y, estep=Gaussian(), iterations=count, prune=0.0, tolerance=0.0)
        s = found.sigma2 * np.eye(10) + (phi * found.gamma) @ phi.T
        cost = np.linalg.slogdet(s)[1] + y @ np.linalg.solve(s, y)
        assert cost <= before + 1e-9
        before = cost


def test_no_problems_are_refused():
    with pytest.raises(ValueError, match="phi"):
        rsbl.fit(np.eye(2), np.zeros((0, 2)), sigma2=1e-3)
