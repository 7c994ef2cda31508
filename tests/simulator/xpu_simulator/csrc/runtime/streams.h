// Streams, events, and the asynchrony mode.
//
// Kernels run at once, on the calling thread. In the asynchrony mode a non-blocking copy does not: it waits in its
// stream's queue, and its destination holds poison, until that stream runs a kernel, is waited for by another stream
// that runs one, or is synchronised with. What forgets to wait sees the poison.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace xpusim {

struct StreamKey {
  int device;
  int64_t stream;
  bool operator<(const StreamKey& other) const {
    return device != other.device ? device < other.device : stream < other.stream;
  }
};

// A point in a stream's queue: everything enqueued before it.
struct StreamPosition {
  StreamKey key;
  uint64_t position;
};

struct Event {
  StreamPosition recorded;
  double milliseconds;
};

struct Copy {
  void* destination;
  const void* source;
  size_t bytes;
  size_t landing;                    // how many of them land
  unsigned char poison;              // what the destination holds until the copy lands
  std::shared_ptr<void> keep_alive;  // the host side: pinned blocks aren't reused while a copy is on its way
};

int64_t current_stream(int device) noexcept;
void set_current_stream(int device, int64_t stream) noexcept;
int64_t new_stream() noexcept;

void set_asynchronous(bool on);
bool is_asynchronous() noexcept;

void enqueue(StreamKey key, Copy copy);
StreamPosition stream_position(StreamKey key);
bool has_reached(const StreamPosition& position);
void wait_for(StreamKey waiting, const StreamPosition& position);

// A kernel starts on the stream: what it waits for happens first.
void before_kernel(StreamKey key);
void finish_stream(StreamKey key);
void finish_device(int device);
void finish(const StreamPosition& position);
// True if nothing is under way. What is, comes to an end after the first time of asking, so that a loop that polls ends.
bool query(const StreamPosition& position);

double now_in_milliseconds();

}  // namespace xpusim
