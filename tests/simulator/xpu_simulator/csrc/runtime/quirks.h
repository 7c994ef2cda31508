// Wrong or slow results to order by name, each of them one that a real combination of GPU, driver and torch gave.
// quirks.py has the names with their sources; aten/spoiler.cpp spoils the tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace xpusim {

enum class Quirk {
  kWrongTopk,
  kShortNonzero,
  kWrongConvGrad,
  kCorruptEmptyCache,
  kSlowChannelsLast,
  kWrongLinearBf16,
  kWrongFusedOptimizer,
  kWrongSideStreamCopy,
  kWrongForeachCopy,
  kWrongForeachLerp,
  kWrongBatchNorm,
  kWrongUnscale,
  kWrongGridSample,
  kWrongSmallTopk,
  kWrongSoftmax,
  kWrongCumsum,
  kCount,
};

// Names separated by commas, in place of those ordered before. Throws DeviceError at a name that it doesn't know, and
// changes nothing then.
void order_quirks(const std::string& names);

bool any_quirk() noexcept;
bool has_quirk(Quirk quirk) noexcept;

// Bytes of device memory that were written since the host last waited, where kCorruptEmptyCache is on: `block` is the
// start of their allocation, `poison` what they are spoilt with.
struct Pending {
  const void* block;
  void* pointer;
  size_t bytes;
  unsigned char poison;
};

void note_pending(const Pending& written);
// The host waited for the device: nothing is pending.
void forget_pending() noexcept;
// Calls `spoil` with each, and forgets them.
void take_pending(void (*spoil)(const Pending&));

}  // namespace xpusim
