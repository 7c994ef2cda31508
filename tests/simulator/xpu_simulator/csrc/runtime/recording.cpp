#include "recording.h"

#include <atomic>
#include <map>
#include <mutex>

#include "errors.h"

namespace xpusim {
namespace {

// The texts are SYCL's, sycl/source/detail/queue_impl.cpp and event_impl.cpp; the last one is in torch-xpu-ops#5069.
constexpr const char* kQueueRecords = "wait cannot be called for a queue which is recording to a command graph.";
constexpr const char* kEventOfGraph = "wait method cannot be used for an event associated with a command graph.";

std::atomic<int> g_recording{0};  // streams, so that the usual kernel takes no lock
std::mutex g_mutex;

std::map<StreamKey, uint64_t>& pools() {
  static auto* map = new std::map<StreamKey, uint64_t>;
  return *map;
}

}  // namespace

void begin_recording(StreamKey key, uint64_t pool) {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (!pools().empty()) {
    throw DeviceError("The simulated XPU doesn't model two captures at once.");
  }
  pools()[key] = pool;
  g_recording = 1;
}

void end_recording(StreamKey key) noexcept {
  std::lock_guard<std::mutex> lock(g_mutex);
  pools().erase(key);
  g_recording = static_cast<int>(pools().size());
}

uint64_t recording_pool(StreamKey key) noexcept {
  if (g_recording.load(std::memory_order_acquire) == 0) {
    return 0;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  const auto found = pools().find(key);
  return found == pools().end() ? 0 : found->second;
}

bool is_recording(StreamKey key) noexcept {
  return recording_pool(key) != 0;
}

bool records(int device) noexcept {
  return g_recording.load(std::memory_order_acquire) != 0 && is_recording({device, current_stream(device)});
}

void check_may_wait(StreamKey key) {
  if (is_recording(key)) {
    throw DeviceError(kQueueRecords);
  }
}

void check_may_wait_for_device(int device) {
  if (g_recording.load(std::memory_order_acquire) == 0) {
    return;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  for (const auto& [key, pool] : pools()) {
    if (key.device == device) {
      throw DeviceError(kQueueRecords);
    }
  }
}

void check_may_wait_for_event(StreamKey recorded_on) {
  if (is_recording(recorded_on)) {
    throw DeviceError(kEventOfGraph);
  }
}

void check_may_wait_between(StreamKey waiting, StreamKey recorded_on) {
  const bool is_same = waiting.device == recorded_on.device && waiting.stream == recorded_on.stream;
  if (!is_same && (is_recording(waiting) || is_recording(recorded_on))) {
    throw DeviceError("Graph nodes cannot depend on events from outside the graph.");
  }
}

}  // namespace xpusim
