#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <sstream>
#include <unordered_map>
#include <vector>

#include "counters.h"
#include "device.h"
#include "errors.h"
#include "faults.h"
#include "quirks.h"
#include "recording.h"
#include "streams.h"

namespace xpusim {
namespace {

constexpr int64_t kKiB = 1LL << 10;
constexpr int64_t kMiB = 1LL << 20;
constexpr int64_t kGiB = 1LL << 30;

// The sizes of torch's caching allocators.
constexpr int64_t kRounding = 512;             // every block is a multiple of it
constexpr int64_t kLargestSmall = kMiB;        // up to this, a block comes from the small pool
constexpr int64_t kSmallSegment = 2 * kMiB;    // which grows by this
constexpr int64_t kSmallestOwnSegment = 10 * kMiB;  // from this on a request gets a segment of its own size
constexpr int64_t kLargeSegment = 20 * kMiB;   // below, the large pool grows by this
constexpr int64_t kSegmentRounding = 2 * kMiB;

int64_t round_up(int64_t bytes, int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

int64_t segment_size(int64_t bytes) {
  if (bytes <= kLargestSmall) {
    return kSmallSegment;
  }
  if (bytes < kSmallestOwnSegment) {
    return kLargeSegment;
  }
  return round_up(bytes, kSegmentRounding);
}

std::string format_size(int64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(2);
  if (bytes <= kKiB) {
    out << bytes << " bytes";
  } else if (bytes <= kMiB) {
    out << static_cast<double>(bytes) / kKiB << " KiB";
  } else if (bytes <= kGiB) {
    out << static_cast<double>(bytes) / kMiB << " MiB";
  } else {
    out << static_cast<double>(bytes) / kGiB << " GiB";
  }
  return out.str();
}

enum Pool { kSmallPool = 1, kLargePool = 2 };

struct Block {
  int device;
  int64_t stream;
  Pool pool;
  char* pointer;
  int64_t size;
  uint64_t owner = 0;   // the private pool that it belongs to, 0: none
  uint64_t serial = 0;  // of its allocation
  int64_t requested = 0;
  bool allocated = false;
  Block* previous = nullptr;  // the neighbours within the segment
  Block* next = nullptr;
  std::set<int64_t> other_streams = {};           // named by record_stream
  std::vector<StreamPosition> awaited = {};  // what they had yet to do when the block was freed
};

struct BySize {
  bool operator()(const Block* a, const Block* b) const {
    if (a->stream != b->stream) {
      return a->stream < b->stream;
    }
    if (a->size != b->size) {
      return a->size < b->size;
    }
    return a->pointer < b->pointer;
  }
};

using FreeBlocks = std::set<Block*, BySize>;

// The free blocks of all who share memory: everybody, or the graphs of a private pool.
struct FreeMemory {
  FreeBlocks small;
  FreeBlocks large;
  int uses = 0;  // by graphs, which keep a private pool's memory

  FreeBlocks& of(Pool pool) {
    return pool == kSmallPool ? small : large;
  }
};

std::atomic<uint64_t> g_next_serial{1};

void increase(StatArray& stats, Pool pool, int64_t amount) {
  for (Stat* stat : {&stats[0], &stats[pool]}) {
    stat->current += amount;
    stat->allocated += amount;
    stat->peak = std::max(stat->peak, stat->current);
  }
}

void decrease(StatArray& stats, Pool pool, int64_t amount) {
  for (Stat* stat : {&stats[0], &stats[pool]}) {
    stat->current -= amount;
    stat->freed += amount;
  }
}

bool relaxed_allocation_limits() {
  const char* value = std::getenv("UR_L0_ENABLE_RELAXED_ALLOCATION_LIMITS");
  return value != nullptr && std::atoi(value) != 0;
}

class CachingAllocator {
 public:
  explicit CachingAllocator(int device) : device_(device) {}

  Block* allocate(int64_t requested, int64_t stream, uint64_t owner) {
    std::lock_guard<std::mutex> lock(mutex_);
    reuse_awaited();
    const int64_t size = std::max(kRounding, round_up(requested, kRounding));
    const Pool pool = size <= kLargestSmall ? kSmallPool : kLargePool;
    Block* block = take_free(pool, stream, size, owner);
    if (block == nullptr) {
      block = new_segment(pool, stream, segment_size(size), owner);
    }
    if (block == nullptr) {
      stats_.num_alloc_retries++;
      release_cached();
      block = new_segment(pool, stream, segment_size(size), owner);
    }
    if (block == nullptr) {
      stats_.num_ooms++;
      count(Counter::kOutOfMemory);
      throw OutOfMemory(text(segment_size(size)));
    }
    split(block, size);
    block->allocated = true;
    block->serial = g_next_serial++;
    block->requested = requested;
    increase(stats_.allocation, pool, 1);
    increase(stats_.active, pool, 1);
    increase(stats_.allocated_bytes, pool, block->size);
    increase(stats_.active_bytes, pool, block->size);
    increase(stats_.requested_bytes, pool, requested);
    count(Counter::kAllocations);
    return block;
  }

  void free(Block* block) {
    std::lock_guard<std::mutex> lock(mutex_);
    block->allocated = false;
    decrease(stats_.allocation, block->pool, 1);
    decrease(stats_.allocated_bytes, block->pool, block->size);
    for (const int64_t stream : block->other_streams) {
      const StreamPosition position = stream_position({device_, stream});
      if (!has_reached(position)) {
        block->awaited.push_back(position);
      }
    }
    block->other_streams.clear();
    if (block->awaited.empty()) {
      make_free(block);
    } else {
      awaited_.push_back(block);
    }
  }

  void record_stream(Block* block, int64_t stream) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (stream != block->stream) {
      block->other_streams.insert(stream);
    }
  }

  void empty_cache() {
    std::lock_guard<std::mutex> lock(mutex_);
    release_cached();
  }

  void use_pool(uint64_t owner, int change) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_[owner].uses += change;
  }

  MemoryStats stats() {
    std::lock_guard<std::mutex> lock(mutex_);
    return stats_;
  }

  void reset_counts() {
    std::lock_guard<std::mutex> lock(mutex_);
    stats_.num_alloc_retries = 0;
    stats_.num_ooms = 0;
  }

  template <class Change>
  void change_stats(Change change) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (StatArray* array :
         {&stats_.allocation, &stats_.segment, &stats_.active, &stats_.inactive_split, &stats_.allocated_bytes,
          &stats_.reserved_bytes, &stats_.active_bytes, &stats_.inactive_split_bytes, &stats_.requested_bytes}) {
      for (Stat& stat : *array) {
        change(stat);
      }
    }
  }

  bool is_exhausted() const noexcept {
    return is_exhausted_.load(std::memory_order_relaxed);
  }

  std::string locked_text(int64_t requested) {
    std::lock_guard<std::mutex> lock(mutex_);
    return text(requested);
  }

 private:
  FreeBlocks& free_blocks(const Block* block) {
    return free_[block->owner].of(block->pool);
  }

  Block* take_free(Pool pool, int64_t stream, int64_t size, uint64_t owner) {
    Block key{device_, stream, pool, nullptr, size, owner};
    FreeBlocks& blocks = free_blocks(&key);
    const auto found = blocks.lower_bound(&key);
    if (found == blocks.end() || (*found)->stream != stream) {
      return nullptr;
    }
    Block* block = *found;
    blocks.erase(found);
    if (is_split(block)) {
      decrease(stats_.inactive_split, pool, 1);
      decrease(stats_.inactive_split_bytes, pool, block->size);
    }
    return block;
  }

  Block* new_segment(Pool pool, int64_t stream, int64_t size, uint64_t owner) {
    const DeviceConfig& config = device_config(device_);
    const auto allowed = static_cast<int64_t>(static_cast<double>(config.capacity) * config.memory_fraction);
    if (stats_.reserved_bytes[0].current + size > allowed && !may_overcommit(size)) {
      return nullptr;
    }
    // Level Zero refuses a request of its limit's own size too: 4.00 GiB on Alchemist.
    if (config.max_allocation > 0 && size >= config.max_allocation && !relaxed_allocation_limits()) {
      return nullptr;
    }
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (pages == MAP_FAILED) {
      return nullptr;
    }
    increase(stats_.segment, pool, 1);
    increase(stats_.reserved_bytes, pool, size);
    note_exhaustion();
    return new Block{device_, stream, pool, static_cast<char*>(pages), size, owner};
  }

  static bool is_split(const Block* block) {
    return block->previous != nullptr || block->next != nullptr;
  }

  // Cuts the rest off a block that is longer than asked for and gives it back to the pool.
  void split(Block* block, int64_t size) {
    const int64_t rest = block->size - size;
    const bool worth_it = block->pool == kSmallPool ? rest >= kRounding : rest > kLargestSmall;
    if (!worth_it) {
      return;
    }
    Block* remaining = new Block{device_, block->stream, block->pool, block->pointer + size, rest, block->owner};
    remaining->previous = block;
    remaining->next = block->next;
    if (block->next != nullptr) {
      block->next->previous = remaining;
    }
    block->next = remaining;
    block->size = size;
    insert_free(remaining);
  }

  void insert_free(Block* block) {
    free_blocks(block).insert(block);
    if (is_split(block)) {
      increase(stats_.inactive_split, block->pool, 1);
      increase(stats_.inactive_split_bytes, block->pool, block->size);
    }
  }

  void make_free(Block* block) {
    decrease(stats_.active, block->pool, 1);
    decrease(stats_.active_bytes, block->pool, block->size);
    decrease(stats_.requested_bytes, block->pool, block->requested);
    absorb(block, block->previous);
    absorb(block, block->next);
    insert_free(block);
  }

  // Merges a free neighbour into the block.
  void absorb(Block* block, Block* neighbour) {
    if (neighbour == nullptr || neighbour->allocated || !neighbour->awaited.empty()) {
      return;
    }
    free_blocks(block).erase(neighbour);
    decrease(stats_.inactive_split, block->pool, 1);
    decrease(stats_.inactive_split_bytes, block->pool, neighbour->size);
    if (neighbour == block->previous) {
      block->pointer = neighbour->pointer;
      block->previous = neighbour->previous;
      if (block->previous != nullptr) {
        block->previous->next = block;
      }
    } else {
      block->next = neighbour->next;
      if (block->next != nullptr) {
        block->next->previous = block;
      }
    }
    block->size += neighbour->size;
    delete neighbour;
  }

  // Blocks that another stream still used when they were freed, and does no more.
  void reuse_awaited() {
    const auto is_done = [](Block* block) {
      return std::all_of(block->awaited.begin(), block->awaited.end(), has_reached);
    };
    const auto done = std::stable_partition(
        awaited_.begin(), awaited_.end(), [&](Block* block) { return !is_done(block); });
    for (auto it = done; it != awaited_.end(); ++it) {
      (*it)->awaited.clear();
      make_free(*it);
    }
    awaited_.erase(done, awaited_.end());
  }

  // Gives whole free segments back; nothing may still be on its way into them.
  void release_cached() {
    finish_device(device_);
    reuse_awaited();
    for (auto& [owner, memory] : free_) {
      if (memory.uses == 0) {
        release(memory.small);
        release(memory.large);
      }
    }
    note_exhaustion();
  }

  void release(FreeBlocks& blocks) {
    for (auto it = blocks.begin(); it != blocks.end();) {
      Block* block = *it;
      if (is_split(block)) {
        ++it;
        continue;
      }
      it = blocks.erase(it);
      munmap(block->pointer, block->size);
      decrease(stats_.segment, block->pool, 1);
      decrease(stats_.reserved_bytes, block->pool, block->size);
      delete block;
    }
  }

  // Intel's driver gives more than there is, and the kernel that would use it fails, unless torch's allocator was told to
  // keep within a fraction (pytorch#177714).
  bool may_overcommit(int64_t size) const {
    const DeviceConfig& config = device_config(device_);
    return exhaustion_error(device_) != 0 && !config.memory_fraction_is_set && size <= config.capacity;
  }

  void note_exhaustion() {
    is_exhausted_ = stats_.reserved_bytes[0].current > device_config(device_).capacity;
  }

  std::string text(int64_t requested) const {
    const DeviceConfig& config = device_config(device_);
    const int64_t reserved = stats_.reserved_bytes[0].current;
    const int64_t allocated = stats_.allocated_bytes[0].current;
    std::ostringstream out;
    out << "XPU out of memory. Tried to allocate " << format_size(requested) << ". GPU " << device_
        << " has a total capacity of " << format_size(config.capacity) << " of which "
        << format_size(config.capacity - reserved) << " is free. ";
    if (config.memory_fraction < 1.0) {
      const auto allowed = static_cast<int64_t>(static_cast<double>(config.capacity) * config.memory_fraction);
      out << format_size(allowed) << " allowed; ";
    }
    out << "Of the allocated memory " << format_size(allocated) << " is allocated by PyTorch, and "
        << format_size(reserved - allocated) << " is reserved by PyTorch but unallocated."
        << " Please use `empty_cache` to release all unoccupied cached memory.";
    return out.str();
  }

  const int device_;
  std::mutex mutex_;
  std::map<uint64_t, FreeMemory> free_;  // by private pool; 0 is everybody's
  std::vector<Block*> awaited_;
  MemoryStats stats_;
  std::atomic<bool> is_exhausted_{false};
};

// These are leaked on purpose: tensors may be freed after static objects are gone.
CachingAllocator& allocator(int device) {
  static auto* allocators = [] {
    auto* list = new std::vector<CachingAllocator*>;
    for (int i = 0; i < kMaxDevices; i++) {
      list->push_back(new CachingAllocator(i));
    }
    return list;
  }();
  return *allocators->at(device);
}

struct LiveBlocks {
  std::mutex mutex;
  std::unordered_map<const void*, Block*> blocks;
};

LiveBlocks& live() {
  static auto* blocks = new LiveBlocks;
  return *blocks;
}

Block* find_live(const void* pointer) {
  std::lock_guard<std::mutex> lock(live().mutex);
  const auto found = live().blocks.find(pointer);
  return found == live().blocks.end() ? nullptr : found->second;
}

// pytorch#197520: what is still being computed when the cache is emptied reads as NaN afterwards.
void spoil_pending(const Pending& written) {
  const Block* block = find_live(written.block);
  const char* end = static_cast<char*>(written.pointer) + written.bytes;
  if (block != nullptr && end <= block->pointer + block->size) {
    std::memset(written.pointer, written.poison, written.bytes);
  }
}

struct PinnedBlocks {
  std::shared_mutex mutex;
  std::map<const char*, size_t> sizes;
};

PinnedBlocks& pinned() {
  static auto* blocks = new PinnedBlocks;
  return *blocks;
}

void write_stats(std::ostream& out, const char* name, const StatArray& stats) {
  static const char* const pools[] = {"all", "small_pool", "large_pool"};
  out << '"' << name << "\":{";
  for (size_t i = 0; i < stats.size(); i++) {
    out << (i == 0 ? "" : ",") << '"' << pools[i] << "\":{\"current\":" << stats[i].current
        << ",\"peak\":" << stats[i].peak << ",\"allocated\":" << stats[i].allocated
        << ",\"freed\":" << stats[i].freed << "}";
  }
  out << "},";
}

}  // namespace

void* allocate(int device, size_t bytes) {
  check_device(device);
  check_alive();
  if (bytes == 0) {
    return nullptr;
  }
  const int64_t stream = current_stream(device);
  const uint64_t owner = recording_pool({device, stream});
  Block* block = allocator(device).allocate(static_cast<int64_t>(bytes), stream, owner);
  std::lock_guard<std::mutex> lock(live().mutex);
  live().blocks[block->pointer] = block;
  return block->pointer;
}

bool deallocate(void* pointer) noexcept {
  Block* block = nullptr;
  {
    std::lock_guard<std::mutex> lock(live().mutex);
    const auto found = live().blocks.find(pointer);
    if (found == live().blocks.end()) {
      return false;
    }
    block = found->second;
    live().blocks.erase(found);
  }
  allocator(block->device).free(block);
  return true;
}

int device_of(const void* pointer) noexcept {
  const Block* block = find_live(pointer);
  return block == nullptr ? -1 : block->device;
}

Allocation allocation_of(const void* pointer) noexcept {
  const Block* block = find_live(pointer);
  return block == nullptr ? Allocation{} : Allocation{block->serial, block->owner};
}

void use_pool(int device, uint64_t pool, int change) {
  allocator(device).use_pool(pool, change);
}

void record_stream(void* pointer, int64_t stream) {
  Block* block = find_live(pointer);
  if (block != nullptr) {
    allocator(block->device).record_stream(block, stream);
  }
}

void empty_cache() {
  take_pending(&spoil_pending);
  for (int device = 0; device < kMaxDevices; device++) {
    allocator(device).empty_cache();
  }
}

MemoryStats memory_stats(int device) {
  return allocator(device).stats();
}

std::string memory_stats_as_json(int device) {
  const MemoryStats stats = memory_stats(device);
  std::ostringstream out;
  out << "{";
  write_stats(out, "allocation", stats.allocation);
  write_stats(out, "segment", stats.segment);
  write_stats(out, "active", stats.active);
  write_stats(out, "inactive_split", stats.inactive_split);
  write_stats(out, "allocated_bytes", stats.allocated_bytes);
  write_stats(out, "reserved_bytes", stats.reserved_bytes);
  write_stats(out, "active_bytes", stats.active_bytes);
  write_stats(out, "inactive_split_bytes", stats.inactive_split_bytes);
  write_stats(out, "requested_bytes", stats.requested_bytes);
  out << "\"num_alloc_retries\":" << stats.num_alloc_retries << ",\"num_ooms\":" << stats.num_ooms << "}";
  return out.str();
}

void reset_peak_stats(int device) {
  allocator(device).change_stats([](Stat& stat) { stat.peak = stat.current; });
}

void reset_accumulated_stats(int device) {
  allocator(device).change_stats([](Stat& stat) {
    stat.allocated = 0;
    stat.freed = 0;
  });
  allocator(device).reset_counts();
}

std::pair<int64_t, int64_t> memory_info(int device) {
  check_alive();
  const DeviceConfig& config = device_config(device);
  if (!config.reports_free_memory || free_memory_query_fails()) {
    throw DeviceError(
        "The device (" + config.name +
        ") doesn't support querying the available free memory. You can file an issue at "
        "https://github.com/pytorch/pytorch/issues to help us prioritize its implementation.");
  }
  if (config.reports_no_memory_free) {
    return {0, config.capacity};
  }
  return {std::max<int64_t>(config.capacity - memory_stats(device).reserved_bytes[0].current, 0), config.capacity};
}

bool memory_is_exhausted(int device) noexcept {
  return allocator(device).is_exhausted();
}

std::string out_of_memory_text(int device, int64_t requested) {
  return allocator(device).locked_text(requested);
}

void* allocate_pinned(size_t bytes) {
  constexpr size_t kAlignment = 64;
  void* pointer = std::aligned_alloc(kAlignment, round_up(static_cast<int64_t>(bytes), kAlignment));
  if (pointer == nullptr) {
    throw std::bad_alloc();
  }
  count(Counter::kPinnedAllocations);
  std::unique_lock<std::shared_mutex> lock(pinned().mutex);
  pinned().sizes[static_cast<char*>(pointer)] = bytes;
  return pointer;
}

void deallocate_pinned(void* pointer) noexcept {
  {
    std::unique_lock<std::shared_mutex> lock(pinned().mutex);
    pinned().sizes.erase(static_cast<char*>(pointer));
  }
  std::free(pointer);
}

bool is_pinned(const void* pointer) noexcept {
  const auto* address = static_cast<const char*>(pointer);
  std::shared_lock<std::shared_mutex> lock(pinned().mutex);
  auto found = pinned().sizes.upper_bound(address);
  if (found == pinned().sizes.begin()) {
    return false;
  }
  --found;
  return address < found->first + found->second;
}

}  // namespace xpusim
