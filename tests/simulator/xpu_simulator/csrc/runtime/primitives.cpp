#include "primitives.h"

#include <cstdlib>
#include <list>
#include <mutex>
#include <unordered_map>

#include "counters.h"

namespace xpusim {
namespace {

constexpr size_t kDefaultCapacity = 1024;

struct Cache {
  std::mutex mutex;
  bool is_sized = false;
  size_t capacity = kDefaultCapacity;
  std::list<std::string> by_use;  // the last used first
  std::unordered_map<std::string, std::list<std::string>::iterator> found;
};

Cache& cache() {
  static auto* made = new Cache;
  return *made;
}

size_t capacity_from_environment() {
  const char* value = std::getenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY");
  return value == nullptr ? kDefaultCapacity : std::strtoul(value, nullptr, 10);
}

}  // namespace

void use_primitive(const std::string& key) {
  Cache& it = cache();
  std::lock_guard<std::mutex> lock(it.mutex);
  if (!it.is_sized) {
    it.capacity = capacity_from_environment();
    it.is_sized = true;
  }
  const auto found = it.found.find(key);
  if (found != it.found.end()) {
    it.by_use.splice(it.by_use.begin(), it.by_use, found->second);
    count(Counter::kPrimitiveHits);
    return;
  }
  count(Counter::kPrimitiveMisses);
  it.by_use.push_front(key);
  it.found[key] = it.by_use.begin();
  if (it.by_use.size() > it.capacity) {
    it.found.erase(it.by_use.back());
    it.by_use.pop_back();
  }
}

void forget_primitives() {
  Cache& it = cache();
  std::lock_guard<std::mutex> lock(it.mutex);
  it.is_sized = false;
  it.found.clear();
  it.by_use.clear();
}

}  // namespace xpusim
