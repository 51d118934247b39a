"""Laws of pruning in place: by magnitude and by affine scaling, over every structure's parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from members import M, N, assert_close, assert_equal, normal, quick

from rnnc.compress.affine import Affine
from rnnc.compress.prune import Magnitude, Pruner, largest, matched, named, support
from rnnc.structure import Dense, Kron, LowRank
from rnnc.train import checkpoint

END = 9
ONLY = ("*.kernel.*",)
METHODS = (
    ("magnitude", Magnitude(sparsity=0.7, begin=1, end=END, every=3, only=ONLY)),
    ("magnitude-all", Magnitude(sparsity=0.7, end=END, every=1, scope="all", only=("*",))),
    ("affine", Affine(weight=0.01, every=2, end=END, threshold=0.3, only=ONLY)),
    ("affine-unit", Affine(p=0.5, weight=0.01, every=4, end=END, sparsity=0.5, group="unit", only=ONLY)),
)
each_method = pytest.mark.parametrize("method", [m for _, m in METHODS], ids=[name for name, _ in METHODS])


@pytest.fixture(scope="module")
def params() -> Any:
    """The input matrix of a GRU in structures of two, three and four axes, and a bias."""
    init, key, shape = nnx.initializers.normal(), jax.random.key(0), (N, 3 * M)
    tree = {
        type(s).__name__: {"kernel": jax.eval_shape(lambda s=s: s.init(key, shape, init, jnp.float32, 3))}
        for s in (Dense(), LowRank(rank=3), Kron())
    }
    leaves, structure = jax.tree.flatten({"bias": jax.ShapeDtypeStruct((M,), jnp.float32), **tree})
    return jax.tree.unflatten(structure, [0.4 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def _adam(rate: Any) -> optax.GradientTransformation:
    """Optax's, in the promotion of types that it needs; what is around it stays strict."""
    tx = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(rate))

    def update(*args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return tx.update(*args)

    return optax.GradientTransformation(tx.init, update)


def _gradients(params: Any, step: jax.Array) -> Any:
    """Those of a quadratic whose least point moves about."""

    def one(w: jax.Array) -> jax.Array:
        return w - 0.3 * jnp.sin(jnp.arange(w.size, dtype=w.dtype).reshape(w.shape) + step.astype(w.dtype))

    return jax.tree.map(one, params)


@functools.cache
def _training(method: Pruner) -> tuple[Any, Any]:
    """params -> state, and (params, state, step) -> the next of both."""
    tx = method.wrap(_adam(0.02))

    def advance(params: Any, state: Any, step: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(_gradients(params, step), state, params)
        return optax.apply_updates(params, updates), state

    return quick(tx.init), advance


@functools.cache
def _compiled(method: Pruner) -> Any:
    return quick(_training(method)[1])


def _run(advance: Any, params: Any, state: Any, first: int, last: int) -> tuple[Any, Any]:
    for step in range(first, last):
        params, state = advance(params, state, jnp.array(step))
    return params, state


# --- all methods, on every structure's parameters -----------------------------------------------------------


@each_method
def test_what_is_dropped_stays_zero_and_the_rest_learns(method, params):
    advance = _compiled(method)
    pruned, state = _run(advance, params, _training(method)[0](params), 0, END)
    later, _ = _run(advance, pruned, state, END, END + 4)
    chosen = matched(params, method.only)
    for path, before in named(pruned).items():
        zero = np.asarray(before) == 0
        np.testing.assert_array_equal(np.asarray(named(later)[path]) == 0, zero)
        assert path in chosen or not zero.any()
        assert not (np.asarray(named(later)[path]) == np.asarray(before))[~zero].any()
        assert not zero.all()
    dropped = sum(leaf.size - np.count_nonzero(leaf) for leaf in named(pruned).values())
    assert dropped > 0.2 * sum(leaf.size for leaf in chosen.values())


@each_method
def test_a_run_that_was_stopped_ends_with_the_same_bits(method, params, tmp_path):
    init, advance = _training(method)[0], _compiled(method)
    start = init(params)
    whole = _run(advance, params, start, 0, 2 * END)
    for stop in (4, END):
        checkpoint.save(tmp_path / str(stop), stop, _run(advance, params, start, 0, stop))
        found = checkpoint.restore(tmp_path / str(stop), (params, start))
        assert found
        assert_equal(_run(advance, *found[1], stop, 2 * END), whole)


@each_method
def test_seeds_side_by_side_sharded_and_donated(method, params):
    """Each run gives what it gives alone, to the rounding of another fusion."""
    trees = [params, jax.tree.map(lambda leaf: 0.5 * leaf[::-1], params)]
    init, advance = _training(method)
    mesh, seed = Mesh(np.array(jax.devices()[:2]), ("seed",)), PartitionSpec("seed")
    spread = jax.shard_map(
        jax.vmap(advance, (0, 0, None)),
        mesh=mesh,
        in_specs=(seed, seed, PartitionSpec()),
        out_specs=seed,
        check_vma=False,
    )
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(init, trees))
    found, _ = _run(quick(spread, donate_argnums=(0, 1)), stacked, state, 0, END + 2)
    for i, tree in enumerate(trees):
        alone, _ = _run(_compiled(method), tree, init(tree), 0, END + 2)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], found), alone, 1e-6)


@each_method
def test_in_place(method, params):
    """What is trained is what the model sees and what is stored; the penalty is in the step."""
    assert method.attach(params, None) is params
    assert method.apply(params) is params
    assert method.finish(params, None) == (None, params)
    assert float(method.penalty(params)) == 0.0


@each_method
def test_an_update_without_parameters_is_refused(method):
    params, tx = {"a": {"kernel": {"w": jnp.ones((2, 2))}}}, method.wrap(optax.sgd(0.1))
    with pytest.raises(ValueError, match="params is None, must be the parameters"):
        tx.update(params, tx.init(params))


# --- magnitude ----------------------------------------------------------------------------------------------


def _still(method: Pruner, params: Any, steps: int) -> list[Any]:
    """The parameters after each step of a run whose weights do not learn."""
    tx, found = method.wrap(optax.sgd(0.0)), []
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    update = quick(tx.update)
    for _ in range(steps):
        updates, state = update(zeros, state, params)
        params = optax.apply_updates(params, updates)
        found.append(params)
    return found


def _dropped(w: Any, count: int) -> np.ndarray:
    """numpy's choice: the `count` smallest magnitudes, of equal ones the first."""
    keep = np.ones(np.size(w), bool)
    keep[np.argsort(np.abs(np.ravel(w)), kind="stable")[:count]] = False
    return np.asarray(w) * keep.reshape(np.shape(w))


@pytest.mark.parametrize(
    ("sparsity", "begin", "end", "every"), [(0.0, 0, 4, 1), (0.31, 0, 10, 1), (0.9, 3, 17, 4), (0.6, 5, 12, 20)]
)
def test_the_ramp_is_cubic_and_drops_the_smallest(sparsity, begin, end, every):
    w = np.asarray(normal(0, 10, 101))
    found = _still(Magnitude(sparsity=sparsity, begin=begin, end=end, every=every, only=("w",)), {"w": w}, end + 3)
    count = 0
    for step, params in enumerate(found, 1):
        if begin <= step <= end and ((step - begin) % every == 0 or step == end):
            t = (step - begin) / (end - begin)
            count = round((sparsity - sparsity * (1 - t) ** 3) * w.size)
        np.testing.assert_array_equal(params["w"], _dropped(w, count), err_msg=f"step {step}")
    assert count == round(sparsity * w.size)


def test_one_threshold_for_all_leaves():
    params = {"a": normal(0, 6, 5), "b": 3 * normal(1, 4, 4)}
    (found,) = _still(Magnitude(sparsity=0.5, end=1, scope="all", only=("*",)), params, 1)
    together = _dropped(np.concatenate([np.ravel(params["a"]), np.ravel(params["b"])]), 23)
    np.testing.assert_array_equal(np.concatenate([np.ravel(found["a"]), np.ravel(found["b"])]), together)


def test_of_equal_weights_the_first_go():
    (found,) = _still(Magnitude(sparsity=0.5, end=1, only=("*",)), {"w": jnp.ones((2, 5))}, 1)
    assert found["w"].tolist() == [[0.0] * 5, [1.0] * 5]


@pytest.mark.parametrize(("block", "shape"), [((4, 1), (8, 12)), ((1, 4), (3, 4, 12)), ((2, 3), (3, 4, 12))])
def test_blocks_go_whole_and_by_their_norms(block, shape):
    w = np.asarray(normal(2, *shape))
    (found,) = _still(Magnitude(sparsity=0.4, end=1, block=block, only=("w",)), {"w": w}, 1)
    tiles = w.reshape(-1, shape[-2] // block[0], block[0], shape[-1] // block[1], block[1])
    norms = np.sqrt((tiles.astype(np.float64) ** 2).sum((2, 4)))
    keep = _dropped(norms, round(0.4 * norms.size)) > 0
    np.testing.assert_array_equal(found["w"], (tiles * keep[:, :, None, :, None]).reshape(shape))


def test_a_block_of_inputs_belongs_to_one_output():
    (found,) = _still(
        Magnitude(sparsity=0.5, end=1, block=(2, 1), only=("w",)), {"w": jnp.array([[1.0, 9], [2, 9]])}, 1
    )
    assert found["w"].tolist() == [[0.0, 9.0], [0.0, 9.0]]


def test_a_dropped_weight_comes_back_before_the_end_only():
    params = {"w": jnp.array([1.0, 2.0, 3.0, 4.0])}
    tx = Magnitude(sparsity=0.5, end=4, every=1, only=("w",)).wrap(optax.sgd(1.0))
    state, seen = tx.init(params), []
    update = quick(tx.update)
    for step in range(6):
        pull = {"w": jnp.array([-9.0 * (step == 2), -9.0 * (step == 4), 0.0, 0.0])}
        updates, state = update(pull, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params["w"].tolist())
    assert seen[1] == [0.0, 0.0, 3.0, 4.0]
    assert seen[3] == [9.0, 0.0, 0.0, 4.0]
    assert seen[5] == [9.0, 0.0, 0.0, 4.0]


@pytest.mark.parametrize("drop", [0, 1, 3, 7, 8])
def test_largest_against_sorting(drop):
    scores = {"a": jnp.array([3.0, 1.0, 1.0, 0.0]), "b": jnp.array([[1.0, 2.0], [0.0, 5.0]])}
    kept = largest(scores, jnp.array(drop))
    flat = np.concatenate([np.ravel(s) for s in scores.values()])
    wanted = np.ones(8, bool)
    wanted[np.argsort(flat, kind="stable")[:drop]] = False
    np.testing.assert_array_equal(np.concatenate([np.ravel(k) for k in kept.values()]), wanted)


# --- affine scaling -----------------------------------------------------------------------------------------


def _focuss(a: np.ndarray, y: np.ndarray, w: np.ndarray, p: float, weight: float, rounds: int) -> np.ndarray:
    """The textbook's iteration in its dual form: w <- S (A S)^T ((A S)(A S)^T + weight I)^-1 y."""
    for _ in range(rounds):
        scaled = a * np.abs(w) ** (1 - p / 2)
        dual = np.linalg.solve(scaled @ scaled.T + weight * np.eye(len(y)), y)
        w = np.abs(w) ** (1 - p / 2) * (scaled.T @ dual)
    return w


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_linear_model_gives_focuss(p):
    """Each round is solved by 3000 steps that each shrink the error by 1 - 2 rate weight = 0.995: to float32."""
    weight, rounds, steps, rng = 0.1, 5, 3000, np.random.default_rng(0)
    a = rng.standard_normal((8, 20)) / np.sqrt(8)
    y = a @ np.where(np.arange(20) % 7 == 0, 2.0, 0.0)
    start = np.linalg.lstsq(a, y, rcond=None)[0]
    tx = Affine(p=p, weight=weight, every=steps, end=10**6, only=("w",)).wrap(optax.sgd(0.025))
    matrix, wanted = jnp.asarray(a, jnp.float32), jnp.asarray(y, jnp.float32)

    def step(state: Any, _: None) -> tuple[Any, None]:
        params, opt = state
        gradient = {"w": 2 * ((matrix @ params["w"] - wanted) @ matrix)}
        updates, opt = tx.update(gradient, opt, params)
        return (optax.apply_updates(params, updates), opt), None

    params = {"w": jnp.asarray(start, jnp.float32)}
    (found, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, None, rounds * steps))((params, tx.init(params)))
    reference = _focuss(a, y, start, p, weight, rounds)
    np.testing.assert_allclose(found["w"], reference, rtol=0, atol=2e-5 * np.abs(reference).max())
    assert np.sum(np.abs(reference) < 1e-3) > 5  # it does find zeros


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_objective_falls_within_a_round(p):
    weight, w = 0.05, normal(0, 12)
    scale, root = np.abs(np.asarray(w)) ** (1 - p / 2), np.asarray(normal(1, 12, 12)) / 4
    tx = Affine(p=p, weight=weight, every=100, only=("w",)).wrap(optax.sgd(0.05))
    params, values = {"w": w}, []
    state, update = tx.init(params), quick(tx.update)
    for _ in range(30):
        x = np.asarray(params["w"], np.float64)
        values.append(np.sum((root @ (x - 1)) ** 2) + weight * np.sum((x / scale) ** 2))
        gradient = {"w": jnp.asarray(2 * root.T @ (root @ (x - 1)), jnp.float32)}
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert (np.diff(values) < 0).all()


def test_p_two_is_weight_decay():
    """To the last place: the two compute the same in another order."""
    params = {"bias": normal(0, 3), "kernel": {"w": normal(1, 3, 4)}}
    decay = optax.masked(optax.add_decayed_weights(2 * 0.01), lambda tree: {k: k == "kernel" for k in tree})
    ours = Affine(p=2.0, weight=0.01, every=10**6, end=10**6, only=("kernel.*",)).wrap(optax.sgd(0.1, momentum=0.9))
    theirs = optax.chain(decay, optax.sgd(0.1, momentum=0.9))
    results = []
    for tx in (ours, theirs):
        w, state, update = params, tx.init(params), quick(tx.update)
        for step in range(6):
            updates, state = update(_gradients(w, jnp.array(step)), state, w)
            w = optax.apply_updates(w, updates)
        results.append(w)
    assert_close(*results, 1e-6)


@pytest.mark.parametrize("p", [0.0, 1.9])
def test_zero_stays_zero(p):
    params = {"w": jnp.array([0.0, 1e-30, -0.5])}
    tx = Affine(p=p, every=2, only=("w",)).wrap(_adam(0.1))
    state, update = tx.init(params), quick(tx.update)
    for _ in range(5):
        updates, state = update({"w": jnp.ones(3)}, state, params)
        params = optax.apply_updates(params, updates)
    assert params["w"][0] == 0.0
    assert params["w"][2] != -0.5
    if p == 0:
        assert params["w"][1] == 0.0  # its scale, 1e-30, is below the smallest


def test_a_round_renews_the_optimiser_but_not_its_schedule():
    params = {"w": normal(0, 4)}
    inner = _adam(optax.linear_schedule(0.1, 0.0, 100))
    tx = Affine(every=5, end=12, only=("w",)).wrap(inner)
    state, counts, update = tx.init(params), [], quick(tx.update)
    for _ in range(14):
        updates, state = update({"w": jnp.ones(4)}, state, params)
        params = optax.apply_updates(params, updates)
        counts.append((int(state.inner[1][0].count), int(state.inner[1][1].count)))
    assert [adam for adam, _ in counts] == [1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 0, 1, 2]
    assert [schedule for _, schedule in counts] == list(range(1, 15))


def test_affine_scaling_begins_when_it_is_told_to():
    """Up to `begin` the steps are the optimiser's own; after it, those of a training that begins there."""
    start, slope = {"w": jnp.array([1.0, -0.3, 0.02])}, {"w": jnp.array([0.2, 0.1, -0.1])}
    options = {"weight": 0.1, "every": 2, "only": ("w",)}
    plain, late = optax.sgd(0.1), Affine(begin=3, end=9, **options).wrap(optax.sgd(0.1))
    early = Affine(end=6, **options).wrap(optax.sgd(0.1))
    ours, theirs, state, inner, fresh = start, start, late.init(start), plain.init(start), None
    for step in range(9):
        updates, state = late.update(slope, state, ours)
        if step < 3:
            wanted, inner = plain.update(slope, inner, theirs)
        else:
            wanted, fresh = early.update(slope, fresh or early.init(theirs), theirs)
        ours, theirs = optax.apply_updates(ours, updates), optax.apply_updates(theirs, wanted)
        np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-6, err_msg=f"step {step}")


def test_the_drop_is_by_share_of_the_largest_of_each_leaf():
    params = {"a": normal(0, 30), "b": 10 * normal(1, 5, 6)}
    (found,) = _still(Affine(weight=0.0, end=1, threshold=0.4, only=("*",)), params, 1)
    for name, w in params.items():
        kept = np.abs(w) >= 0.4 * np.abs(w).max()
        np.testing.assert_array_equal(found[name], np.where(kept, w, 0))


@pytest.mark.parametrize(("group", "axis"), [("unit", -2), ("input", -1)])
def test_groups_are_dropped_whole_in_exactly_the_share(group, axis):
    params = {"a": normal(0, 6, 10), "b": 2 * normal(1, 3, 10)}
    (found,) = _still(Affine(weight=0.0, end=1, sparsity=0.4, group=group, only=("*",)), params, 1)
    sizes = np.concatenate([np.sqrt(np.mean(np.square(w), axis=axis)) for w in params.values()])
    kept = np.split(_dropped(sizes, round(0.4 * sizes.size)) > 0, [params["a"].shape[1 if axis == -2 else 0]])
    for (name, w), keep in zip(params.items(), kept):
        np.testing.assert_array_equal(found[name], np.where(np.expand_dims(keep, axis), w, 0))


def test_an_exact_share_of_all_leaves(params):
    (found,) = _still(Affine(end=1, sparsity=0.83, only=ONLY), params, 1)
    kept = support(found, ONLY)
    weights = sum(mask.size for mask in kept.values())
    assert sum(int(np.sum(~np.asarray(mask))) for mask in kept.values()) == round(0.83 * weights)


# --- errors -------------------------------------------------------------------------------------------------


@each_method
def test_a_pattern_that_meets_nothing_names_the_nearest(method):
    tx = type(method)(only=("*.kernal.w",)).wrap(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"'\*\.kernal\.w' meets no leaf\. Nearest path: 'kernel\.w'\. Paths: .*bias"):
        tx.init({"bias": jnp.ones(3), "kernel": {"w": jnp.ones((2, 3))}})


def test_a_pattern_holds_at_any_depth():
    tree = {"w": 1, "layers": {0: {"cell": {"kernel": {"w": 2}}}}}
    assert matched(tree, ("*.kernel.w",)) == {"layers.0.cell.kernel.w": 2}
    assert matched(tree, ("*.w",)) == {"layers.0.cell.kernel.w": 2, "w": 1}


@pytest.mark.parametrize(("block", "shape"), [((4, 1), (6, 8)), ((1, 3), (6, 8)), ((2, 1), (8,))])
def test_a_block_that_does_not_divide(block, shape):
    tx = Magnitude(block=block, only=("u.w",)).wrap(optax.sgd(0.1))
    with pytest.raises(ValueError, match=rf"block is \({block[0]}, {block[1]}\), but u\.w is \[{shape[0]}"):
        tx.init({"u": {"w": jnp.ones(shape)}})


def test_groups_need_rows_and_columns():
    with pytest.raises(ValueError, match=r"group is 'unit', but bias is \[3\]; needs two axes"):
        Affine(group="unit", only=("bias",)).wrap(optax.sgd(0.1)).init({"bias": jnp.ones(3)})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Magnitude(sparsity=1.0), "sparsity: is 1.0"),
        (lambda: Magnitude(begin=5, end=5), "begin: is 5"),
        (lambda: Magnitude(every=0), "every: is 0"),
        (lambda: Magnitude(block=(0, 1)), "block: is"),
        (lambda: Affine(p=2.5), "p: is 2.5"),
        (lambda: Affine(weight=-1.0), "weight: is -1.0"),
        (lambda: Affine(end=0), "end: is 0"),
        (lambda: Affine(begin=5, end=5), "begin: is 5"),
        (lambda: Affine(threshold=1.0), "threshold: is 1.0"),
        (lambda: Affine(sparsity=-0.1), "sparsity: is -0.1"),
    ],
)
def test_ranges(make, name):
    with pytest.raises(ValueError, match=rf"^{name}.*must be"):
        make()
