// Which streams record what is launched on them into a graph, instead of running it.
#pragma once

#include <cstdint>

#include "streams.h"

namespace xpusim {

// Throws DeviceError where one of the device's streams records already: captures don't overlap.
void begin_recording(StreamKey key, uint64_t pool);
void end_recording(StreamKey key) noexcept;

bool is_recording(StreamKey key) noexcept;
// Whether what this thread launches on a device is recorded.
bool records(int device) noexcept;
// The private pool that a recording stream's memory comes from; 0: none.
uint64_t recording_pool(StreamKey key) noexcept;

// Called where the host waits: throws DeviceError, with SYCL's texts, for a stream that records.
void check_may_wait(StreamKey key);
void check_may_wait_for_device(int device);
void check_may_wait_for_event(StreamKey recorded_on);
// Called where a stream waits for another: what it waits for must be in the same graph. Several streams of one graph
// aren't modelled.
void check_may_wait_between(StreamKey waiting, StreamKey recorded_on);

}  // namespace xpusim
