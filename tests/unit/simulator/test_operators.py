"""An operator gives on `xpu` what it gives on `cpu`: values, gradients, types, strides."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.testing import assert_close

pytestmark = pytest.mark.xpu_hardware


def _inputs():
    """Make the tensors that the cases name by their parameters."""
    generator = torch.Generator().manual_seed(0)

    def floats(*size):
        return torch.randn(*size, generator=generator)

    return {
        "a": floats(4, 6),
        "b": floats(4, 6),
        "m": floats(6, 5),
        "square": floats(5, 5) + 5 * torch.eye(5),
        "batch": floats(2, 4, 6),
        "batch_m": floats(2, 6, 3),
        "image": floats(2, 4, 8, 8),
        "weight": floats(6, 4, 3, 3),
        "transposed_weight": floats(4, 6, 3, 3),
        "depthwise": floats(4, 1, 3, 3),
        "bias": floats(6),
        "row": floats(6),
        "scale": floats(4),
        "positive": floats(4, 6).abs() + 0.1,
        "unit": torch.rand(4, 6, generator=generator),
        "index": torch.tensor([2, 0, 1]),
        "target": torch.tensor([1, 0, 5, 3]),
        "integers": torch.randint(0, 9, (4, 6), generator=generator),
        "mask": torch.rand(4, 6, generator=generator) > 0.5,
        "boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 5.0, 5.0], [6.0, 6.0, 7.0, 7.0]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }


def _gather_index(integers):
    return integers % 4


ELEMENTWISE = {
    "add": lambda a, b: a + b,
    "add alpha": lambda a, b: torch.add(a, b, alpha=2),
    "add number": lambda a: a + 1.5,
    "subtract from number": lambda a: 1 - a,
    "multiply broadcast": lambda a, row: a * row,
    "divide": lambda a, positive: a / positive,
    "floor divide": lambda integers: integers // 2,
    "remainder": lambda integers: integers % 3,
    "power": lambda positive: positive**1.5,
    "power of tensor": lambda positive, a: torch.pow(positive, a),
    "exp": lambda a: a.exp(),
    "log": lambda positive: positive.log(),
    "log1p": lambda positive: positive.log1p(),
    "sqrt": lambda positive: positive.sqrt(),
    "rsqrt": lambda positive: positive.rsqrt(),
    "reciprocal": lambda positive: positive.reciprocal(),
    "abs": lambda a: a.abs(),
    "neg": lambda a: -a,
    "sign": lambda a: a.sign(),
    "sin": lambda a: a.sin(),
    "cos": lambda a: a.cos(),
    "tanh": lambda a: a.tanh(),
    "atan": lambda a: a.atan(),
    "atan2": lambda a, b: torch.atan2(a, b),
    "erf": lambda a: a.erf(),
    "sigmoid": lambda a: a.sigmoid(),
    "floor": lambda a: a.floor(),
    "round": lambda a: a.round(),
    "trunc": lambda a: a.trunc(),
    "clamp": lambda a: a.clamp(-0.5, 0.5),
    "clamp min": lambda a: a.clamp_min(0),
    "maximum": lambda a, b: torch.maximum(a, b),
    "minimum": lambda a, b: torch.minimum(a, b),
    "lerp": lambda a, b: torch.lerp(a, b, 0.3),
    "addcmul": lambda a, b, unit: torch.addcmul(a, b, unit, value=0.5),
    "addcdiv": lambda a, b, positive: torch.addcdiv(a, b, positive, value=0.5),
    "where": lambda mask, a, b: torch.where(mask, a, b),
    "masked fill": lambda a, mask: a.masked_fill(mask, 7.0),
    "isfinite": lambda a: torch.isfinite(a / 0),
    "nan to num": lambda a: torch.nan_to_num(a.detach() / 0),
    "comparison": lambda a, b: (a > b) & (a != b) | (a <= 0),
    "logical not": lambda mask: ~mask,
    "bitwise": lambda integers: (integers & 3) | (integers ^ 5),
    "type promotion": lambda integers, a: integers + a,
    "to half and back": lambda a: a.half().float() + a.bfloat16().float(),
    "to integer": lambda a: a.to(torch.int32),
}

ACTIVATIONS_AND_LOSSES = {
    "relu": lambda a: F.relu(a),
    "leaky relu": lambda a: F.leaky_relu(a, 0.1),
    "elu": lambda a: F.elu(a),
    "gelu": lambda a: F.gelu(a),
    "silu": lambda a: F.silu(a),
    "mish": lambda a: F.mish(a),
    "hardswish": lambda a: F.hardswish(a),
    "hardsigmoid": lambda a: F.hardsigmoid(a),
    "softplus": lambda a: F.softplus(a),
    "logsigmoid": lambda a: F.logsigmoid(a),
    "prelu": lambda image, scale: F.prelu(image, scale),
    "glu": lambda a: F.glu(a),
    "softmax": lambda a: a.softmax(-1),
    "log softmax": lambda a: a.log_softmax(0),
    "cross entropy": lambda a, target: F.cross_entropy(a, target, label_smoothing=0.1),
    "nll": lambda a, target: F.nll_loss(a.log_softmax(-1), target, reduction="none"),
    "binary cross entropy": lambda unit, mask: F.binary_cross_entropy(unit, mask.float()),
    "binary cross entropy with logits": lambda a, mask: F.binary_cross_entropy_with_logits(
        a, mask.float(), reduction="none"
    ),
    "mse": lambda a, b: F.mse_loss(a, b),
    "l1": lambda a, b: F.l1_loss(a, b, reduction="sum"),
    "smooth l1": lambda a, b: F.smooth_l1_loss(a, b),
    "huber": lambda a, b: F.huber_loss(a, b),
    "kl": lambda a, unit: F.kl_div(a.log_softmax(-1), unit, reduction="batchmean"),
    "cosine": lambda a, b: F.cosine_similarity(a, b),
}

LAYERS = {
    "linear": lambda a, m, row: F.linear(a, m.t()) + row[:5],
    "mm": lambda a, m: a @ m,
    "addmm": lambda a, m, row: torch.addmm(row[:5], a, m),
    "bmm": lambda batch, batch_m: torch.bmm(batch, batch_m),
    "bmm outer": lambda batch: torch.bmm(batch[:, :, :1], batch[:, :1, :]),
    "baddbmm": lambda batch, batch_m: torch.baddbmm(batch[:, :, :3], batch, batch_m),
    "matmul broadcast": lambda batch, m: batch @ m,
    "einsum": lambda batch, m: torch.einsum("bij,jk->bik", batch, m),
    "outer": lambda row, scale: torch.outer(row, scale),
    "conv2d": lambda image, weight, bias: F.conv2d(image, weight, bias, padding=1),
    "conv2d strided": lambda image, weight: F.conv2d(image, weight, stride=2, padding=1),
    "conv2d dilated": lambda image, weight: F.conv2d(image, weight, dilation=2),
    "conv2d depthwise": lambda image, depthwise: F.conv2d(image, depthwise, groups=4),
    "conv2d channels last": lambda image, weight: F.conv2d(image.contiguous(memory_format=torch.channels_last), weight),
    "conv1d": lambda batch, m: F.conv1d(batch, m[:4].t()[:, :, None]),
    "conv transpose": lambda image, transposed_weight, bias: F.conv_transpose2d(
        image, transposed_weight, bias, stride=2, padding=1, output_padding=1
    ),
    "max pool": lambda image: F.max_pool2d(image, 5, stride=1, padding=2),
    "average pool": lambda image: F.avg_pool2d(image, 2),
    "adaptive pool": lambda image: F.adaptive_avg_pool2d(image, 1),
    "adaptive max pool": lambda image: F.adaptive_max_pool2d(image, 3),
    "upsample nearest": lambda image: F.interpolate(image, scale_factor=2, mode="nearest"),
    "upsample bilinear": lambda image: F.interpolate(image, size=(11, 5), mode="bilinear", align_corners=False),
    "upsample bicubic": lambda image: F.interpolate(image, scale_factor=2, mode="bicubic"),
    "grid sample": lambda image: F.grid_sample(image, image[:, :2].permute(0, 2, 3, 1), align_corners=False),
    "pad": lambda image: F.pad(image, (1, 2, 0, 1), value=3.0),
    "pad reflect": lambda image: F.pad(image, (1, 1, 1, 1), mode="reflect"),
    "pixel shuffle": lambda image: F.pixel_shuffle(image, 2),
    "unfold": lambda image: F.unfold(image, 3),
    "batch norm": lambda image, scale: F.batch_norm(image, None, None, scale, scale, training=True),
    "batch norm eval": lambda image, scale: F.batch_norm(image, scale.detach(), scale.detach().abs() + 1),
    "layer norm": lambda a, row: F.layer_norm(a, (6,), row, row),
    "group norm": lambda image, scale: F.group_norm(image, 2, scale, scale),
    "embedding": lambda integers, batch: F.embedding(integers % 4, batch[0]),
    "one hot": lambda target: F.one_hot(target, 6),
    "attention": lambda batch: F.scaled_dot_product_attention(batch, batch, batch),
    "attention causal": lambda batch: F.scaled_dot_product_attention(batch, batch, batch, is_causal=True),
    "normalize": lambda a: F.normalize(a),
}

REDUCTIONS = {
    "sum": lambda a: a.sum(),
    "sum dim": lambda batch: batch.sum((0, 2), keepdim=True),
    "mean": lambda a: a.mean(1),
    "prod": lambda a: a.prod(1),
    "amax": lambda a: a.amax(0),
    "max": lambda a: a.max(),
    "max dim": lambda a: a.max(1),
    "argmax": lambda a: a.argmax(1),
    "min dim": lambda a: a.min(0),
    "std": lambda a: a.std(),
    "var mean": lambda a: torch.var_mean(a, 0),
    "norm": lambda a: a.norm(),
    "vector norm": lambda a: torch.linalg.vector_norm(a, 1, 0),
    "any all": lambda mask: (mask.any(), mask.all(0)),
    "cumsum": lambda a: a.cumsum(0),
    "cumprod": lambda a: a.cumprod(1),
    "logsumexp": lambda a: a.logsumexp(1),
    "topk": lambda a: a.topk(3, 1),
    "sort": lambda a: a.sort(1, descending=True),
    "argsort": lambda a: a.argsort(0),
    "median": lambda a: a.median(),
    "quantile": lambda a: a.quantile(0.3),
    "bincount": lambda target: target.bincount(minlength=8),
    "unique": lambda integers: integers.unique(return_counts=True),
    "nonzero": lambda mask: mask.nonzero(),
    "count nonzero": lambda mask: torch.count_nonzero(mask, 0),
    "searchsorted": lambda row, a: torch.searchsorted(row.detach().sort().values, a.detach()),
}

INDEXING = {
    "index": lambda a, index: a[index],
    "index with host tensor": lambda a: a[torch.tensor([3, 1])],
    "index pair": lambda a, index: a[index, index],
    "mask": lambda a, mask: a[mask],
    "masked select": lambda a, mask: a.masked_select(mask),
    "slice": lambda a: a[1:, ::2],
    "ellipsis": lambda batch: batch[..., None, -1],
    "gather": lambda a, integers: a.gather(0, _gather_index(integers)),
    "scatter add": lambda a, integers: torch.zeros_like(a).scatter_add(0, _gather_index(integers), a),
    "scatter": lambda a, integers: a.scatter(0, _gather_index(integers), 1.0),
    "index select": lambda a, index: a.index_select(0, index),
    "index add": lambda a, index: a.index_add(0, index, a[:3]),
    "index put": lambda a, index: a.detach().clone().index_put((index,), a[:3], accumulate=True),
    "take along dim": lambda a, integers: a.take_along_dim(_gather_index(integers), 0),
    "cat": lambda a, b: torch.cat((a, b), 1),
    "stack": lambda a, b: torch.stack((a, b), -1),
    "split": lambda a: a.split((2, 4), 1),
    "chunk": lambda a: a.chunk(2),
    "unbind": lambda a: a.unbind(0),
    "repeat": lambda a: a.repeat(2, 1),
    "repeat interleave": lambda a: a.repeat_interleave(2, 0),
    "expand": lambda row: row.expand(3, 6) * 1,
    "roll flip": lambda a: a.roll(2, 1).flip(0),
    "tril triu": lambda a: a.tril() + a.triu(1),
    "diag": lambda square: square.diag() + square.diagonal(),
    "transpose": lambda batch: batch.transpose(1, 2).contiguous(),
    "permute reshape": lambda image: image.permute(0, 2, 3, 1).reshape(2, -1),
    "flatten": lambda image: image.flatten(1),
    "squeeze": lambda a: a.unsqueeze(1).squeeze(),
    "movedim": lambda image: image.movedim(1, -1),
    "tensor split": lambda a: torch.tensor_split(a, 3, 1),
    "meshgrid": lambda row, scale: torch.meshgrid(row, scale, indexing="ij"),
    "cdist": lambda a, b: torch.cdist(a, b),
    "view as complex": lambda batch: torch.view_as_complex(batch.reshape(2, 4, 3, 2)).abs(),
}

OTHERS = {
    "inverse": lambda square: torch.linalg.inv(square),
    "solve": lambda square, m: torch.linalg.solve(square, m[:5]),
    "cholesky": lambda square: torch.linalg.cholesky(square @ square.t()),
    "determinant": lambda square: torch.linalg.det(square),
    "fft": lambda a: torch.fft.rfft(a).abs(),
    "arange like": lambda a: torch.arange(a.shape[1], device=a.device) * 2,
    "linspace": lambda a: torch.linspace(0, 1, 7, device=a.device),
    "full like": lambda a: torch.full_like(a, 3) + torch.zeros_like(a) + torch.ones_like(a) + a.new_tensor([1.0]),
    "eye": lambda a: torch.eye(3, device=a.device),
    "histc": lambda a: torch.histc(a.detach(), 5, -2, 2),
    "complex": lambda a, b: torch.complex(a, b).abs(),
}

CASES = ELEMENTWISE | ACTIVATIONS_AND_LOSSES | LAYERS | REDUCTIONS | INDEXING | OTHERS


def _run(case, device):
    """Run a case and its backward pass; return its results and the gradients of what it was given."""
    names = case.__code__.co_varnames[: case.__code__.co_argcount]
    tensors = {name: tensor.to(device) for name, tensor in _inputs().items() if name in names}
    for tensor in tensors.values():
        tensor.requires_grad_(tensor.is_floating_point())
    results = case(**tensors)
    results = (results,) if isinstance(results, torch.Tensor) else tuple(results)
    differentiable = [result for result in results if result.requires_grad]
    if differentiable:
        sum((result * result).sum() for result in differentiable).backward()
    return results, [tensor.grad for tensor in tensors.values()]


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_it_gives_on_the_cpu(name, xpu):
    results, gradients = _run(CASES[name], xpu)
    expected_results, expected_gradients = _run(CASES[name], torch.device("cpu"))
    for result, expected in zip((*results, *gradients), (*expected_results, *expected_gradients), strict=True):
        if expected is None:
            assert result is None
            continue
        assert result.device == xpu
        assert result.dtype == expected.dtype
        assert_close(result.cpu(), expected, rtol=1e-3, atol=1e-4)


def test_non_maximum_suppression_of_torchvision_runs_on_the_device(xpu):
    from torchvision.ops import nms, roi_align

    given = _inputs()
    kept = nms(given["boxes"].to(xpu), given["scores"].to(xpu), 0.3)
    assert kept.device == xpu
    assert kept.tolist() == [0, 2]
    # It runs through the device's fallback, which a question for a kernel doesn't see (torch-xpu-ops' XPUFallback.cpp).
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::nms", "XPU")
    rois = torch.cat((torch.zeros(3, 1), given["boxes"]), 1)
    assert_close(roi_align(given["image"].to(xpu), rois.to(xpu), 2).cpu(), roi_align(given["image"], rois, 2))


IN_PLACE = {
    "add_": lambda a, b: a.add_(b),
    "mul_ number": lambda a, b: a.mul_(2),
    "sub_ on a view": lambda a, b: a[1:, ::2].sub_(b[1:, ::2]),
    "operator": lambda a, b: a.__iadd__(b),
    "set a slice": lambda a, b: a.__setitem__((slice(0, 2),), b[:2]),
    "set by mask": lambda a, b: a.__setitem__(b > 0, 0),
    "set by mask from tensor": lambda a, b: a.__setitem__(b > 0, b[b > 0]),
    "set by index": lambda a, b: a.__setitem__(torch.tensor([0, 2], device=a.device), b[:2]),
    "copy_ of a transpose": lambda a, b: a.t().copy_(b.t()),
    "fill_": lambda a, b: a.t()[2].fill_(9),
    "zero_": lambda a, b: a.zero_(),
    "clamp_": lambda a, b: a.clamp_(-1, 1),
    "masked_fill_": lambda a, b: a.masked_fill_(b > 0, -1),
    "scatter_": lambda a, b: a.scatter_(0, (b > 0).long(), b),
    "index_add_": lambda a, b: a.index_add_(0, torch.tensor([1, 1], device=a.device), b[:2]),
    "relu_": lambda a, b: F.relu_(a),
    "lerp_": lambda a, b: a.lerp_(b, 0.5),
    "resize_ larger": lambda a, b: a.resize_(30)[24:].zero_(),
    "squeeze_": lambda a, b: a.unsqueeze_(0),
    "set_": lambda a, b: a.set_(b),
    "foreach": lambda a, b: torch._foreach_add_([a, b], [b, a]),
    "out of a sum": lambda a, b: torch.add(a, b, out=a),
    "out resized": lambda a, b: torch.mm(b, b.t(), out=a.resize_(0)),
    "out of a maximum": lambda a, b: torch.max(b, 1, out=(a.resize_(0), torch.empty(0, dtype=torch.long).to(b.device))),
    "out into a view": lambda a, b: torch.mul(a[:2], b[:2], out=a[2:]),
}


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
def test_writing_into_a_tensor_does_what_it_does_on_the_cpu(name, xpu):
    written = {}
    for device in (xpu, torch.device("cpu")):
        inputs = _inputs()
        a, b = inputs["a"].to(device), inputs["b"].to(device)
        whole = a
        IN_PLACE[name](a, b)
        assert whole.device == device
        written[device] = whole.cpu(), b.cpu()
    assert_close(written[xpu], written[torch.device("cpu")])
