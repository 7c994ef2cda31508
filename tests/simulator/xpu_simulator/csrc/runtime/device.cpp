#include "device.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <sstream>
#include <utility>

#include "errors.h"

namespace xpusim {
namespace {

constexpr int kNotEnumerated = -1;

std::mutex g_mutex;
std::vector<DeviceConfig> g_machine;
std::vector<int> g_physical;              // of every visible device
DeviceConfig g_visible[kMaxDevices];      // never moved: read without a lock
std::atomic<int> g_count{kNotEnumerated};
thread_local int t_current = 0;

// "0,1" or "*"; anything else names no device ("0.0" is a tile, "gpu" a type that the unified runtime fails on).
std::vector<int> parse_indices(const std::string& text, int n) {
  std::vector<int> indices;
  if (text == "*") {
    for (int i = 0; i < n; i++) {
      indices.push_back(i);
    }
    return indices;
  }
  std::istringstream list(text);
  std::string element;
  while (std::getline(list, element, ',')) {
    const bool is_number = !element.empty() && element.find_first_not_of("0123456789") == std::string::npos;
    if (!is_number) {
      return {};
    }
    const int index = std::atoi(element.c_str());
    if (index < n && std::find(indices.begin(), indices.end(), index) == indices.end()) {
      indices.push_back(index);
    }
  }
  return indices;
}

std::vector<int> visible_devices() {
  std::vector<int> visible = parse_indices("*", static_cast<int>(g_machine.size()));
  // Level Zero hides devices first; the unified runtime numbers what is left.
  if (const char* mask = std::getenv("ZE_AFFINITY_MASK")) {
    visible = parse_indices(mask, static_cast<int>(visible.size()));
  }
  const char* selector = std::getenv("ONEAPI_DEVICE_SELECTOR");
  if (selector == nullptr || *selector == '\0') {
    return visible;
  }
  const std::string text = selector;
  const size_t colon = text.find(':');
  const std::string backend = text.substr(0, colon);
  if (colon == std::string::npos || (backend != "level_zero" && backend != "*")) {
    return {};
  }
  std::vector<int> selected;
  for (const int index : parse_indices(text.substr(colon + 1), static_cast<int>(visible.size()))) {
    selected.push_back(visible[index]);
  }
  return selected;
}

void enumerate() {
  std::lock_guard<std::mutex> lock(g_mutex);
  if (g_count != kNotEnumerated) {
    return;
  }
  g_physical = visible_devices();
  for (size_t i = 0; i < g_physical.size(); i++) {
    g_visible[i] = g_machine[g_physical[i]];
  }
  g_count = static_cast<int>(g_physical.size());
}

}  // namespace

void set_machine(std::vector<DeviceConfig> devices) {
  std::lock_guard<std::mutex> lock(g_mutex);
  g_machine = std::move(devices);
  g_count = kNotEnumerated;
}

int device_count() noexcept {
  if (g_count.load(std::memory_order_relaxed) == kNotEnumerated) {
    enumerate();
  }
  return g_count.load(std::memory_order_relaxed);
}

DeviceConfig& device_config(int device) {
  return g_visible[device];
}

int physical_index(int device) {
  return g_physical.at(device);
}

int current_device() noexcept {
  return t_current;
}

void check_device(int device) {
  if (device >= 0 && device < device_count()) {
    return;
  }
  if (device_count() == 0) {
    throw DeviceError("No XPU devices are available.");
  }
  throw DeviceError(
      "The device index is out of range. It must be in [0, " + std::to_string(device_count()) + "), but got " +
      std::to_string(device) + ".");
}

void set_current_device(int device) {
  check_device(device);
  t_current = device;
}

void set_current_device_unchecked(int device) noexcept {
  t_current = device;
}

bool has_fp64(int device) noexcept {
  return g_visible[device].has_fp64;
}

}  // namespace xpusim
