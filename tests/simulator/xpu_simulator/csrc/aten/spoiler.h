// Spoils what an operator gives, where a quirk is ordered.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <chrono>
#include <string>
#include <vector>

namespace xpusim {

// What a quirk can spoil an operator by.
enum class Spoilable {
  kNothing,
  kTopk,
  kMask,             // nonzero(mask)
  kSelection,        // masked_select(values, mask)
  kIndices,          // index(values, indices), one of which may be a mask
  kConvolution,
  kConvolutionBackward,
  kBatchNorm,
  kNormOrPool,         // what is slow in channels_last, and nothing else
  kLinear,
  kFusedOptimizer,
  kForeachLerp,
  kUnscale,            // of gradients, which notes whether one is infinite
  kGridSample,
  kSoftmax,            // along its last dimension
  kSoftmaxBackward,
  kCumsum,
};

Spoilable spoilable(const std::string& operator_name);

// Lives around one kernel, which runs on host tensors.
class Spoiler {
 public:
  // Looks at the arguments, and may replace some.
  Spoiler(Spoilable kind, c10::IValue* arguments, size_t n);
  // Spoils the results.
  void spoil(c10::IValue* results);

 private:
  void apply(c10::IValue* results);

  const Spoilable kind_;
  int64_t size_ = 0;                  // of topk: of the dimension that is searched
  int64_t dim_ = 0;                   // of cumsum: which dimension
  bool is_half_ = false;              // of a product's tensors: fp16, not bf16
  bool misread_ = false;              // a convolution's weight gradient
  bool is_slow_ = false;
  bool applies_ = false;
  std::vector<at::Tensor> written_;   // in place, half of which is taken back
  std::vector<at::Tensor> before_;
  at::Tensor overflow_;               // whether a gradient is infinite
  std::chrono::steady_clock::time_point start_;
};

// Whether an operator's input, weight or incoming gradient is laid out in channels_last.
bool any_channels_last(const c10::IValue* arguments, size_t n);

// What memory reads that was to be written and wasn't: not a number where the type has it, no plausible value otherwise.
unsigned char poison_of(at::ScalarType type);

// A tensor on the device was written: it is pending until the host waits.
void note_written(const at::Tensor& tensor);

}  // namespace xpusim
