"""Errors of a device are told apart by their text: memory, a lost device, its driver, or none of these."""

from __future__ import annotations

import pytest
import torch

from xpu_simulator import faults
from yolo_xpu_trainer.device_errors import is_lost, is_of_device, is_out_of_memory, responds

MEMORY = [
    torch.OutOfMemoryError("XPU out of memory. Tried to allocate 4.00 GiB (GPU 0; 15.11 GiB total capacity)"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
    RuntimeError("Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("Native API failed. Native API returns: -6 (PI_ERROR_OUT_OF_HOST_MEMORY)"),
    RuntimeError("Allocation is out of device memory on current platform."),
    RuntimeError("UR error: 40"),
]
LOST = [
    RuntimeError("level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)"),
    RuntimeError("UR_RESULT_ERROR_DEVICE_LOST after UR_RESULT_ERROR_OUT_OF_RESOURCES"),
    RuntimeError("the device is lost: out of memory"),
]
DRIVER = [
    RuntimeError("Native API failed. Native API returns: -30 (PI_ERROR_INVALID_VALUE)"),
    RuntimeError("level_zero backend failed with error: 2147483646 (UR_RESULT_ERROR_UNKNOWN)"),
]
NONE = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x3 and 4x3)"),
    ValueError("out of memory"),
    KeyError("UR_RESULT_ERROR_DEVICE_LOST"),
    RuntimeError("we lost the plot"),
]


@pytest.mark.parametrize("error", MEMORY + LOST + DRIVER + NONE, ids=str)
def test_each_error_is_one_thing(error: BaseException) -> None:
    assert is_out_of_memory(error) is (error in MEMORY)
    assert is_lost(error) is (error in LOST)
    assert is_of_device(error) is (error not in NONE)


def test_a_device_that_computes_responds_and_a_lost_one_does_not(xpu: torch.device) -> None:
    assert responds(xpu)
    faults.device_lost()
    assert not responds(xpu)
    faults.clear()
    assert responds(xpu)
