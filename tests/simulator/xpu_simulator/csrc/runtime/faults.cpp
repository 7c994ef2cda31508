#include "faults.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <utility>
#include <vector>

#include "counters.h"
#include "device.h"
#include "errors.h"
#include "memory.h"

namespace xpusim {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr int kLostError = 20;
constexpr const char* kDeviceLost = "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)";
constexpr const char* kNoDeviceMemory = "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)";
constexpr const char* kNoResources = "level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)";
constexpr int64_t kFeignedRequest = 20LL << 20;  // what an ordered out-of-memory error says was asked for

struct Order {
  int64_t launch;
  bool lost;
  std::string text;
};

std::mutex g_mutex;
std::vector<Order> g_orders;
std::atomic<int64_t> g_next{kNever};  // the launch of the earliest order, so that the usual kernel takes no lock
std::atomic<int64_t> g_launches{0};
std::atomic<bool> g_lost{false};
std::atomic<bool> g_no_free_memory{false};
std::atomic<int> g_exhaustion_error{0};

void update_next() {
  int64_t next = kNever;
  for (const Order& order : g_orders) {
    next = std::min(next, order.launch);
  }
  g_next = next;
}

void add(int64_t at_launch, bool lost, std::string text) {
  std::lock_guard<std::mutex> lock(g_mutex);
  g_orders.push_back({g_launches + at_launch, lost, std::move(text)});
  update_next();
}

void raise_due(int64_t launch, int device) {
  Order due{};
  {
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto found = std::find_if(
        g_orders.begin(), g_orders.end(), [launch](const Order& order) { return order.launch <= launch; });
    if (found == g_orders.end()) {
      return;
    }
    due = *found;
    g_orders.erase(found);
    update_next();
  }
  if (due.lost) {
    g_lost = true;
    throw DeviceError(kDeviceLost);
  }
  count(Counter::kOutOfMemory);
  if (due.text.empty()) {
    throw OutOfMemory(out_of_memory_text(device, kFeignedRequest));
  }
  throw DeviceError(due.text);
}

// torch-xpu-ops#3155, #2757, #1324, #5432: errors 39, 40 and 20 come from kernels.
void raise_exhausted(int device) {
  constexpr int kNoDeviceMemoryError = 39;
  const int error = exhaustion_error(device);
  if (error == 0) {
    return;
  }
  count(Counter::kOutOfMemory);
  if (error == kLostError) {
    g_lost = true;
    throw DeviceError(kDeviceLost);
  }
  throw DeviceError(error == kNoDeviceMemoryError ? kNoDeviceMemory : kNoResources);
}

}  // namespace

void order_out_of_memory(int64_t at_launch, std::string text) {
  add(at_launch, false, std::move(text));
}

void order_device_lost(int64_t at_launch) {
  add(at_launch, true, "");
}

void order_exhaustion(int error) {
  g_exhaustion_error = error;
}

int exhaustion_error(int device) noexcept {
  const int ordered = g_exhaustion_error.load(std::memory_order_relaxed);
  return ordered != 0 ? ordered : device_config(device).exhaustion_error;
}

void order_no_free_memory_query() {
  g_no_free_memory = true;
}

void clear_faults() {
  std::lock_guard<std::mutex> lock(g_mutex);
  g_orders.clear();
  update_next();
  g_lost = false;
  g_no_free_memory = false;
  g_exhaustion_error = 0;
}

bool free_memory_query_fails() noexcept {
  return g_no_free_memory;
}

void launch(int device) {
  const int64_t number = ++g_launches;
  count(Counter::kLaunches);
  if (number >= g_next.load(std::memory_order_relaxed)) {
    raise_due(number, device);
  }
  check_alive();
  if (memory_is_exhausted(device)) {
    raise_exhausted(device);
  }
}

void check_alive() {
  if (g_lost.load(std::memory_order_relaxed)) {
    throw DeviceError(kDeviceLost);
  }
}

}  // namespace xpusim
