#include "quirks.h"

#include <array>
#include <atomic>
#include <mutex>
#include <sstream>
#include <utility>
#include <vector>

#include "errors.h"

namespace xpusim {
namespace {

constexpr size_t kQuirks = static_cast<size_t>(Quirk::kCount);

constexpr std::array<const char*, kQuirks> kNames = {
    "wrong_topk",         "short_nonzero",     "wrong_conv_grad",       "corrupt_empty_cache",
    "slow_channels_last", "wrong_linear_bf16", "wrong_fused_optimizer", "wrong_side_stream_copy",
    "wrong_foreach_copy", "wrong_foreach_lerp", "wrong_batch_norm",     "wrong_unscale",
    "wrong_grid_sample",  "wrong_small_topk",  "wrong_softmax",         "wrong_cumsum",
};

std::atomic<uint32_t> g_ordered{0};

std::mutex g_mutex;

std::vector<Pending>& pending() {
  static auto* list = new std::vector<Pending>;
  return *list;
}

uint32_t bit_of(const std::string& name) {
  for (size_t i = 0; i < kQuirks; i++) {
    if (name == kNames[i]) {
      return 1U << i;
    }
  }
  throw DeviceError("No such quirk: " + name);
}

}  // namespace

void order_quirks(const std::string& names) {
  uint32_t ordered = 0;
  std::istringstream list(names);
  std::string name;
  while (std::getline(list, name, ',')) {
    ordered |= bit_of(name);
  }
  forget_pending();
  g_ordered = ordered;
}

bool any_quirk() noexcept {
  return g_ordered.load(std::memory_order_relaxed) != 0;
}

bool has_quirk(Quirk quirk) noexcept {
  return (g_ordered.load(std::memory_order_relaxed) & 1U << static_cast<uint32_t>(quirk)) != 0;
}

void note_pending(const Pending& written) {
  std::lock_guard<std::mutex> lock(g_mutex);
  pending().push_back(written);
}

void forget_pending() noexcept {
  if (!has_quirk(Quirk::kCorruptEmptyCache)) {
    return;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  pending().clear();
}

void take_pending(void (*spoil)(const Pending&)) {
  std::vector<Pending> taken;
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    taken.swap(pending());
  }
  for (const Pending& written : taken) {
    spoil(written);
  }
}

}  // namespace xpusim
