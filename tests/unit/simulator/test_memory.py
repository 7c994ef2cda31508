"""The simulated device's memory is accounted as torch's caching allocator accounts a real one's."""

import gc

import pytest
import torch

import xpu_simulator

MB = 1 << 20
GB = 1 << 30


@pytest.fixture
def memory(xpu):
    gc.collect()
    torch.xpu.empty_cache()
    torch.xpu.reset_peak_memory_stats()
    assert torch.xpu.memory_reserved() == 0
    return xpu


def _bytes(n, device):
    return torch.empty(n, dtype=torch.uint8, device=device)


def test_blocks_are_multiples_of_512_bytes_in_segments_of_2_megabytes(memory):
    one = _bytes(1, memory)
    assert torch.xpu.memory_allocated() == 512
    assert torch.xpu.memory_reserved() == 2 * MB
    two = _bytes(513, memory)
    assert torch.xpu.memory_allocated() == 512 + 1024
    assert torch.xpu.memory_reserved() == 2 * MB
    del one, two
    assert torch.xpu.memory_allocated() == 0
    assert torch.xpu.memory_reserved() == 2 * MB


@pytest.mark.parametrize(("size", "segment"), [(MB, 2 * MB), (MB + 1, 20 * MB), (10 * MB, 10 * MB), (11 * MB, 12 * MB)])
def test_a_segment_s_size_follows_the_request(size, segment, memory):
    block = _bytes(size, memory)
    assert torch.xpu.memory_reserved() == segment
    assert torch.xpu.memory_allocated() >= size
    del block


def test_freed_memory_is_used_again(memory):
    first = _bytes(3 * MB, memory)
    address = first.data_ptr()
    del first
    second = _bytes(3 * MB, memory)
    assert second.data_ptr() == address
    assert torch.xpu.memory_reserved() == 20 * MB


def test_empty_cache_releases_whole_free_segments_only(memory):
    kept, freed, large = _bytes(512, memory), _bytes(512, memory), _bytes(30 * MB, memory)
    del freed, large
    assert torch.xpu.memory_reserved() == 32 * MB
    torch.xpu.empty_cache()
    assert torch.xpu.memory_reserved() == 2 * MB
    assert torch.xpu.memory_allocated() == 512
    del kept


def test_the_peak_stays_until_it_is_reset(memory):
    large = _bytes(64 * MB, memory)
    del large
    assert torch.xpu.max_memory_allocated() == 64 * MB
    torch.xpu.reset_peak_memory_stats()
    assert torch.xpu.max_memory_allocated() == 0
    assert torch.xpu.memory_stats()["allocation.all.allocated"] >= 1


def test_an_operator_s_result_and_its_temporaries_are_device_memory(memory):
    a = torch.ones(1024, 1024, device=memory)
    before = torch.xpu.memory_allocated()
    b = a + a
    assert torch.xpu.memory_allocated() == before + 4 * MB
    torch.xpu.reset_peak_memory_stats()
    b.sort(0)
    assert torch.xpu.max_memory_allocated() >= before + 4 * MB + 12 * MB


@pytest.mark.needs("torch.xpu.mem_get_info")
def test_free_memory_is_what_is_not_reserved(memory):
    block = _bytes(100 * MB, memory)
    free, total = torch.xpu.mem_get_info()
    assert total == torch.xpu.get_device_properties().total_memory
    assert free == total - torch.xpu.memory_reserved()
    del block


def test_more_than_there_is_raises_the_device_s_error_before_anything_is_computed(memory):
    block = _bytes(8 * GB, memory)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        block[: 4 * GB] + 1
    assert str(raised.value) == (
        "XPU out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 11.33 GiB of which 3.33 GiB "
        "is free. Of the allocated memory 8.00 GiB is allocated by PyTorch, and 0 bytes is reserved by PyTorch but "
        "unallocated. Please use `empty_cache` to release all unoccupied cached memory."
    )
    assert torch.xpu.memory_allocated() == 8 * GB
    del block
    assert torch.ones(3, device=memory).sum().item() == 3


def test_cached_memory_is_given_up_before_running_out(memory):
    cached = _bytes(8 * GB, memory)
    del cached
    assert torch.xpu.memory_reserved() == 8 * GB
    block = _bytes(9 * GB, memory)
    assert torch.xpu.memory_reserved() == 9 * GB
    assert torch.xpu.memory_stats()["num_alloc_retries"] >= 1
    del block


@pytest.mark.needs("torch.xpu.set_per_process_memory_fraction")
def test_a_memory_fraction_limits_the_process(memory):
    torch.xpu.set_per_process_memory_fraction(0.1)
    try:
        with pytest.raises(torch.OutOfMemoryError, match=r"1\.13 GiB allowed; "):
            _bytes(2 * GB, memory)
        assert torch.xpu.get_per_process_memory_fraction() == 0.1
    finally:
        torch.xpu.set_per_process_memory_fraction(1.0)


@pytest.mark.xpu_profile("arc-a770")
def test_alchemist_refuses_4_gigabytes_at_once(memory, monkeypatch):
    assert _bytes(4 * GB - 2 * MB, memory).numel() == 4 * GB - 2 * MB
    with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 4\.00 GiB\. .* of which 15\.11 GiB is free"):
        _bytes(4 * GB, memory)
    monkeypatch.setenv("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS", "1")
    assert _bytes(5 * GB, memory).numel() == 5 * GB


@pytest.mark.xpu_profile("max-1550")
def test_every_device_has_memory_of_its_own(memory):
    block = torch.empty(MB, dtype=torch.uint8, device="xpu:1")
    assert torch.xpu.memory_allocated(0) == 0
    assert torch.xpu.memory_allocated(1) == MB
    assert block.to("xpu:0").device.index == 0
    with torch.xpu.device(1):
        assert torch.ones(1, device="xpu").device.index == 1
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2, device="xpu:0") + torch.ones(2, device="xpu:1")


def test_training_leaks_nothing(memory):
    layer = torch.nn.Linear(64, 64).to(memory)
    optimizer = torch.optim.AdamW(layer.parameters())
    allocated = []
    for _ in range(20):
        layer(torch.randn(8, 64, device=memory)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        allocated.append(torch.xpu.memory_allocated())
    assert len(set(allocated[2:])) == 1


def test_record_stream_keeps_a_freed_block_from_being_used_again(memory):
    side = torch.xpu.Stream()
    with xpu_simulator.asynchronous():
        block = _bytes(3 * MB, memory)
        address = block.data_ptr()
        with torch.xpu.stream(side):
            torch.empty(MB, dtype=torch.uint8, pin_memory=True).to(memory, non_blocking=True)
            block.record_stream(side)
        del block
        assert _bytes(3 * MB, memory).data_ptr() != address
        side.synchronize()
        assert _bytes(3 * MB, memory).data_ptr() == address
