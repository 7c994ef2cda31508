#include "counters.h"

#include <map>
#include <memory>
#include <mutex>
#include <sstream>

namespace xpusim {
namespace {

constexpr size_t kCounters = static_cast<size_t>(Counter::kCount);

std::array<std::atomic<int64_t>, kCounters> g_counters{};
std::atomic<Listener> g_listener{nullptr};

std::mutex g_operators_mutex;

// Leaked on purpose: kernels may still run while static objects are destroyed.
std::map<std::string, std::unique_ptr<OperatorCounters>>& operators() {
  static auto* map = new std::map<std::string, std::unique_ptr<OperatorCounters>>;
  return *map;
}

template <class Value>
void write_object(std::ostream& out, const char* key, Value value) {
  out << ",\"" << key << "\":{";
  const char* separator = "";
  for (const auto& [name, counters] : operators()) {
    const int64_t n = value(*counters);
    if (n != 0) {
      out << separator << '"' << name << "\":" << n;
      separator = ",";
    }
  }
  out << "}";
}

}  // namespace

const std::array<const char*, kCounters>& counter_names() {
  static const std::array<const char*, kCounters> names = {
      "launches",
      "views",
      "h2d_pinned_non_blocking",
      "h2d_pinned_blocking",
      "h2d_pageable_non_blocking",
      "h2d_pageable_blocking",
      "bytes_h2d",
      "d2h_non_blocking",
      "d2h_blocking",
      "bytes_d2h",
      "d2d",
      "peer_to_peer",
      "item_syncs",
      "implicit_syncs",
      "device_syncs",
      "stream_syncs",
      "event_syncs",
      "allocations",
      "pinned_allocations",
      "out_of_memory",
      "metadata_copies",
      "barriers",
      "primitive_hits",
      "primitive_misses",
      "channels_last_primitives",
      "collectives",
      "bytes_collective",
      "kernel_nanoseconds",
  };
  return names;
}

void count(Counter counter, int64_t amount) noexcept {
  g_counters[static_cast<size_t>(counter)].fetch_add(amount, std::memory_order_relaxed);
}

int64_t read(Counter counter) noexcept {
  return g_counters[static_cast<size_t>(counter)].load(std::memory_order_relaxed);
}

OperatorCounters& operator_counters(const std::string& name) {
  std::lock_guard<std::mutex> lock(g_operators_mutex);
  auto& entry = operators()[name];
  if (!entry) {
    entry = std::make_unique<OperatorCounters>(name);
  }
  return *entry;
}

std::string counters_as_json() {
  std::ostringstream out;
  out << "{\"counters\":{";
  for (size_t i = 0; i < kCounters; i++) {
    out << (i == 0 ? "" : ",") << '"' << counter_names()[i] << "\":" << g_counters[i].load();
  }
  out << "}";
  std::lock_guard<std::mutex> lock(g_operators_mutex);
  write_object(out, "launches", [](const OperatorCounters& c) { return c.launches.load(); });
  write_object(out, "float64", [](const OperatorCounters& c) { return c.float64.load(); });
  out << "}";
  return out.str();
}

void set_listener(Listener listener) noexcept {
  g_listener = listener;
}

void notify(const char* kind) {
  if (const Listener listener = g_listener.load(std::memory_order_relaxed)) {
    listener(kind);
  }
}

}  // namespace xpusim
