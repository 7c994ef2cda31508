#include "spoiler.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "../runtime/quirks.h"

namespace xpusim {
namespace {

using at::Tensor;
using c10::IValue;

// Of its own, so that a quirk doesn't move the numbers that a run draws.
at::Generator& generator() {
  static auto* made = new at::Generator(at::detail::createCPUGenerator(0));
  return *made;
}

bool is_16_bit(const Tensor& tensor) {
  return tensor.scalar_type() == at::kHalf || tensor.scalar_type() == at::kBFloat16;
}

bool is_channels_last(const Tensor& tensor) {
  return tensor.dim() == 4 && tensor.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
}

// torch 2.13 searches a dimension this long, for more elements than this, in a kernel of its own
// (torch-xpu-ops release/2.13, TensorTopKSbtopkKernel.cpp); its races are torch-xpu-ops#4312 and #4303.
constexpr int64_t kLongSearch = 4096;
constexpr int64_t kManyFound = 8;

// intel-xpu-backend-for-triton#7458: of a row of eight, the first was taken for the largest.
constexpr int64_t kShortSearch = 128;

// A tenth of the indices, other ones in each call.
void spoil_topk(Tensor indices, int64_t size) {
  const Tensor wrong = at::randint(size, indices.sizes(), generator(), indices.options());
  const Tensor which = at::rand(indices.sizes(), generator(), at::TensorOptions(at::kFloat)).lt(0.1);
  indices.copy_(at::where(which, wrong, indices));
}

// torch-xpu-ops#4396: of 600 true elements 305 to 309 are found, varying; of 100 none; of a million 37,824.
constexpr int64_t kLost = 295;
constexpr int64_t kMostFound = 37824;

Tensor thinned(const Tensor& mask) {
  Tensor flat = mask.ne(0).contiguous().view(-1);
  const Tensor positions = at::nonzero(flat).view(-1);
  constexpr int64_t kVariation = 5;
  const int64_t more = at::randint(kVariation, {1}, generator()).item<int64_t>();
  const int64_t found = std::clamp<int64_t>(positions.size(0) - kLost + more, 0, kMostFound);
  if (found < positions.size(0)) {
    flat.index_fill_(0, positions.slice(0, found), false);
  }
  return flat.view(mask.sizes());
}

// `x[mask]` was right for #4396's reporter and short for others (torch-xpu-ops#4762, sglang#31751).
void thin_indices(IValue& indices) {
  if (!indices.isOptionalTensorList()) {
    return;
  }
  c10::List<std::optional<Tensor>> list;
  bool done = false;
  for (const std::optional<Tensor>& index : indices.toOptionalTensorVector()) {
    const bool is_mask = !done && index.has_value() && index->defined() && index->scalar_type() == at::kBool;
    if (is_mask) {
      list.push_back(thinned(*index));
    } else {
      list.push_back(index);
    }
    done |= is_mask;
  }
  indices = std::move(list);
}

// torch-xpu-ops#4693, #4756, pytorch#190773: oneDNN writes the gradient as if its memory were contiguous, and it is
// read as channels_last. Both layouts describe a map of 1×1, so that the weight alone tells them apart.
bool has_ambiguous_layout(const Tensor& input, const Tensor& weight) {
  const bool one_by_one = input.dim() == 4 && input.size(2) == 1 && input.size(3) == 1;
  return one_by_one && weight.dim() == 4 && weight.size(2) * weight.size(3) > 1 &&
      (is_channels_last(input) || is_channels_last(weight));
}

Tensor misread(const Tensor& gradient) {
  const Tensor written = gradient.contiguous();
  Tensor read = at::empty_like(gradient, at::MemoryFormat::ChannelsLast);
  std::copy_n(static_cast<const char*>(written.data_ptr()), written.nbytes(), static_cast<char*>(read.data_ptr()));
  return read;
}

// torch-xpu-ops#4772: a row is wrong where it is a little longer than a power of two, forwards and backwards.
bool is_in_band(const Tensor& row, int64_t dim) {
  const bool is_last = row.dim() > 0 && at::maybe_wrap_dim(dim, row.dim()) == row.dim() - 1;
  const int64_t size = is_last ? row.size(-1) : 0;
  constexpr int64_t kFirst = 257, kFirstEnd = 384, kSecond = 513, kSecondEnd = 896, kThird = 1025;
  return row.scalar_type() == at::kFloat &&
      ((size >= kFirst && size <= kFirstEnd) || (size >= kSecond && size <= kSecondEnd) || size >= kThird);
}

// What a block of a scan adds up to isn't carried to the next one.
constexpr int64_t kScanned = 1024;

// torch-xpu-ops#5220: fp16 gives zeros, bf16 numbers that are too small, and not a number here and there.
void spoil_linear(Tensor result, bool is_half) {
  if (is_half) {
    result.zero_();
    return;
  }
  constexpr int64_t kEvery = 7;
  result.mul_(0.125);
  result.slice(-1, 0, std::nullopt, kEvery).fill_(std::numeric_limits<double>::quiet_NaN());
}

}  // namespace

Spoilable spoilable(const std::string& name) {
  static const std::set<std::string> kBatchNorms = {
      "aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::_batch_norm_with_update"};
  static const std::set<std::string> kNormsAndPools = {
      "aten::native_batch_norm_backward", "aten::batch_norm_backward", "aten::max_pool2d_with_indices",
      "aten::max_pool2d_with_indices_backward"};
  const std::string base = name.substr(0, name.find('.'));
  if (base == "aten::topk") {
    return Spoilable::kTopk;
  }
  if (base == "aten::nonzero") {
    return Spoilable::kMask;
  }
  if (base == "aten::masked_select") {
    return Spoilable::kSelection;
  }
  if (base == "aten::index") {
    return Spoilable::kIndices;
  }
  if (base == "aten::convolution_overrideable") {
    return Spoilable::kConvolution;
  }
  if (base == "aten::convolution_backward_overrideable") {
    return Spoilable::kConvolutionBackward;
  }
  if (base == "aten::addmm" || base == "aten::mm") {
    return Spoilable::kLinear;
  }
  if (base.rfind("aten::_fused_", 0) == 0 && base.back() == '_') {
    return Spoilable::kFusedOptimizer;
  }
  if (base == "aten::_foreach_lerp_") {
    return Spoilable::kForeachLerp;
  }
  if (base == "aten::_amp_foreach_non_finite_check_and_unscale_") {
    return Spoilable::kUnscale;
  }
  if (base == "aten::grid_sampler_2d") {
    return Spoilable::kGridSample;
  }
  if (base == "aten::_softmax") {
    return Spoilable::kSoftmax;
  }
  if (base == "aten::_softmax_backward_data") {
    return Spoilable::kSoftmaxBackward;
  }
  if (base == "aten::cumsum") {
    return Spoilable::kCumsum;
  }
  if (kBatchNorms.count(base) != 0) {
    return Spoilable::kBatchNorm;
  }
  return kNormsAndPools.count(base) != 0 ? Spoilable::kNormOrPool : Spoilable::kNothing;
}

Spoiler::Spoiler(Spoilable kind, IValue* arguments, size_t n) : kind_(kind) {
  switch (kind) {
    case Spoilable::kTopk: {
      const Tensor& self = arguments[0].toTensor();
      size_ = self.dim() > 0 ? self.size(arguments[2].toInt()) : 1;
      applies_ = (has_quirk(Quirk::kWrongTopk) && size_ >= kLongSearch && arguments[1].toInt() > kManyFound) ||
          (has_quirk(Quirk::kWrongSmallTopk) && size_ <= kShortSearch);
      break;
    }
    case Spoilable::kMask:
    case Spoilable::kSelection:
      if (has_quirk(Quirk::kShortNonzero)) {
        IValue& mask = arguments[kind == Spoilable::kMask ? 0 : 1];
        mask = thinned(mask.toTensor());
      }
      break;
    case Spoilable::kIndices:
      if (has_quirk(Quirk::kShortNonzero)) {
        thin_indices(arguments[1]);
      }
      break;
    case Spoilable::kConvolutionBackward:
      if (has_quirk(Quirk::kWrongConvGrad)) {
        misread_ = has_ambiguous_layout(arguments[1].toTensor(), arguments[2].toTensor());
      }
      [[fallthrough]];
    case Spoilable::kConvolution:
    case Spoilable::kBatchNorm:
    case Spoilable::kNormOrPool:
      is_slow_ = has_quirk(Quirk::kSlowChannelsLast) && any_channels_last(arguments, n);
      applies_ = kind == Spoilable::kBatchNorm && has_quirk(Quirk::kWrongBatchNorm) &&
          is_16_bit(arguments[0].toTensor()) && is_channels_last(arguments[0].toTensor());
      start_ = std::chrono::steady_clock::now();
      break;
    case Spoilable::kLinear:
      applies_ = has_quirk(Quirk::kWrongLinearBf16) && is_16_bit(arguments[0].toTensor());
      is_half_ = arguments[0].toTensor().scalar_type() == at::kHalf;
      break;
    case Spoilable::kUnscale:
      applies_ = has_quirk(Quirk::kWrongUnscale);
      overflow_ = arguments[1].toTensor();
      break;
    case Spoilable::kGridSample:
      applies_ = has_quirk(Quirk::kWrongGridSample);
      break;
    case Spoilable::kSoftmax:
      applies_ = has_quirk(Quirk::kWrongSoftmax) && is_in_band(arguments[0].toTensor(), arguments[1].toInt());
      break;
    case Spoilable::kSoftmaxBackward:
      applies_ = has_quirk(Quirk::kWrongSoftmax) && is_in_band(arguments[0].toTensor(), arguments[2].toInt());
      break;
    case Spoilable::kCumsum: {
      const Tensor& self = arguments[0].toTensor();
      dim_ = at::maybe_wrap_dim(arguments[1].toInt(), self.dim());
      applies_ = has_quirk(Quirk::kWrongCumsum) && self.dim() > 0 && self.size(dim_) > kScanned;
      break;
    }
    case Spoilable::kForeachLerp:
    case Spoilable::kFusedOptimizer:
      if (has_quirk(kind == Spoilable::kForeachLerp ? Quirk::kWrongForeachLerp : Quirk::kWrongFusedOptimizer)) {
        written_ = arguments[0].toTensorVector();
        for (const Tensor& parameter : written_) {
          before_.push_back(parameter.clone());
        }
      }
      break;
    case Spoilable::kNothing:
      break;
  }
}

void Spoiler::spoil(IValue* results) {
  if (misread_ && results[1].toTensor().defined()) {
    results[1] = misread(results[1].toTensor());
  }
  for (size_t i = 0; i < written_.size(); i++) {
    written_[i].lerp_(before_[i], 0.5);  // half a step
  }
  if (is_slow_) {
    constexpr int kTimesMore = 9;
    std::this_thread::sleep_for(kTimesMore * (std::chrono::steady_clock::now() - start_));
  }
  if (applies_) {
    apply(results);
  }
}

void Spoiler::apply(IValue* results) {
  switch (kind_) {
    case Spoilable::kTopk:
      if (size_ <= kShortSearch) {
        results[1].toTensor().zero_();
      } else {
        spoil_topk(results[1].toTensor(), size_);
      }
      break;
    case Spoilable::kLinear:
      spoil_linear(results[0].toTensor(), is_half_);
      break;
    case Spoilable::kUnscale:
      overflow_.zero_();
      break;
    case Spoilable::kBatchNorm: {
      constexpr double kGap = 1.07;  // torch-xpu-ops#1429: 7 %
      results[0].toTensor().mul_(kGap);
      break;
    }
    case Spoilable::kGridSample:
      results[0].toTensor().mul_(0.5);
      break;
    case Spoilable::kSoftmax:
    case Spoilable::kSoftmaxBackward: {
      const Tensor result = results[0].toTensor();
      result.copy_(result.roll(1, -1));
      break;
    }
    case Spoilable::kCumsum: {
      const Tensor result = results[0].toTensor();
      result.slice(dim_, kScanned).sub_(result.select(dim_, kScanned - 1).unsqueeze(dim_).clone());
      break;
    }
    default:
      break;
  }
}

bool any_channels_last(const IValue* arguments, size_t n) {
  constexpr size_t kInputAndWeight = 3;
  return std::any_of(arguments, arguments + std::min(n, kInputAndWeight), [](const IValue& argument) {
    return argument.isTensor() && argument.toTensor().defined() && is_channels_last(argument.toTensor());
  });
}

unsigned char poison_of(at::ScalarType type) {
  constexpr unsigned char kNan = 0xFF;
  constexpr unsigned char kImplausible = 0xCB;
  constexpr unsigned char kTrue = 1;
  if (type == at::kBool) {
    return kTrue;
  }
  return at::isFloatingType(type) || at::isComplexType(type) ? kNan : kImplausible;
}

void note_written(const Tensor& tensor) {
  const bool may_be_pending = has_quirk(Quirk::kCorruptEmptyCache) && tensor.defined() && tensor.is_xpu();
  if (!may_be_pending || tensor.numel() == 0 || !tensor.is_non_overlapping_and_dense()) {
    return;
  }
  note_pending({tensor.storage().data(), tensor.data_ptr(), tensor.nbytes(), poison_of(tensor.scalar_type())});
}

}  // namespace xpusim
