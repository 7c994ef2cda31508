"""The simulated XPU in loaders, forked and spawned processes, and process groups."""

import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from xpu_simulator import torch_xpu

FORK_ERROR = "Cannot re-initialize XPU in forked subprocess"


def _start(code, **variables):
    environment = {**os.environ, "XPU_SIMULATOR": "max-1550", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process):
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    return out


def _touch_in_child(queue, touch):
    try:
        queue.put(touch())
    except Exception as error:
        queue.put(str(error))


@pytest.mark.xpu_hardware
@pytest.mark.parametrize(
    "touch",
    [
        lambda: torch.ones(1, device="xpu").item(),
        lambda: torch.ones(1).to("xpu").item(),
        lambda: torch.xpu.current_device(),
        lambda: torch.xpu.synchronize(),
        pytest.param(lambda: torch.xpu.mem_get_info(), marks=pytest.mark.needs("torch.xpu.mem_get_info")),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_that_touches_the_device_is_refused(touch, xpu):
    torch.ones(1, device=xpu)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_touch_in_child, args=(queue, touch))
    child.start()
    message = queue.get(timeout=60)
    child.join(60)
    assert FORK_ERROR in str(message)


@pytest.mark.xpu_hardware
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_loader_pins_its_batches(workers, xpu):
    torch.ones(1, device=xpu)
    dataset = TensorDataset(torch.arange(12.0).reshape(6, 2))
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, pin_memory=True)
    if torch_xpu.release() < (2, 7):
        loader.pin_memory_device = "xpu"  # CUDA unless it is told (pytorch#131858)
    total = torch.zeros((), device=xpu)
    for (batch,) in loader:
        assert batch.is_pinned()
        total += batch.to(xpu, non_blocking=True).sum()
    assert total.item() == 66


def test_a_spawned_loader_s_workers_have_the_device(tmp_path):
    script = tmp_path / "spawned.py"  # a file, for the workers to import
    code = """
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        def on_device(batch):
            return torch.stack([x for x, in batch]).to("xpu").mul(2).cpu()

        if __name__ == "__main__":
            torch.ones(1, device="xpu")
            loader = DataLoader(
                TensorDataset(torch.ones(4, 3)), 2, num_workers=1, collate_fn=on_device, multiprocessing_context="spawn"
            )
            print(sum(batch.sum().item() for batch in loader))
    """
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "XPU_SIMULATOR": "arc-b580"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "24.0"


@pytest.mark.needs("torch.distributed.is_xccl_available")
def test_two_processes_train_with_xccl_and_agree():
    code = """
        import torch, xpu_simulator
        import torch.distributed as dist
        from torch import nn

        assert dist.is_xccl_available()
        dist.init_process_group("xccl")
        rank = dist.get_rank()
        torch.xpu.set_device(rank)
        torch.manual_seed(rank)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        network = nn.parallel.DistributedDataParallel(network.to(f"xpu:{rank}"), device_ids=[rank])
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        images = torch.randn(4, 3, 8, 8).pin_memory()
        for step in range(3):
            with xpu_simulator.count() as counts:
                loss = network(images.to(f"xpu:{rank}", non_blocking=True)).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        assert counts.h2d["pageable", "blocking"] == 0, counts.h2d_lines
        assert counts.launches_by_op["c10d::allreduce_"] >= 1

        try:
            dist.barrier(device_ids=[2])
        except RuntimeError as error:
            assert "out of range" in str(error)
        else:
            raise AssertionError("a device that isn't there can't be waited on")
        dist.barrier(device_ids=[rank])

        mean = next(network.parameters()).detach().clone()
        with xpu_simulator.count() as counts:
            dist.all_reduce(mean)
        assert (counts.collectives, counts.bytes_collective) == (1, mean.nbytes)
        torch.testing.assert_close(mean / 2, next(network.parameters()).detach())

        try:
            dist.all_reduce(torch.ones(1))
        except RuntimeError as error:
            assert "No backend type associated with device type cpu" in str(error)
        else:
            raise AssertionError("xccl takes no host tensors")

        gathered = [torch.zeros(1, device=f"xpu:{rank}") for _ in range(2)]
        dist.all_gather(gathered, torch.full((1,), float(rank), device=f"xpu:{rank}"))
        work = dist.broadcast(gathered[0], src=1, async_op=True)
        work.wait()
        objects = [None, None]
        dist.all_gather_object(objects, rank)
        dist.barrier()
        future = dist.all_reduce(torch.ones(2, device=f"xpu:{rank}"), async_op=True).get_future()
        print(float(gathered[1]), objects, future.wait()[0].device, int(future.value()[0].sum()))
        dist.destroy_process_group()
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [
        _start(code, RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in range(2)
    ]
    # Releases around 2.8 let gloo print that it is connected.
    told = ["\n".join(line for line in _finish(process).splitlines() if "[Gloo]" not in line) for process in ranks]
    assert told == [f"1.0 [0, 1] xpu:{rank} 4" for rank in range(2)]


def test_two_processes_that_need_the_library_at_once_build_it_once(tmp_path):
    """The compiler is a stand-in that takes its time and writes down that it was called."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        'case "$*" in *--version*) echo stand-in; exit;; esac\n'
        f'echo "$*" >> {tmp_path}/calls\n'
        "sleep 0.05\n"
        'while [ "$#" -gt 0 ]; do [ "$1" = -o ] && : > "$2"; shift; done\n'
    )
    compiler.chmod(0o755)
    code = "from xpu_simulator import build; print(build.library())"
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": str(compiler), "XPU_SIMULATOR": ""}
    paths = {_finish(process) for process in [_start(code, **variables) for _ in range(2)]}
    assert len(paths) == 1
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len([call for call in calls if "-shared" in call]) == 1
    assert len(calls) == len(set(calls))


def test_a_compiler_s_complaint_is_shown(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\ncase "$*" in *--version*) exit;; esac\necho "no such luck" >&2\nexit 1\n')
    compiler.chmod(0o755)
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": str(compiler), "XPU_SIMULATOR": ""}
    process = _start("from xpu_simulator import build; build.library()", **variables)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "no such luck" in errors
    assert not list((tmp_path / "cache" / "xpu-simulator").glob("*/libxpu_simulator.so"))
