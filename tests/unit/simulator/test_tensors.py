"""Tensors on `xpu` behave as tensors of a device do: where they live, how they travel, what they refuse."""

import copy
import io
import pickle

import pytest
import torch

pytestmark = pytest.mark.xpu_hardware


def test_a_view_shares_its_base_s_storage(xpu):
    base = torch.arange(12.0, device=xpu).reshape(3, 4)
    view = base.t()[1:3]
    view.zero_()
    assert base.tolist() == [[0, 0, 0, 3], [4, 0, 0, 7], [8, 0, 0, 11]]
    assert view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
    assert view._base is base or view._base is base._base


def test_a_storage_says_that_it_lies_on_the_device(xpu):
    storage = torch.ones(4, device=xpu).untyped_storage()
    assert storage.device == xpu
    assert storage.nbytes() == 16
    assert storage.cpu().device.type == "cpu"


def test_a_tensor_prints_with_its_device(xpu):
    assert "device='xpu:0'" in repr(torch.ones(2, device=xpu))
    assert repr(torch.ones(2, device=xpu)).startswith("tensor([1., 1.]")


@pytest.mark.parametrize("map_location", [None, "cpu", "xpu", "xpu:0", {"xpu:0": "cpu"}, {"cpu": "xpu:0"}])
def test_a_saved_tensor_loads_where_map_location_says(map_location, xpu):
    file = io.BytesIO()
    saved = {"device": torch.arange(4.0, device=xpu), "host": torch.arange(4.0)}
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, map_location=map_location, weights_only=True)
    expected = {
        None: ("xpu", "cpu"),
        "cpu": ("cpu", "cpu"),
        "xpu": ("xpu", "xpu"),
        "xpu:0": ("xpu", "xpu"),
    }
    where = tuple(loaded[key].device.type for key in ("device", "host"))
    if isinstance(map_location, dict):
        assert where == (("cpu", "cpu") if "xpu:0" in map_location else ("xpu", "xpu"))
    else:
        assert where == expected[map_location]
    assert all(tensor.tolist() == [0, 1, 2, 3] for tensor in loaded.values())


def test_deepcopy_and_pickle_keep_the_device_and_the_values(xpu):
    layer = torch.nn.Linear(3, 2).to(xpu)
    for duplicate in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert duplicate.weight.device == xpu
        assert torch.equal(duplicate.weight, layer.weight)
        assert duplicate.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize(
    "mix",
    [
        lambda device, host: device + host,
        lambda device, host: host + device,
        lambda device, host: device @ host,
        lambda device, host: torch.cat((device, host)),
        lambda device, host: host.add_(device),
        lambda device, host: host[0, 0].add_(device[0, 0]),
        lambda device, host: device.index_select(0, host[0].long()),
        lambda device, host: torch.nn.functional.linear(device, host),
        lambda device, host: torch.where(device > 0, device, host),
    ],
)
def test_tensors_of_two_devices_are_refused(mix, xpu):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        mix(torch.ones(2, 2, device=xpu), torch.ones(2, 2))


def test_a_host_tensor_can_t_be_indexed_from_the_device(xpu):
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        torch.ones(4)[torch.tensor([0, 1], device=xpu)]


def test_a_host_scalar_goes_with_a_device_tensor(xpu):
    assert (torch.ones(2, device=xpu) * torch.tensor(3.0)).tolist() == [3, 3]


def test_numpy_wants_a_copy_first(xpu):
    with pytest.raises(TypeError, match=r"can't convert xpu:0 device type tensor to numpy"):
        torch.ones(2, device=xpu).numpy()


def test_a_device_that_is_not_there_is_refused(xpu):
    with pytest.raises(RuntimeError, match="device index is out of range"):
        torch.ones(1, device=f"xpu:{torch.xpu.device_count()}")


def test_memory_formats_survive_a_trip_to_the_device(xpu):
    image = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert image.to(xpu).is_contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(3, 4, 3).to(xpu, memory_format=torch.channels_last)
    assert layer(image.to(xpu)).is_contiguous(memory_format=torch.channels_last)


def test_pinned_memory_is_known_as_such(xpu):
    pinned = torch.arange(8.0).pin_memory()
    assert pinned.is_pinned()
    assert pinned[2:].is_pinned()
    assert torch.empty(3, pin_memory=True).is_pinned()
    assert not torch.arange(8.0).is_pinned()
    assert pinned.to(xpu, non_blocking=True).tolist() == list(range(8))


def test_random_numbers_follow_the_seed_and_the_state(xpu):
    torch.manual_seed(5)
    first = torch.randn(4, device=xpu)
    torch.xpu.manual_seed_all(5)
    assert torch.equal(torch.randn(4, device=xpu), first)
    state = torch.xpu.get_rng_state()
    second = torch.rand(4, device=xpu)
    with torch.random.fork_rng(devices=[0], device_type="xpu"):
        torch.rand(9, device=xpu)
    torch.xpu.set_rng_state(state)
    assert torch.equal(torch.rand(4, device=xpu), second)
    generator = torch.Generator(device=xpu).manual_seed(5)
    assert torch.equal(torch.randn(4, device=xpu, generator=generator), first)


@pytest.mark.needs("torch.accelerator")
def test_accelerator_names_the_device(xpu):
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator().type == "xpu"
    assert torch.accelerator.device_count() == torch.xpu.device_count()
    torch.accelerator.synchronize()
    torch.accelerator.set_device_index(0)
    assert torch.accelerator.current_device_index() == 0


def test_the_build_looks_like_one_with_xpu_support(xpu):
    assert vars(torch.version).get("xpu", "older") is not None
    assert torch.xpu.is_bf16_supported()
    assert torch.xpu.get_device_capability()["has_fp16"]
    assert torch.xpu.get_device_properties(xpu).name == torch.xpu.get_device_name(xpu)
    assert not torch.cuda.is_available()


def test_streams_and_events_order_work(xpu):
    start, end = torch.xpu.Event(enable_timing=True), torch.xpu.Event(enable_timing=True)
    side = torch.xpu.Stream()
    start.record()
    with torch.xpu.stream(side):
        assert torch.xpu.current_stream() == side
        total = torch.ones(100, device=xpu).sum()
        end.record()
    assert torch.xpu.current_stream() != side
    torch.xpu.current_stream().wait_stream(side)
    total.record_stream(torch.xpu.current_stream())
    assert total.item() == 100
    end.synchronize()
    assert end.query()
    assert side.query()
    assert start.elapsed_time(end) >= 0


@pytest.mark.parametrize("layer", [torch.nn.LSTM, torch.nn.GRU])
def test_a_recurrent_layer_trains_as_on_the_cpu(layer, xpu):
    torch.manual_seed(0)
    on_host = layer(4, 5, num_layers=2)
    on_device = copy.deepcopy(on_host).to(xpu)
    given = torch.randn(3, 2, 4)
    for module, tensor in ((on_host, given), (on_device, given.to(xpu))):
        module(tensor)[0].square().sum().backward()
    for mine, theirs in zip(on_device.parameters(), on_host.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.cpu(), theirs.grad)
