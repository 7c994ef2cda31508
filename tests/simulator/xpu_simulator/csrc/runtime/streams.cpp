#include "streams.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <variant>

#include "device.h"
#include "quirks.h"

namespace xpusim {
namespace {

using Item = std::variant<Copy, StreamPosition>;  // a copy to make, or another stream to wait for

struct Queue {
  std::deque<Item> items;
  uint64_t done = 0;  // how many items have left the queue

  uint64_t end() const {
    return done + items.size();
  }
};

std::atomic<bool> g_asynchronous{false};
std::atomic<int64_t> g_next_stream{1};
std::atomic<int64_t> g_pending{0};  // items in all queues, so that the usual kernel takes no lock
thread_local int64_t t_stream[kMaxDevices] = {};

std::mutex g_mutex;

std::map<StreamKey, Queue>& queues() {
  static auto* map = new std::map<StreamKey, Queue>;
  return *map;
}

bool nothing_pending() {
  return g_pending.load(std::memory_order_acquire) == 0;
}

void run_until(StreamKey key, uint64_t end);

void run(const Item& item) {
  if (const auto* copy = std::get_if<Copy>(&item)) {
    std::memcpy(copy->destination, copy->source, copy->landing);
    return;
  }
  const auto& position = std::get<StreamPosition>(item);
  run_until(position.key, position.position);
}

void run_until(StreamKey key, uint64_t end) {
  Queue& queue = queues()[key];
  while (!queue.items.empty() && queue.done < end) {
    const Item item = std::move(queue.items.front());
    queue.items.pop_front();
    queue.done++;
    g_pending--;
    run(item);
  }
}

bool overlap(const void* a, size_t a_bytes, const void* b, size_t b_bytes) {
  const auto* first = static_cast<const char*>(a);
  const auto* second = static_cast<const char*>(b);
  return first < second + b_bytes && second < first + a_bytes;
}

// The poison must not spoil what an earlier copy of the same stream has yet to read.
bool disturbs(const Queue& queue, const Copy& copy) {
  for (const Item& item : queue.items) {
    const auto* earlier = std::get_if<Copy>(&item);
    if (earlier == nullptr) {
      continue;
    }
    if (overlap(copy.destination, copy.bytes, earlier->source, earlier->bytes) ||
        overlap(copy.destination, copy.bytes, earlier->destination, earlier->bytes)) {
      return true;
    }
  }
  return false;
}

}  // namespace

int64_t current_stream(int device) noexcept {
  return t_stream[device];
}

void set_current_stream(int device, int64_t stream) noexcept {
  t_stream[device] = stream;
}

int64_t new_stream() noexcept {
  return g_next_stream++;
}

void set_asynchronous(bool on) {
  g_asynchronous = on;
  if (!on) {
    for (int device = 0; device < kMaxDevices; device++) {
      finish_device(device);
    }
  }
}

bool is_asynchronous() noexcept {
  return g_asynchronous.load(std::memory_order_relaxed);
}

void enqueue(StreamKey key, Copy copy) {
  std::lock_guard<std::mutex> lock(g_mutex);
  Queue& queue = queues()[key];
  if (disturbs(queue, copy)) {
    run_until(key, queue.end());
  }
  std::memset(copy.destination, copy.poison, copy.bytes);
  queue.items.emplace_back(std::move(copy));
  g_pending++;
}

StreamPosition stream_position(StreamKey key) {
  std::lock_guard<std::mutex> lock(g_mutex);
  return {key, queues()[key].end()};
}

bool has_reached(const StreamPosition& position) {
  if (nothing_pending()) {
    return true;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  return queues()[position.key].done >= position.position;
}

void wait_for(StreamKey waiting, const StreamPosition& position) {
  if (nothing_pending() || has_reached(position)) {
    return;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  queues()[waiting].items.emplace_back(position);
  g_pending++;
}

void before_kernel(StreamKey key) {
  if (!nothing_pending()) {
    std::lock_guard<std::mutex> lock(g_mutex);
    run_until(key, std::numeric_limits<uint64_t>::max());
  }
}

void finish_stream(StreamKey key) {
  finish({key, std::numeric_limits<uint64_t>::max()});
}

void finish_device(int device) {
  forget_pending();
  if (nothing_pending()) {
    return;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  for (auto& [key, queue] : queues()) {
    if (key.device == device) {
      run_until(key, queue.end());
    }
  }
}

void finish(const StreamPosition& position) {
  forget_pending();
  if (nothing_pending()) {
    return;
  }
  std::lock_guard<std::mutex> lock(g_mutex);
  run_until(position.key, position.position);
}

bool query(const StreamPosition& position) {
  if (has_reached(position)) {
    return true;
  }
  finish(position);
  return false;
}

double now_in_milliseconds() {
  const auto since_start = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since_start).count();
}

}  // namespace xpusim
