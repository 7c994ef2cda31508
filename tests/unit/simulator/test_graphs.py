"""A graph does again what was captured, on the same memory."""

import copy

import pytest
import torch

import xpu_simulator
from xpu_simulator import faults

pytestmark = pytest.mark.needs("torch.xpu.make_graphed_callables")


def captured(work, pool=None):
    """Capture some work, and return the graph and what the work returned."""
    graph = torch.xpu.XPUGraph()
    with torch.xpu.stream(torch.xpu.current_stream()), torch.xpu.graph(graph, pool=pool):  # it may fail to begin
        result = work()
    return graph, result


def network(device):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.SiLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Dropout(),
        torch.nn.Flatten(),
        torch.nn.Linear(72, 5),
    )
    return layers.to(device)


def test_a_replay_is_one_launch_and_reads_what_lies_there_by_then(xpu):
    x = torch.ones(3, device=xpu)
    graph, y = captured(lambda: (x * 2 + 1).relu_())
    x.fill_(5)
    with xpu_simulator.count() as counts:
        graph.replay()
    assert counts.launches_by_op == {"XPUGraph::replay": 1}
    assert counts.allocations == 0
    assert y.tolist() == [11, 11, 11]


def test_an_input_that_is_not_copied_into_the_captured_one_is_not_seen(xpu):
    x = torch.ones(3, device=xpu)
    graph, y = captured(lambda: x * 2)
    held, x = x, torch.full((3,), 7.0, device=xpu)
    graph.replay()
    assert y.tolist() == [2, 2, 2]
    held.copy_(x)
    graph.replay()
    assert y.tolist() == [14, 14, 14]


def test_memory_that_was_freed_since_the_capture_is_not_read_unseen(xpu):
    held = [torch.ones(3, device=xpu)]
    graph, _ = captured(lambda: held[0] * 2)
    held.clear()
    with pytest.raises(RuntimeError, match=r"mul.Tensor uses memory that was freed after the capture"):
        graph.replay()
    _another_at_its_place = torch.ones(3, device=xpu)
    with pytest.raises(RuntimeError, match="freed after the capture"):
        graph.replay()


def test_a_capture_runs_nothing(xpu):
    model, images = network(xpu), torch.rand(2, 3, 8, 8, device=xpu)
    before, random = copy.deepcopy(model.state_dict()), torch.xpu.get_rng_state(xpu)
    with xpu_simulator.count() as counts:
        _, result = captured(lambda: model(images))
    assert counts.launches == 0
    assert result.isnan().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.xpu.get_rng_state(xpu), random)


def test_replays_draw_the_numbers_that_kernels_would(xpu):
    graph, drawn = captured(lambda: torch.rand(4, device=xpu))
    torch.manual_seed(3)
    expected = [torch.rand(4, device=xpu).tolist() for _ in range(3)]
    torch.manual_seed(3)
    found = []
    for _ in range(3):
        graph.replay()
        found.append(drawn.tolist())
    assert found == expected


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.xpu.synchronize(),
        lambda x: torch.xpu.current_stream().synchronize(),
    ],
)
def test_the_host_can_not_wait_in_a_capture(xpu, wait):
    x = torch.ones(3, device=xpu)
    with pytest.raises(RuntimeError, match="wait cannot be called for a queue which is recording to a command graph"):
        captured(lambda: wait(x))
    assert not torch.xpu.is_current_stream_capturing()
    wait(x)


def test_a_capture_can_not_wait_for_what_is_outside_of_it(xpu):
    event = torch.xpu.Event()
    event.record()
    with pytest.raises(RuntimeError, match="cannot depend on events from outside the graph"):
        captured(event.wait)


def test_copies_from_the_host_are_part_of_a_graph(xpu):
    pinned = torch.ones(3).pin_memory()
    graph, (kept, staged) = captured(
        lambda: (pinned.to(xpu, non_blocking=True) * 2, torch.full((3,), 5.0).to(xpu, non_blocking=True))
    )
    pinned.fill_(4)
    graph.replay()
    assert kept.tolist() == [8, 8, 8]
    assert staged.tolist() == [5, 5, 5]


def test_a_graph_s_memory_is_kept_until_it_is_gone(xpu):
    def reserved():
        torch.xpu.empty_cache()
        return torch.xpu.memory_reserved(xpu)

    x = torch.ones(1 << 20, device=xpu)
    before = reserved()
    graph, result = captured(lambda: (((x + 1) * 2) - 1).clone())
    del result
    kept = reserved() - before
    assert 0 < kept <= 20 << 20  # which two of the four results take at a time
    graph.replay()
    assert reserved() - before == kept
    del graph
    assert reserved() == before


def test_two_graphs_share_a_pool(xpu):
    x, pool = torch.ones(3, device=xpu), torch.xpu.graph_pool_handle()
    first, y = captured(lambda: x + 1, pool)
    second, z = captured(lambda: y * 10, pool)
    assert first.pool() == second.pool() == pool
    first.replay()
    second.replay()
    assert z.tolist() == [20, 20, 20]


@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
def test_torch_s_graphed_callables_learn_what_the_module_learns(xpu):
    model = network(xpu)
    other = copy.deepcopy(model)
    graphed = torch.xpu.make_graphed_callables(model, (torch.rand(2, 3, 8, 8, device=xpu),), num_warmup_iters=0)
    for step in range(3):
        images = torch.rand(2, 3, 8, 8, device=xpu)
        results = []
        for each in (graphed, other):
            each.zero_grad()
            torch.manual_seed(step)
            results.append(each(images))
            results[-1].square().sum().backward()
        assert torch.equal(*results)
        for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_torch_says_of_wrong_use(xpu):
    graph = torch.xpu.XPUGraph()
    with pytest.raises(RuntimeError, match="without a preceding successful capture"):
        graph.replay()
    with pytest.raises(RuntimeError, match="non-default stream"):
        graph.capture_begin()
    graph, _ = captured(lambda: torch.ones(3, device=xpu))
    with torch.xpu.stream(torch.xpu.Stream()), pytest.raises(RuntimeError, match="already owns a captured graph"):
        graph.capture_begin()


def test_faults_reach_captures_and_replays(xpu):
    x = torch.ones(3, device=xpu)
    graph, _ = captured(lambda: x * 2)
    faults.out_of_memory(at_launch=1)
    with pytest.raises(torch.OutOfMemoryError, match="XPU out of memory"):
        graph.replay()
    graph.replay()
    faults.no_graphs()
    with pytest.raises(RuntimeError, match="not supported by SYCL Graph"):
        captured(lambda: x * 2)
    faults.clear()
    captured(lambda: x * 2)
