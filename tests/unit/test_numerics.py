"""Checks compare a device with the CPU, and what they find is kept by device, driver and PyTorch."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from xpu_simulator import counters, quirks
from yolo_xpu_trainer import Check, Given, Options, Precision, Run, compared, devices, numerics
from yolo_xpu_trainer.numerics import examine, finding, results
from yolo_xpu_trainer.plugins import declared_options, manager

pytestmark = pytest.mark.usefixtures("nothing_known")

CPU = torch.device("cpu")


def declared() -> list[Check]:
    return [check for found in manager().hook.xpu_numerics() for check in found]


def named(operator: str, dtype: torch.dtype | None = None) -> Check:
    (found,) = [c for c in declared() if c.operator == operator and dtype in (None, c.dtype)]
    return found


# What is found


def test_a_sound_device_passes_every_check(xpu: torch.device) -> None:
    found = list(examine(declared(), devices.info(0), anew=True))
    assert len(found) > 60
    assert [str(one) for one in found if not one.right] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_run_compares_in_less_than_two_seconds(xpu: torch.device, dtype: torch.dtype) -> None:
    met = [check for check in declared() if check.dtype not in (torch.bfloat16, torch.float16) or check.dtype is dtype]
    seconds = []
    for _ in range(3):
        began = time.process_time()  # others may use the machine
        list(examine(met, devices.info(0), anew=True))
        seconds.append(time.process_time() - began)
    assert min(seconds) < 2, seconds


@pytest.mark.usefixtures("channels_last_by_default")
@pytest.mark.parametrize(
    ("quirk", "expected", "fatal"),
    [
        ("wrong_topk", {"topk(10) of 64×8400 float32"}, True),
        (
            "short_nonzero",
            {"nonzero bool", "x[mask], masked_select bool", "x[mask], its gradient float32"},
            True,
        ),
        (
            "wrong_conv_grad",
            {f"convolution 3×3 of one pixel, channels_last {d}" for d in ("float32", "bfloat16", "float16")},
            False,
        ),
        ("corrupt_empty_cache", {"results pending at empty_cache float32"}, False),
        ("slow_channels_last", {"layers in channels_last, beside NCHW float32"}, False),
        ("wrong_linear_bf16", {"matrix products bfloat16", "matrix products float16"}, False),
        ("wrong_fused_optimizer", {f"{kind}, fused float32" for kind in ("Adam", "AdamW", "SGD")}, False),
        ("wrong_side_stream_copy", {"copies in a side stream int32"}, False),
        (
            "wrong_foreach_copy",
            {f"weights rounded together {d}" for d in ("bfloat16", "float16")} | {"MuSGD's orthogonal updates float32"},
            False,
        ),
        ("wrong_foreach_lerp", {"_foreach_lerp_ float32", "AdamW float32"}, True),
        (
            "wrong_batch_norm",
            {f"batch norm, max-pool, channels_last {d}" for d in ("bfloat16", "float16")},
            False,
        ),
        ("wrong_unscale", {"gradient scaler float16"}, False),
        ("wrong_grid_sample", {"grid_sample float32"}, True),
        ("wrong_small_topk", {"topk(10) of 64×84, topk(1) of 16×8 float32"}, True),
        ("wrong_softmax", {"softmax of 324, 400, 625 numbers float32"}, True),
        ("wrong_cumsum", {"cumsum int64"}, True),
    ],
)
def test_every_quirk_is_found_by_the_checks_of_what_it_spoils_and_by_no_other(
    xpu: torch.device, quirk: str, expected: set[str], fatal: bool
) -> None:
    with quirks.ordered(quirk):
        wrong = [found for found in examine(declared(), devices.info(0), anew=True) if not found.right]
    keys = {found.check.key for found in wrong if found.check}
    attention = {key for key in keys if key.startswith("attention")}  # which is made of products
    assert keys - (attention if quirk == "wrong_linear_bf16" else set()) == expected
    assert any(not found.check.instead for found in wrong if found.check) is fatal


def test_every_quirk_is_among_them() -> None:
    (test,) = [
        mark
        for mark in test_every_quirk_is_found_by_the_checks_of_what_it_spoils_and_by_no_other.pytestmark
        if mark.name == "parametrize"
    ]
    assert {case[0] for case in test.args[1]} == set(quirks.QUIRKS)


@pytest.mark.xpu_profile("arc-a770")
def test_what_a_gpu_has_no_float64_for_fails_with_its_error_and_nothing_else_does(xpu: torch.device) -> None:
    wrong = [found for found in examine(declared(), devices.info(0), anew=True) if not found.right]
    assert {found.check.operator for found in wrong if found.check} == {f"{k}, fused" for k in ("Adam", "AdamW", "SGD")}
    assert {found.error for found in wrong} == {"Required aspect fp64 is not supported on the device"}


@pytest.mark.parametrize(
    ("spoil", "seen"),
    [
        (lambda x: x, 0.0),
        (lambda x: x * 1.5, 0.5),
        (lambda x: x[:3], math.inf),
        (lambda x: x.clone().index_fill_(0, torch.tensor([0], device=x.device), math.nan), math.inf),
        (lambda x: x / 0, math.inf),
    ],
    ids=["same", "half as much again", "fewer", "NaN", "infinite"],
)
def test_a_difference_is_relative_to_the_largest_number(
    xpu: torch.device, spoil: Callable[[torch.Tensor], torch.Tensor], seen: float
) -> None:
    def compute(given: Given) -> list[torch.Tensor]:
        values = given.normal(100)
        return [values if given.device.type == "cpu" else spoil(values)]

    assert compared(compute)(xpu) == pytest.approx(seen)


def test_an_exact_difference_is_the_share_of_numbers_that_differ(xpu: torch.device) -> None:
    def compute(given: Given) -> list[torch.Tensor]:
        values = given.integers(10, 100)
        values[: 0 if given.device.type == "cpu" else 7] += 1
        return [values]

    assert compared(compute, exact=True)(xpu) == pytest.approx(0.07)


def test_a_fault_that_shows_once_in_three_times_is_found(xpu: torch.device) -> None:
    calls: list[int] = []

    def compute(given: Given) -> list[torch.Tensor]:
        calls.append(1)
        return [given.normal(5) * (2 if len(calls) == 4 else 1)]  # of one on the CPU and three on the device

    assert compared(compute)(xpu) > 0.5


def test_what_is_given_is_the_same_everywhere_and_rounded_to_the_dtype(xpu: torch.device) -> None:
    there, here = Given(xpu, torch.bfloat16), Given(CPU, torch.bfloat16)
    for _ in range(2):
        a, b = there.normal(3, 4), here.normal(3, 4)
        assert (a.dtype, b.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(a.cpu().float(), b)
    assert torch.equal(there.mask(5, 4, 4).cpu(), here.mask(5, 4, 4))
    orders = there.orders(3, 50)
    assert torch.equal(orders.cpu(), here.orders(3, 50))
    assert all(len(set(row.tolist())) == 50 for row in orders)


def test_random_numbers_and_settings_of_the_process_stay_as_they_are(
    xpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = torch.backends.mkldnn
    monkeypatch.setattr(type(switches), "allow_tf32", True, raising=False)  # which a build without XPUs hasn't
    seen: list[Any] = []
    noting = Check("noting", torch.float32, lambda device: float(seen.append(switches.allow_tf32) or 0), 0)
    torch.manual_seed(3)
    expected = torch.rand(3), torch.rand(3, device=xpu)
    torch.manual_seed(3)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.no_grad(), torch.autocast("xpu", torch.bfloat16):
            assert all(found.right for found in examine([noting, *declared()], devices.info(0), anew=True))
            assert not torch.is_grad_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert (seen, switches.allow_tf32) == ([False], True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(torch.rand(3), expected[0])
    assert torch.equal(torch.rand(3, device=xpu), expected[1])


@pytest.mark.parametrize("changed", ["float64", "bfloat16", "device"])
def test_a_default_dtype_or_device_of_the_process_changes_no_finding(xpu: torch.device, changed: str) -> None:
    try:
        if changed == "device":
            torch.set_default_device(xpu)
        else:
            torch.set_default_dtype(getattr(torch, changed))
        before = torch.empty(0).dtype, torch.empty(0).device
        assert [str(one) for one in examine(declared(), devices.info(0), anew=True) if not one.right] == []
        assert (torch.empty(0).dtype, torch.empty(0).device) == before
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "text", ["UR_RESULT_ERROR_DEVICE_LOST", "UR backend failed: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"]
)
def test_an_error_of_the_device_itself_says_nothing_of_an_operator(xpu: torch.device, text: str) -> None:
    def fail(device: torch.device) -> float:
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="UR"):
        finding(Check("an operator", torch.float32, fail, 0), devices.info(0))
    assert not results.known(devices.info(0))


# What is kept


def test_an_error_of_the_driver_is_not_kept_for_other_processes(xpu: torch.device) -> None:
    def fail(device: torch.device) -> float:
        raise RuntimeError("Native API failed. Native API returns: 2147483646 (UR_RESULT_ERROR_UNKNOWN)")

    for _ in range(2):
        assert not finding(Check("an operator", torch.float32, fail, 0), devices.info(0)).right
    forget_in_this_process()
    assert finding(counting([]), devices.info(0)).right


@pytest.mark.xpu_profile("max-1550")
@pytest.mark.parametrize("wrong", [0, 1])
def test_workers_of_different_devices_avoid_the_same(
    xpu: torch.device, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = devices.info(0), replace(devices.info(1), name="Intel(R) Arc(TM) B580 Graphics")
    monkeypatch.setattr(numerics, "info", lambda index: (one, other)[index])
    for index, device in enumerate((one, other)):  # as the parent does
        finding(counting([], 0.5 if index == wrong else 0.0), device)
    monkeypatch.setenv("LOCAL_RANK", "0")
    for device in (one, other):
        run = Run(device, (0, 1), Precision("fp32", "a test asks for it"), Options.resolve(declared_options(), {}, {}))
        assert numerics.avoids(run, counting([]))


@pytest.mark.parametrize("elsewhere", [True, False])
def test_processes_of_a_launcher_do_without_together(elsewhere: bool, xpu: torch.device) -> None:
    """What they compute would drift apart otherwise: none of them may be alone in what it does."""
    others = [("NCHW, because of another GPU", False)] if elsewhere else []
    group: Any = SimpleNamespace(gather=lambda mine: [mine, *others], launch=SimpleNamespace(rank=0))
    precision = Precision("fp32", "a test")
    run = Run(devices.info(0), (0,), precision, Options(), group=group)
    assert numerics.avoids(run, counting([]), together=True) is elsewhere
    assert not numerics.avoids(run, counting([]))
    assert numerics.avoids(run, replace(counting([], 1.0), operator="another"), together=True)


@pytest.mark.xpu_profile("max-1550")
def test_each_of_two_gpus_of_a_kind_is_compared_anew(xpu: torch.device) -> None:
    made: list[str] = []
    for device in devices.available():
        assert [found.right for found in numerics.announced([counting(made)], device, anew=True)] == [True]
    assert made == ["xpu:0", "xpu:1"]
    assert all(numerics.tell(device) for device in devices.available())


def counting(made: list[str], difference: float = 0.0) -> Check:
    def note(device: torch.device) -> float:
        made.append(str(device))
        return difference

    return Check("an operator", torch.float32, note, 0.1)


def forget_in_this_process() -> None:
    results._known.clear()


def test_a_check_is_made_once_in_a_process_and_once_on_a_machine(xpu: torch.device) -> None:
    made: list[str] = []
    for _ in range(2):
        assert finding(counting(made), devices.info(0)).right
    forget_in_this_process()  # as another process knows nothing but what is on disk
    assert finding(counting(made), devices.info(0)).right
    assert made == ["xpu:0"]


def test_what_is_wrong_stays_wrong_until_it_is_asked_for_anew(xpu: torch.device) -> None:
    made: list[str] = []
    assert not finding(counting(made, 0.5), devices.info(0)).right
    forget_in_this_process()
    kept = finding(counting(made), devices.info(0))
    assert not kept.right
    assert kept.difference == 0.5
    assert next(examine([counting(made)], devices.info(0), anew=True)).right
    assert finding(counting(made), devices.info(0)).right
    assert len(made) == 2


@pytest.mark.parametrize("changed", ["driver", "device", "torch", "package"])
def test_another_driver_device_or_release_is_compared_anew(
    xpu: torch.device, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    device = devices.info(0)
    finding(counting(made), device)
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "2.99.0+xpu")
    elif changed == "package":
        monkeypatch.setattr(results, "__version__", "99")
    else:
        device = replace(device, **{"driver": {"driver": "1.7"}, "device": {"name": "Intel Arc B570"}}[changed])
    finding(counting(made), device)
    finding(counting(made), replace(device, index=1))  # another of the same kind
    assert len(made) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 3}', "null", "\x00"])
def test_a_broken_file_is_as_good_as_none_and_written_anew(xpu: torch.device, content: str) -> None:
    made: list[str] = []
    results.path().write_text(content)
    assert finding(counting(made), devices.info(0)).right
    assert json.loads(results.path().read_text())
    forget_in_this_process()
    finding(counting(made), devices.info(0))
    assert len(made) == 1


def test_a_broken_entry_is_compared_anew(xpu: torch.device) -> None:
    made: list[str] = []
    finding(counting(made), devices.info(0))
    stored: dict[str, Any] = json.loads(results.path().read_text())
    results.path().write_text(json.dumps({key: {"an operator float32": ["much"]} for key in stored}))
    forget_in_this_process()
    assert finding(counting(made), devices.info(0)).right
    assert len(made) == 2


def test_where_nothing_can_be_written_the_process_remembers(xpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def refuse(*args: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(results, "replacing", refuse)
    for _ in range(2):
        assert finding(counting(made), devices.info(0)).right
    assert len(made) == 1


def test_what_is_known_costs_no_launch(xpu: torch.device) -> None:
    list(examine(declared(), devices.info(0)))
    with counters.count() as counted:
        assert all(found.right for found in examine(declared(), devices.info(0)))
    assert not counted.launches
