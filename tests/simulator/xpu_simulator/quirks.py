"""Wrong or slow results to order by name, each as a real combination of GPU, driver and torch gave it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from . import native

VARIABLE = "XPU_SIMULATOR_QUIRKS"

QUIRKS: dict[str, str] = {
    "wrong_topk": (
        "`topk(k)` over 4096 elements or more with k > 8 gives a tenth of its indices wrong, other ones in each call. "
        "torch 2.13: torch-xpu-ops#3372 brought the kernel, #4312 and #4303 mended it for 2.14; vllm-xpu-kernels#473"
    ),
    "short_nonzero": (
        "`nonzero` misses about 295 of the true elements, varying: all of 100, half of 600; so do `masked_select` and "
        "`x[mask]`, while `x[mask] = y` and sums are right. torch 2.13 with driver 26.05 on Battlemage: "
        "torch-xpu-ops#4396, #4762, sglang#31751"
    ),
    "wrong_conv_grad": (
        "the weight's gradient has its numbers at the wrong places where the input is 1x1, the kernel larger, and one "
        "of them channels_last. 2.14: torch-xpu-ops#4693, #4756, pytorch#190773"
    ),
    "corrupt_empty_cache": (
        "what was written since the host last waited is NaN after `torch.xpu.empty_cache()`. 2.14 on Arc A, Windows, "
        "one reporter, of one operator's results: pytorch#197520"
    ),
    "slow_channels_last": (
        "convolutions, batch norm and max-pooling take ten times as long in channels_last. Batch norm before 2.7: "
        "torch-xpu-ops#1306, #1317; pooling on Battlemage until 2.9: #1861; a whole model on CUDA: ultralytics#26105"
    ),
    "wrong_linear_bf16": (
        "`mm` and `addmm` give zeros in fp16, and numbers too small with NaN among them in bf16. B580 with some "
        "drivers: torch-xpu-ops#5220"
    ),
    "wrong_fused_optimizer": (
        "fused optimizers take half a step. Nobody has reported it: it stands for kernels that only a comparison finds"
    ),
    "wrong_side_stream_copy": (
        "the second half of what is copied between host and device in a stream of one's own doesn't arrive. Made up "
        "after copies that fail on DG2 under `xe`, llama.cpp#27063"
    ),
    "wrong_foreach_copy": (
        "`_foreach_copy_` from one dtype to another leaves zeros in the last tensor of its list. Nobody has reported "
        "it: torch-xpu-ops#2455 brought the kernel that converts; CUDA's was wrong at first (pytorch#123844), and "
        "where dtypes are mixed in a list (pytorch#173531)"
    ),
    "wrong_foreach_lerp": "`_foreach_lerp_` goes half as far. Nobody has reported it",
    "wrong_batch_norm": (
        "batch norm of bf16 or fp16 maps in channels_last gives 7 % too much, which are a kernel of their own "
        "(torch-xpu-ops#1317, #4973). Made up after torch-xpu-ops#1429, which is of float32"
    ),
    "wrong_unscale": (
        "the gradient scaler's kernel divides the gradients and never notes an infinite one. Nobody has reported it"
    ),
    "wrong_grid_sample": "`grid_sample` gives half of each number. Nobody has reported it",
    "wrong_small_topk": (
        "`topk` over 128 elements or fewer gives index 0 for each. intel-xpu-backend-for-triton#7458, of a row of eight"
    ),
    "wrong_softmax": (
        "float32 `softmax` and its gradient are wrong along rows of 257 to 384, 513 to 896 and more than 1024 numbers. "
        "Arc Pro B70, one reporter, whom Intel couldn't follow with a later build on the same card: torch-xpu-ops#4772"
    ),
    "wrong_cumsum": (
        "`cumsum` begins anew after 1024 numbers. Nobody has reported it: torch-xpu-ops#4820 found that carries may "
        "get lost in a scan, which is not `cumsum`'s, and that they weren't where it was run"
    ),
}
"""What each quirk does, and who has seen it where."""

_ordered: tuple[str, ...] = ()


@contextmanager
def ordered(*names: str) -> Iterator[None]:
    """Let the device give wrong results for the length of a block, beside those ordered around it.

    Args:
        names: Names out of `QUIRKS`.

    Raises:
        ValueError: A name is none of these.
    """
    before = _ordered
    _order(*before, *names)
    try:
        yield
    finally:
        _order(*before)


def order_from_environment() -> None:
    """Order what `XPU_SIMULATOR_QUIRKS` lists, separated by commas."""
    _order(*filter(None, (name.strip() for name in os.environ.get(VARIABLE, "").split(","))))


def _order(*names: str) -> None:
    global _ordered
    if unknown := [name for name in names if name not in QUIRKS]:
        raise ValueError(f"No such quirk: {', '.join(map(repr, unknown))}. There are {', '.join(QUIRKS)}.")
    native.check("order_quirks", ",".join(names).encode())
    _ordered = names
