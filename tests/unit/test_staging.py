"""Collectives of XPUs by way of the host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import xpu_simulator

SCRIPT = """
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from yolo_xpu_trainer import staging

rank = int(os.environ["RANK"])
device = torch.device("xpu", rank)
torch.xpu.set_device(device)
dist.init_process_group(
    staging.register(), init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2, timeout=timedelta(seconds=30)
)


def filled(value=None):
    return torch.full((3, 2), float(rank if value is None else value), device=device)


total = filled(rank + 1)
dist.all_reduce(total)
assert (total == 3).all() and total.device == device
average = filled(rank + 1)
dist.all_reduce(average, op=dist.ReduceOp.AVG)
assert (average == 1.5).all()
strided = torch.zeros(2, 3, device=device).T.copy_(filled(rank + 1))
dist.all_reduce(strided)
assert (strided == 3).all()
at_first = filled(rank + 1)
dist.reduce(at_first, 0, op=dist.ReduceOp.AVG)
assert rank or (at_first == 1.5).all()
said = torch.nn.Parameter(filled())
dist.broadcast(said, 1)
assert (said == 1).all()
with torch.inference_mode():
    counted = filled(1)
    dist.all_reduce(counted)
    assert (counted == 2).all()
    dist.all_reduce(later := filled(1))
    assert (later == 2).all()
found = [filled() for _ in range(2)]
dist.all_gather(found, filled())
assert [float(one.mean()) for one in found] == [0.0, 1.0]
joined = torch.empty(6, 2, device=device)
dist.all_gather_into_tensor(joined, filled())
assert (joined == torch.tensor([0.0] * 3 + [1.0] * 3, device=device)[:, None]).all()
exchanged = torch.empty(4, 2, device=device)
dist.all_to_all_single(exchanged, torch.full((4, 2), float(rank), device=device))
assert exchanged[:, 0].tolist() == [0.0, 0.0, 1.0, 1.0]
values = [None, None]
dist.all_gather_object(values, {"rank": rank})
assert values == [{"rank": 0}, {"rank": 1}]
host = torch.ones(2)
dist.all_reduce(host)
assert (host == 2).all() and host.device.type == "cpu"
dist.barrier()

torch.manual_seed(0)
whole = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)).to(device)
shared = torch.nn.parallel.DistributedDataParallel(whole, device_ids=[rank], find_unused_parameters=True)
images = torch.randn(4, 4).to(device)
shared(images[rank * 2 : rank * 2 + 2]).square().mean().backward()
gradients = [parameter.grad.clone() for parameter in whole.parameters()]
whole.zero_grad()
whole(images).square().mean().backward()
for gradient, parameter in zip(gradients, whole.parameters()):
    torch.testing.assert_close(gradient, parameter.grad)

if rank == 1:
    os._exit(0)
for operation in (lambda: dist.all_reduce(filled()), lambda: shared(images).square().mean().backward()):
    try:
        operation()
    except RuntimeError as error:
        print(error, flush=True)
    else:
        raise AssertionError("the other rank is gone, and nothing was said")
print("all right", flush=True)
os._exit(0)
"""


@pytest.mark.skipif(torch._C._has_xpu and not xpu_simulator.is_active(), reason="two simulated XPUs are needed")
def test_collectives_go_by_way_of_the_host_and_an_error_of_theirs_is_raised(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "store")],
            env={**os.environ, "RANK": str(rank), "XPU_SIMULATOR": "max-1550", "XPU_SIMULATOR_FAULTS": "no_xccl"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0].endswith("all right\n"), outputs
