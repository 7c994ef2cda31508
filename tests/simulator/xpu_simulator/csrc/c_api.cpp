// What Python calls through ctypes. An exception must not cross this border: functions that can fail return nonzero,
// and xpusim_last_error() has the text.
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "runtime/counters.h"
#include "runtime/device.h"
#include "runtime/errors.h"
#include "runtime/faults.h"
#include "runtime/memory.h"
#include "runtime/primitives.h"
#include "runtime/quirks.h"
#include "runtime/recording.h"
#include "runtime/streams.h"

#define XPUSIM_API extern "C" __attribute__((visibility("default")))

namespace {

thread_local std::string t_error;
thread_local std::string t_text;
std::vector<xpusim::DeviceConfig> g_machine;

template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    t_error = error.what();
    return 1;
  }
}

const char* keep(std::string text) {
  t_text = std::move(text);
  return t_text.c_str();
}

}  // namespace

XPUSIM_API const char* xpusim_last_error() {
  return t_error.c_str();
}

// ---- devices

// The machine gets its devices one by one; set_machine shows them.
XPUSIM_API void xpusim_add_device(
    const char* name,
    int64_t capacity,
    int64_t max_allocation,
    int has_fp64,
    int reports_free_memory,
    int reports_no_memory_free,
    int exhaustion_error) {
  xpusim::DeviceConfig config;
  config.name = name;
  config.capacity = capacity;
  config.max_allocation = max_allocation;
  config.has_fp64 = has_fp64 != 0;
  config.reports_free_memory = reports_free_memory != 0;
  config.reports_no_memory_free = reports_no_memory_free != 0;
  config.exhaustion_error = exhaustion_error;
  g_machine.push_back(std::move(config));
}

XPUSIM_API void xpusim_set_machine() {
  xpusim::set_machine(std::move(g_machine));
  g_machine.clear();
}

XPUSIM_API int xpusim_physical_index(int device) {
  return xpusim::physical_index(device);
}

XPUSIM_API int xpusim_device_count() {
  return xpusim::device_count();
}

XPUSIM_API int xpusim_current_device() {
  return xpusim::current_device();
}

XPUSIM_API int xpusim_set_device(int device) {
  return guarded([&] { xpusim::set_current_device(device); });
}

XPUSIM_API int xpusim_check_alive() {
  return guarded([] { xpusim::check_alive(); });
}

// ---- streams

XPUSIM_API int64_t xpusim_current_stream(int device) {
  return xpusim::current_stream(device);
}

XPUSIM_API void xpusim_set_current_stream(int device, int64_t stream) {
  xpusim::set_current_stream(device, stream);
}

XPUSIM_API int xpusim_synchronize(int device) {
  xpusim::count(xpusim::Counter::kDeviceSyncs);
  xpusim::notify("device synchronize");
  return guarded([&] {
    xpusim::check_alive();
    xpusim::check_may_wait_for_device(device);
    xpusim::finish_device(device);
  });
}

XPUSIM_API void xpusim_set_asynchronous(int on) {
  xpusim::set_asynchronous(on != 0);
}

// ---- memory

XPUSIM_API const char* xpusim_memory_stats(int device) {
  return keep(xpusim::memory_stats_as_json(device));
}

XPUSIM_API int xpusim_memory_info(int device, int64_t* free, int64_t* total) {
  return guarded([&] {
    const auto info = xpusim::memory_info(device);
    *free = info.first;
    *total = info.second;
  });
}

XPUSIM_API void xpusim_empty_cache() {
  xpusim::empty_cache();
}

XPUSIM_API void xpusim_reset_peak_stats(int device) {
  xpusim::reset_peak_stats(device);
}

XPUSIM_API void xpusim_reset_accumulated_stats(int device) {
  xpusim::reset_accumulated_stats(device);
}

XPUSIM_API double xpusim_memory_fraction(int device) {
  return xpusim::device_config(device).memory_fraction;
}

XPUSIM_API void xpusim_set_memory_fraction(int device, double fraction) {
  xpusim::device_config(device).memory_fraction = fraction;
  xpusim::device_config(device).memory_fraction_is_set = true;
}

// ---- faults

XPUSIM_API void xpusim_order_out_of_memory(int64_t at_launch, const char* text) {
  xpusim::order_out_of_memory(at_launch, text);
}

XPUSIM_API void xpusim_order_device_lost(int64_t at_launch) {
  xpusim::order_device_lost(at_launch);
}

XPUSIM_API void xpusim_order_no_free_memory_query() {
  xpusim::order_no_free_memory_query();
}

XPUSIM_API void xpusim_order_exhaustion(int error) {
  xpusim::order_exhaustion(error);
}

XPUSIM_API int xpusim_order_quirks(const char* names) {
  return guarded([&] { xpusim::order_quirks(names); });
}

XPUSIM_API void xpusim_clear_faults() {
  xpusim::clear_faults();
}

// ---- oneDNN

XPUSIM_API void xpusim_forget_primitives() {
  xpusim::forget_primitives();
}

// ---- counters

XPUSIM_API const char* xpusim_counters() {
  return keep(xpusim::counters_as_json());
}

XPUSIM_API void xpusim_set_listener(void (*listener)(const char*)) {
  xpusim::set_listener(listener);
}
