"""Warm starts: a trained dense matrix, or a whole trained denoiser, in another structure.

What is lost is what the singular values say that were left out: of the matrix (low rank), or of the matrix rearranged
so that a Kronecker product is of rank one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnnc.model import Model
from rnnc.steps import Core
from rnnc.structure import Dense, Hybrid, Joint, Kron, LowRank, Structure

Array = np.ndarray
Params = dict[Any, Any]
CHANGES = ("kernel", "recurrent", "skip", "formats")  # of a model, that `start` can make


def project(structure: Structure, w: Array, gates: int = 1) -> dict[str, Array]:
    """Weights of a structure whose matrix is near a given one.

    Nearest in the Frobenius norm for `LowRank` (singular value decomposition) and `Kron` (that of the rearranged
    matrix). `Hybrid` takes its free outputs as they are and the nearest `Kron` for the others: order the outputs by
    `by_energy` first.

    Args:
      structure: what to make.
      w: [n, m], finite.
      gates: gates side by side in it.

    >>> w = np.kron(np.arange(1.0, 7).reshape(2, 3), np.ones((4, 2))).T
    >>> near = project(Kron(shape_a=(2, 3), shape_b=(4, 2)), w)
    >>> bool(np.allclose(Kron().dense(near), w, atol=1e-5))
    True

    Source: section 2.4 of our survey; the rearrangement of Van Loan and Pitsianis 1993.
    """
    w = np.asarray(w, np.float64)
    if isinstance(structure, Dense):
        return {"w": w.astype(np.float32)}
    assert isinstance(structure, LowRank | Kron | Hybrid)
    blocks = np.split(w, 1 if structure.stacked else gates, axis=1)
    if isinstance(structure, LowRank):
        parts = [_low_rank(block, structure.rank_of(w.shape, gates)) for block in blocks]
    elif isinstance(structure, Kron):
        parts = [_kron(block, structure) for block in blocks]
    else:
        rows = structure.rows_of(w.shape, gates)
        parts = [{"top": block[:, :rows], **_kron(block[:, rows:], structure.rest)} for block in blocks]
    return {name: np.stack([part[name] for part in parts]).astype(np.float32) for name in parts[0]}


def _low_rank(w: Array, rank: int) -> dict[str, Array]:
    u, s, v = np.linalg.svd(w, full_matrices=False)
    root = np.sqrt(s[:rank])
    return {"u": u[:, :rank] * root, "v": root[:, None] * v[:rank]}


def _kron(w: Array, structure: Kron) -> dict[str, Array]:
    (m1, n1), (m2, n2) = structure.factors((w.shape[0], w.shape[1]))
    rearranged = w.T.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3).reshape(m1 * n1, m2 * n2)
    terms = _low_rank(rearranged, min(structure.terms, *rearranged.shape))
    a, b = terms["u"].T.reshape(-1, m1, n1), terms["v"].reshape(-1, m2, n2)
    spare = structure.terms - len(a)  # more terms than the matrix has ranks: zeros
    return {"a": np.pad(a, ((0, spare), (0, 0), (0, 0))), "b": np.pad(b, ((0, spare), (0, 0), (0, 0)))}


def by_energy(matrices: Sequence[Array], gates: int) -> Array:
    """The units of a cell by the energy of their weights, the largest first: a permutation [m].

    Args:
      matrices: [n, gates m] each; a unit owns one column per gate in all of them.
      gates: gates side by side.

    >>> by_energy([np.array([[1.0, 3.0, 2.0]])], 1).tolist()
    [1, 2, 0]
    """
    energy = sum(np.sum(np.square(w), axis=0).reshape(gates, -1).sum(axis=0) for w in matrices)
    return np.argsort(-energy, kind="stable")


def start(params: Params, source: Model, target: Model, fresh: Params) -> Params:
    """Parameters of a model of other structures that begins where a trained one stands.

    A matrix whose structure stays is taken as it is; others are projected. Where a `Hybrid` comes in, the units of
    the layer are put in order of their energy first, which changes nothing in what the model computes.

    Args:
      params: parameters of the trained model, a nested dict as from `nnx.to_pure_dict`.
      source, target: the models; they may differ in `kernel`, `recurrent`, `formats` and in that the target skips.
      fresh: parameters of the target as drawn; of them the gate of a skipping stack is kept.

    Raises:
      ValueError: the models differ otherwise.
    """
    same = {name: getattr(target, name) for name in CHANGES}
    for field in dataclasses.fields(Model):
        if getattr(dataclasses.replace(source, **same), field.name) != getattr(target, field.name):
            raise ValueError(
                f"start: {field.name} is {getattr(source, field.name)} in the trained model and "
                f"{getattr(target, field.name)} in the new one; only {', '.join(CHANGES)} may differ"
            )
    if source.skip and not target.skip:
        raise ValueError("start: the trained model skips, the new one must too")
    cells = [{**cell} for cell in _cells(params, source)]
    dense = {**params["dense"]}
    readers = [*cells[1:], dense]
    for cell, reader, (old, _, _), (new, _, _) in zip(cells, readers, source.cores(), target.cores()):
        _convert(cell, reader, old, new)
    whole = {**params, "dense": dense}
    if not target.skip:
        return {**whole, "layers": {k: {"cell": cell} for k, cell in enumerate(cells)}}
    gate = (params if source.skip else fresh)["layers"][0]["cell"]["gate"]
    return {**whole, "layers": {0: {"cell": {"cells": dict(enumerate(cells)), "gate": gate}}}}


def _cells(params: Params, model: Model) -> list[Params]:
    """The parameters of each recurrent cell, the lowest first."""
    if model.skip:
        return list(params["layers"][0]["cell"]["cells"].values())
    return [layer["cell"] for layer in params["layers"].values()]


def _convert(cell: Params, reader: Params, old: Core, new: Core) -> None:
    """Give a cell's matrices the new structures, in place; `reader` is the layer that its outputs go to."""
    if (old.kernel, old.recurrent) == (new.kernel, new.recurrent):
        return
    gates = new.step.gates
    w, u = (np.asarray(a, np.float64) for a in old.matrices(cell))
    if any(isinstance(s, Hybrid) and s != o for s, o in ((new.kernel, old.kernel), (new.recurrent, old.recurrent))):
        order = by_energy([w, u], gates)
        columns = np.concatenate([order + g * order.size for g in range(gates)])
        w, u = w[:, columns], u[:, columns][order]
        for name in ("bias", "recurrent_bias"):
            if name in cell:
                cell[name] = np.asarray(cell[name])[columns]
        _reorder(reader, order)
    if isinstance(new.recurrent, Joint):
        cell.pop("recurrent", None)
        cell["kernel"] = project(new.kernel, np.concatenate([w, u]), gates)
        return
    cell["kernel"] = project(new.kernel, w, gates)
    cell["recurrent"] = project(new.recurrent, u, gates)


def _reorder(reader: Params, order: Array) -> None:
    """Put the inputs of a layer in another order, in place."""
    kernel = reader["kernel"]
    if not isinstance(kernel, dict):  # the dense layer's
        reader["kernel"] = np.asarray(kernel)[order]
        return
    if "w" not in kernel:
        raise ValueError("start: a Hybrid can follow only dense matrices: its units must be put in order of energy")
    w = np.asarray(kernel["w"])
    reader["kernel"] = {"w": np.concatenate([w[: order.size][order], w[order.size :]])}
