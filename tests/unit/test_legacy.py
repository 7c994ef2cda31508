"""What Ultralytics before 8.4.111 needs beside the trainers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from yolo_xpu_trainer.upstream import legacy


@pytest.mark.parametrize(
    ("backend", "expected"), [("xccl", {}), ("xpu_gloo", {}), ("nccl", {"device_ids": [1]})], ids=str
)
def test_ranks_wait_for_each_other_on_a_device_only_with_nccl(backend: str, expected: dict[str, Any]) -> None:
    """A rank's number isn't its device's where each process sees one XPU (ZE_AFFINITY_MASK)."""
    seen: list[dict[str, Any]] = []
    module = SimpleNamespace(get_backend=lambda: backend, barrier=lambda **options: seen.append(options), other=3)
    stand_in = legacy.distributed.replacement(None, module)
    stand_in.barrier(device_ids=[1])
    assert seen == [expected]
    assert stand_in.other == 3
