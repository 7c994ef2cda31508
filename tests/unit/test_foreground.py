"""The foreground mask that losses get: a plain tensor in everything that is done with it, but for its syncs."""

from __future__ import annotations

import copy
import io
import operator
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xpu_simulator
from yolo_xpu_trainer.policies import foreground
from yolo_xpu_trainer.policies.foreground import mask as masks
from yolo_xpu_trainer.run import Stash

Operation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Any]

# What is done with a mask `m`, with values of its shape and one more, `a`, and another mask of its shape, `o`.
READS: dict[str, Operation] = {
    "a[m]": lambda m, a, o: a[m],
    "a[m, 0]": lambda m, a, o: a[m, 0],
    "a[m, None]": lambda m, a, o: a[m, None],
    "a[m, ...]": lambda m, a, o: a[m, ...],
    "a[..., m]": lambda m, a, o: a[..., m],
    "a[None, m]": lambda m, a, o: a[None, m],
    "a[:, m]": lambda m, a, o: a[:, m],
    "a[:, m[0]]": lambda m, a, o: a[:, m[0]],
    "a[0, m[0]]": lambda m, a, o: a[0, m[0]],
    "a[0][m[0]]": lambda m, a, o: a[0][m[0]],
    "a[m[0], m[:, 0]]": lambda m, a, o: a[m[0], m[:, 0]],
    "a[m[-1]]": lambda m, a, o: a[m[-1]],
    "a[m[:1]]": lambda m, a, o: a[m[:1]],
    "a[m.T]": lambda m, a, o: a[m.T],
    "a[(m,)]": lambda m, a, o: a[(m,)],
    "a[~m]": lambda m, a, o: a[~m],
    "a[m & o]": lambda m, a, o: a[m & o],
    "a[o]": lambda m, a, o: a[o],
    "a.cpu()[m]": lambda m, a, o: a.cpu()[m],
    "a[m.cpu()]": lambda m, a, o: a[m.cpu()],
    "a.mT[m]": lambda m, a, o: a.mT[m],
    "m[m]": lambda m, a, o: m[m],
    "m[o]": lambda m, a, o: m[o],
    "m[0]": lambda m, a, o: m[0],
    "m[99]": lambda m, a, o: m[99],
    "m[True]": lambda m, a, o: m[True],
    "m[0:2]": lambda m, a, o: m[0:2],
    "rows": lambda m, a, o: [a[i][row] for i, row in enumerate(m)],
    "rows with any": lambda m, a, o: [bool(row.any()) for row in m],
    "unbind": lambda m, a, o: m.unbind(),
    "unbind(1)": lambda m, a, o: m.unbind(1),
    "unbind(dim=-1)": lambda m, a, o: torch.unbind(m, dim=-1),
    "bool(any)": lambda m, a, o: bool(m.any()),
    "any": lambda m, a, o: m.any(),
    "any(1)": lambda m, a, o: m.any(1),
    "any(dim=0, keepdim)": lambda m, a, o: torch.any(m, dim=0, keepdim=True),
    "any(9)": lambda m, a, o: m.any(9),
    "all": lambda m, a, o: m.all(),
    "sum": lambda m, a, o: m.sum(),
    "torch.sum(input=)": lambda m, a, o: torch.sum(input=m),
    "sum(dim)": lambda m, a, o: m.sum(dim=1),
    "sum(-1, keepdim)": lambda m, a, o: m.sum(-1, keepdim=True),
    "sum(dtype)": lambda m, a, o: torch.sum(m, dtype=torch.float32),
    "sum(nonsense)": lambda m, a, o: m.sum(nonsense=1),
    "int(sum)": lambda m, a, o: int(m.sum()),
    "float(sum)": lambda m, a, o: float(m.sum()),
    "sum.item": lambda m, a, o: m.sum().item(),
    "any.item": lambda m, a, o: m.any().item(),
    "sum.tolist": lambda m, a, o: m.sum().tolist(),
    "range(sum)": lambda m, a, o: list(range(m.sum())),
    "[...][sum]": lambda m, a, o: list(range(99))[m.sum()],
    "sum > 3": lambda m, a, o: m.sum() > 3,
    "7 / sum": lambda m, a, o: 7 / m.sum(),
    "sum + sum": lambda m, a, o: m.sum() + m.sum(),
    "a / sum": lambda m, a, o: a.sum() / m.sum(),
    "max(sum, 1)": lambda m, a, o: max(m.sum(), 1),
    "sum in []": lambda m, a, o: m.sum() in [1, 2, 3],
    "sum clamp": lambda m, a, o: m.sum().clamp(min=5),
    "changed sum": lambda m, a, o: int(m.sum().add_(1)),
    "changed any": lambda m, a, o: bool(m.any().logical_not_()),
    "nonzero": lambda m, a, o: m.nonzero(),
    "nonzero(as_tuple)": lambda m, a, o: m.nonzero(as_tuple=True),
    "nonzero(as_tuple=False)": lambda m, a, o: torch.nonzero(m, as_tuple=False),
    "changed positions": lambda m, a, o: [p.add_(1) for p in m.nonzero(as_tuple=True)] and a[m],
    "argwhere": lambda m, a, o: torch.argwhere(m),
    "where": lambda m, a, o: torch.where(m),
    "where(m, a, b)": lambda m, a, o: torch.where(m[..., None], a, -a),
    "a.where": lambda m, a, o: a.where(m[..., None], 0.0),
    "masked_select": lambda m, a, o: a.masked_select(m[..., None]),
    "masked_fill": lambda m, a, o: a.masked_fill(m[..., None], 9),
    "count_nonzero": lambda m, a, o: m.count_nonzero(),
    "bool": lambda m, a, o: bool(m),
    "int": lambda m, a, o: int(m),
    "len": lambda m, a, o: len(m),
    "in": lambda m, a, o: True in m,
    "tolist": lambda m, a, o: m.tolist(),
    "numpy": lambda m, a, o: m.numpy(),
    "cpu numpy": lambda m, a, o: m.cpu().numpy().tolist(),
    "repr": lambda m, a, o: [repr(m), str(m), f"{m}", repr(m[0]), f"{m.sum():d}", str(m.any())],
    "~": lambda m, a, o: ~m,
    "-": lambda m, a, o: -m,
    "m - m": lambda m, a, o: m - m,
    "m + 1": lambda m, a, o: m + 1,
    "m * a": lambda m, a, o: m[..., None] * a,
    "^": lambda m, a, o: m ^ o,
    "==": lambda m, a, o: m == o,
    "m < a": lambda m, a, o: m < a,
    "equal": lambda m, a, o: torch.equal(m, m),
    "float": lambda m, a, o: m.float(),
    "to": lambda m, a, o: m.to(torch.float16),
    "to the host": lambda m, a, o: m.to("cpu"),
    "view": lambda m, a, o: a.view(-1, 3)[m.view(-1)],
    "reshape": lambda m, a, o: m.reshape(-1),
    "transposed": lambda m, a, o: m.T,
    "unsqueeze": lambda m, a, o: m.unsqueeze(-1).expand(-1, -1, 3),
    "detach": lambda m, a, o: a[m.detach()],
    "clone": lambda m, a, o: m.clone(),
    "stack": lambda m, a, o: torch.stack([m, o]),
    "cat": lambda m, a, o: torch.cat([m, m], 1),
    "split": lambda m, a, o: m.split(1),
    "max": lambda m, a, o: m.max(1),
    "argmax": lambda m, a, o: m.argmax(),
    "cumsum": lambda m, a, o: m.cumsum(1),
    "zeros_like": lambda m, a, o: torch.zeros_like(m, dtype=torch.float32),
    "new_zeros": lambda m, a, o: m.new_zeros(3),
    "new_tensor": lambda m, a, o: m.new_tensor([1.0]),
    "data": lambda m, a, o: m.data,
    "requires_grad_": lambda m, a, o: m.requires_grad_(),
    "parameter": lambda m, a, o: torch.nn.Parameter(m, requires_grad=False).sum(),
    "copy": lambda m, a, o: [copy.copy(m), copy.copy(m.sum())],
    "deepcopy": lambda m, a, o: copy.deepcopy([m, m[0], m.sum()]),
    "pickle": lambda m, a, o: pickle.loads(pickle.dumps([m, m[0], m.any()])),
    "save": lambda m, a, o: saved([m, m.sum()]),
    "vmap": lambda m, a, o: torch.vmap(lambda row, value: row[:, None] * value)(m, a),
    "vmap of values": lambda m, a, o: torch.vmap(lambda value: value[m])(a[None]),
    "grad": lambda m, a, o: torch.func.grad(lambda value: (value[m] ** 2).sum())(a),
    "script": lambda m, a, o: a.index_select(0, m.any(1).nonzero()[:, 0]),
    "backward": lambda m, a, o: gradient(a, lambda leaf: leaf[m].square().sum() / m.sum()),
    "backward of rows": lambda m, a, o: gradient(a, lambda leaf: sum(leaf[i][r].sum() for i, r in enumerate(m))),
    "inference": lambda m, a, o: gradient(a, lambda leaf: leaf[m].sum() if in_inference(m) is not None else leaf.sum()),
    "checkpoint": lambda m, a, o: gradient(a, lambda leaf: checkpointed(leaf, m)),
}
WRITES: dict[str, Operation] = {
    "m &= o": lambda m, a, o: operator.iand(m, o),
    "m ^= o": lambda m, a, o: operator.ixor(m, o),
    "m |= a": lambda m, a, o: operator.ior(m, a),
    "m[0] = False": lambda m, a, o: m.__setitem__(0, False),
    "m[m] = False": lambda m, a, o: m.__setitem__(m, False),
    "m[o] = True": lambda m, a, o: m.__setitem__(o, True),
    "m[0, 0] ^= True": lambda m, a, o: m[0].__setitem__(0, ~m[0, 0]),
    "a row": lambda m, a, o: m[-1].logical_not_(),
    "a row of unbind": lambda m, a, o: m.unbind()[0].fill_(True),
    "a view": lambda m, a, o: m.view(-1)[1:].logical_not_(),
    "a transposed": lambda m, a, o: m.T[0].zero_(),
    "a detached": lambda m, a, o: m.detach().logical_xor_(o),
    "logical_and_": lambda m, a, o: m.logical_and_(o),
    "logical_not_": lambda m, a, o: m.logical_not_(),
    "out=": lambda m, a, o: torch.logical_xor(m, o, out=m),
    "out= of a row": lambda m, a, o: torch.logical_not(o[0], out=m[0]),
    "copy_": lambda m, a, o: m.copy_(a[..., 0] > 0.3),
    "fill_": lambda m, a, o: m.fill_(False),
    "masked_fill_": lambda m, a, o: m.masked_fill_(o, True),
    "bernoulli_": lambda m, a, o: m.bernoulli_(nonsense=True),
    "data": lambda m, a, o: m.data.logical_not_(),
    "data of a row": lambda m, a, o: m[0].data.logical_not_(),
    "data =": lambda m, a, o: setattr(m, "data", o.clone()),
    "set_": lambda m, a, o: m.set_(o.clone()),
    "index_fill_": lambda m, a, o: m.index_fill_(0, torch.zeros(1, dtype=torch.long, device=m.device), True),
    "a[m] = 1": lambda m, a, o: a.__setitem__(m, 1.0),
    "a[m] = values": lambda m, a, o: a.__setitem__(m, -a[m]),
    "a[m] = too many": lambda m, a, o: a.__setitem__(m, torch.zeros(99, 99, device=a.device)),
    "a[m] += 1": lambda m, a, o: a.__setitem__(m, a[m] + 1),
    "resize": lambda m, a, o: m.unsqueeze_(0).squeeze_(0),
    "transpose": lambda m, a, o: m.t_(),
}
OPERATIONS = {**READS, **{f"in place: {name}": operation for name, operation in WRITES.items()}}


def by_row() -> Any:
    """Return a run in which a loss has gone through such a mask row by row."""
    stash = Stash()
    stash[masks._BY_ROW] = True
    return SimpleNamespace(stash=stash)


def saved(value: Any) -> Any:
    """Return what `torch.load` reads of what `torch.save` writes, without any class of this package."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def gradient(values: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor | None:
    leaf = values.clone().requires_grad_()
    compute(leaf).backward()
    return leaf.grad


def in_inference(mask: torch.Tensor) -> Any:
    with torch.inference_mode():
        return mask.nonzero(as_tuple=True), bool(mask.any())


def checkpointed(leaf: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    from torch.utils.checkpoint import checkpoint

    def compute(values: torch.Tensor) -> torch.Tensor:
        return (values[mask] ** 2).sum() / (mask.sum() if mask.any() else 1)

    return checkpoint(compute, leaf, use_reentrant=False)  # type: ignore[no-any-return]


def outcome(operation: Operation, mask: torch.Tensor, values: torch.Tensor, other: torch.Tensor) -> Any:
    """Return all that can be told of an operation's result, or its exception."""
    try:
        return told(operation(mask, values, other))
    except Exception as error:
        return type(error), str(error)


def told(result: Any) -> Any:
    if isinstance(result, (list, tuple)):
        return [told(part) for part in result]
    if not isinstance(result, torch.Tensor):
        return type(result), repr(result)
    contents = result.detach().cpu().tolist()
    return str(contents), result.dtype, result.device, result.shape, result.stride(), result.requires_grad


def same_in_both(names: list[str], shape: tuple[int, int], seed: int, run: Any = None) -> None:
    """Do the same with a mask of ours and with a plain one, and expect the same each time."""
    generator = torch.Generator().manual_seed(seed)
    plain = (torch.rand(shape, generator=generator) > 0.6).to("xpu")
    other = (torch.rand(shape, generator=generator) > 0.5).to("xpu")
    values = torch.rand(*shape, 3, generator=generator).to("xpu")
    ours = foreground.known_mask(plain.clone(), run=run)
    our_values, our_other = values.clone(), other.clone()
    # kept from before any change
    row, our_row = plain[0], ours[0]
    for name in names:
        operation = OPERATIONS[name]
        expected = outcome(operation, plain, values, other)
        assert outcome(operation, ours, our_values, our_other) == expected, name
        assert torch.equal(our_values, values), name
        assert torch.equal(our_row, row), name
        if plain.shape == shape:
            assert torch.equal(our_values[ours], values[plain]), name
            assert torch.equal(our_values[0][our_row], values[0][row]), name
            assert int(ours.sum()) == int(plain.sum()), name


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_what_it_gives_of_a_plain_mask(xpu: torch.device, name: str) -> None:
    for shape in ((4, 6), (1, 5), (3, 3)):
        same_in_both([name, name], shape, seed=0)
        same_in_both([name, name], shape, seed=0, run=by_row())


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(list(OPERATIONS)), min_size=2, max_size=8),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_sequences_of_operations_give_what_they_give_of_a_plain_mask(
    xpu: torch.device, names: list[str], shape: tuple[int, int], seed: int
) -> None:
    same_in_both(names, shape, seed)


@pytest.mark.parametrize("name", READS)
def test_results_are_plain_tensors(xpu: torch.device, name: str) -> None:
    """So that none of this package's classes goes further; only rows and numbers are known, too."""
    mask = foreground.known_mask(torch.ones(2, 3, dtype=torch.bool, device=xpu))
    try:
        result = READS[name](mask, torch.ones(2, 3, 3, device=xpu), ~mask)
    except Exception:
        return
    results = result if isinstance(result, (list, tuple)) else [result]
    known = {"m[0]", "unbind", "any", "sum", "max(sum, 1)"}
    if name not in known:
        assert {type(part) for part in results if isinstance(part, torch.Tensor)} <= {torch.Tensor}


def test_positions_are_found_once(xpu: torch.device) -> None:
    mask = foreground.known_mask(torch.rand(4, 30, device=xpu) > 0.5)
    values = torch.rand(4, 30, 3, device=xpu)
    with xpu_simulator.count() as counts:
        _ = values[mask], values[(mask,)], mask.nonzero(as_tuple=True), bool(mask.any()), int(mask.sum())
        _ = [values[i][row] for i, row in enumerate(mask) if row.any()]
        _ = [values[i][mask[i]] for i in range(4)]
    assert sum(counts.syncs.values()) == 2  # their number, and that of each row


@pytest.mark.parametrize("late", [False, True])
def test_each_rows_number_comes_along_where_a_loss_goes_by_rows(xpu: torch.device, late: bool) -> None:
    run = SimpleNamespace(stash=Stash())
    values = torch.rand(4, 30, 3, device=xpu)
    for seed, most in ((0, 2), (1, 1), (2, 1)):
        plain = torch.rand(4, 30, generator=torch.Generator().manual_seed(seed)).to(xpu) > 0.5
        mask = foreground.known_mask(plain.clone(), run=run)  # type: ignore[arg-type]
        with xpu_simulator.count() as counts, xpu_simulator.asynchronous() if late else nullcontext():
            whole = values[mask]
            rows = [values[i][row] for i, row in enumerate(mask)]
        assert torch.equal(whole, values[plain])
        assert [len(row) for row in rows] == plain.sum(1).tolist()
        assert torch.equal(torch.cat(rows), whole)
        assert sum(counts.syncs.values()) == most


@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_function_takes_a_mask(xpu: torch.device, fullgraph: bool) -> None:
    def compute(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (values * mask[..., None]).sum() / mask.sum() + mask.any()

    plain = torch.rand(4, 30, device=xpu) > 0.5
    values = torch.rand(4, 30, 3, device=xpu)
    compiled = torch.compile(compute, backend="eager", fullgraph=fullgraph)
    assert torch.equal(compiled(values, foreground.known_mask(plain)), compute(values, plain))


def test_a_mask_made_in_a_validation_tells_of_its_changes(xpu: torch.device) -> None:
    with torch.inference_mode():
        mask = torch.ones(2, 3, dtype=torch.bool, device=xpu)
        values = torch.rand(2, 3, device=xpu)
        _, known = foreground.forward.replacement(None, lambda self: (values, mask))(None)
        assert len(values[known]) == int(known.sum()) == 6
        known[0] = False
        assert len(values[known]) == int(known.sum()) == 3


@pytest.mark.parametrize("value", ["tensor", "one number", "a number of the device"])
def test_what_is_written_where_a_mask_is_true_is_what_a_plain_mask_writes(xpu: torch.device, value: str) -> None:
    mask = torch.rand(4, 3, 50, generator=torch.Generator().manual_seed(0)).to(xpu) > 0.7
    given = {"tensor": torch.arange(int(mask.sum()), device=xpu) * 1.0, "one number": 3.0}.get(
        value, torch.tensor(2.0, device=xpu)
    )
    plain, seen = torch.zeros(mask.shape, device=xpu), torch.zeros(mask.shape, device=xpu)
    plain[mask] = given
    known = foreground.known_mask(mask)
    _ = seen[known]
    with xpu_simulator.count() as counts:
        seen[known] = given
    assert torch.equal(plain, seen)
    assert not counts.syncs


def test_a_mask_of_older_assigners_is_found_once(xpu: torch.device) -> None:
    def get_box_metrics(self: object, scores: Any, boxes: Any, labels: Any, truth: Any, mask_gt: Any) -> Any:
        mask_gt = mask_gt.bool()
        found = torch.zeros(mask_gt.shape, device=xpu)
        found[mask_gt] = scores[mask_gt]
        found[mask_gt] = found[mask_gt] * 2
        return found

    assert foreground.get_box_metrics.needed is not None
    assert not foreground.get_box_metrics.needed(get_box_metrics)  # a user's own
    scores = torch.rand(2, 3, 40, device=xpu)
    mask = (scores > 0.5).float()
    expected = get_box_metrics(None, scores, None, None, None, mask)
    with xpu_simulator.count() as counts:
        seen = foreground.get_box_metrics.replacement(None, get_box_metrics)(None, scores, None, None, None, mask)
    assert torch.equal(seen, expected)
    assert sum(counts.syncs.values()) == 1
