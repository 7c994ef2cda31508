// What was done on the simulated device. Counters only ever grow: a reader subtracts two readings.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>

namespace xpusim {

enum class Counter {
  kLaunches,
  kViews,
  kH2DPinnedNonBlocking,
  kH2DPinnedBlocking,
  kH2DPageableNonBlocking,
  kH2DPageableBlocking,
  kH2DBytes,
  kD2HNonBlocking,
  kD2HBlocking,
  kD2HBytes,
  kD2D,
  kPeerToPeer,
  kItemSyncs,
  kImplicitSyncs,
  kDeviceSyncs,
  kStreamSyncs,
  kEventSyncs,
  kAllocations,
  kPinnedAllocations,
  kOutOfMemory,
  kMetadataCopies,
  kBarriers,
  kPrimitiveHits,
  kPrimitiveMisses,
  kChannelsLastPrimitives,
  kCollectives,
  kCollectiveBytes,
  kKernelNanoseconds,
  kCount,
};

// The name of every counter, in the enumeration's order.
const std::array<const char*, static_cast<size_t>(Counter::kCount)>& counter_names();

void count(Counter counter, int64_t amount = 1) noexcept;
int64_t read(Counter counter) noexcept;

// Counts how long the host computes or copies in the device's place.
class KernelTimer {
 public:
  KernelTimer() : began_(std::chrono::steady_clock::now()) {}
  ~KernelTimer() {
    const auto took = std::chrono::steady_clock::now() - began_;
    count(Counter::kKernelNanoseconds, std::chrono::duration_cast<std::chrono::nanoseconds>(took).count());
  }
  KernelTimer(const KernelTimer&) = delete;
  KernelTimer& operator=(const KernelTimer&) = delete;

 private:
  std::chrono::steady_clock::time_point began_;
};

// An operator's own counters; they live as long as the process.
struct OperatorCounters {
  explicit OperatorCounters(std::string operator_name) : name(std::move(operator_name)) {}
  const std::string name;
  std::atomic<int64_t> launches{0};
  std::atomic<int64_t> float64{0};
};

OperatorCounters& operator_counters(const std::string& name);

// {"counters": {...}, "launches": {operator: n}, "float64": {operator: n}}
std::string counters_as_json();

// Called at every point where the host waits or copies, while somebody listens: `kind` names what happened.
using Listener = void (*)(const char* kind);
void set_listener(Listener listener) noexcept;
void notify(const char* kind);

}  // namespace xpusim
