// The simulated devices as c10 wants them: allocators, device guard, hooks, generators.
#include "backend.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>

#include <memory>
#include <new>
#include <vector>

#include "../runtime/counters.h"
#include "../runtime/device.h"
#include "../runtime/errors.h"
#include "../runtime/faults.h"
#include "../runtime/memory.h"
#include "../runtime/recording.h"
#include "../runtime/streams.h"

namespace xpusim {
namespace {

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

thread_local int t_kernel_device = KernelScope::kHost;  // the device of the kernel that this thread runs

// ------------------------------------------------------------------------------------------------ memory

void* allocate_or_raise(int device, size_t bytes) {
  try {
    return allocate(device, bytes);
  } catch (const OutOfMemory& error) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
  }
}

class DeviceMemory final : public DeviceAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const int device = current_device();
    void* pointer = allocate_or_raise(device, bytes);
    return {pointer, pointer, &free_device_memory, Device(kXPU, device)};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &free_device_memory;
  }

  void copy_data(void* destination, const void* source, size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }

  bool initialized() override {
    return true;
  }

  void emptyCache(MempoolId_t) override {
    empty_cache();
  }

  void recordStream(const c10::DataPtr& pointer, Stream stream) override {
    record_stream(pointer.get(), stream.id());
  }

  DeviceStats getDeviceStats(DeviceIndex device) override {
    const MemoryStats from = memory_stats(device);
    DeviceStats to;
    copy(from.allocation, to.allocation);
    copy(from.segment, to.segment);
    copy(from.active, to.active);
    copy(from.inactive_split, to.inactive_split);
    copy(from.allocated_bytes, to.allocated_bytes);
    copy(from.reserved_bytes, to.reserved_bytes);
    copy(from.active_bytes, to.active_bytes);
    copy(from.inactive_split_bytes, to.inactive_split_bytes);
    copy(from.requested_bytes, to.requested_bytes);
    to.num_alloc_retries = from.num_alloc_retries;
    to.num_ooms = from.num_ooms;
    return to;
  }

  void resetAccumulatedStats(DeviceIndex device) override {
    reset_accumulated_stats(device);
  }

  void resetPeakStats(DeviceIndex device) override {
    reset_peak_stats(device);
  }

  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex device) override {
    const auto [free, total] = memory_info(device);
    return {static_cast<size_t>(free), static_cast<size_t>(total)};
  }

 private:
  static void copy(const StatArray& from, decltype(DeviceStats::allocation)& to) {
    for (size_t i = 0; i < from.size(); i++) {
      to[i].current = from[i].current;
      to[i].peak = from[i].peak;
      to[i].allocated = from[i].allocated;
      to[i].freed = from[i].freed;
    }
  }
};

// Stands in front of the CPU's allocator, for the sake of KernelScope.
class HostOrDeviceMemory final : public c10::Allocator {
 public:
  explicit HostOrDeviceMemory(c10::Allocator* host) : host_(host) {
    host_deleter = host->raw_deleter();
  }

  c10::DataPtr allocate(size_t bytes) override {
    // A number that a kernel wraps as a tensor stays on the host, as it does for a real device.
    constexpr size_t kScalar = 16;
    if (t_kernel_device == KernelScope::kHost || bytes <= kScalar) {
      return host_->allocate(bytes);
    }
    void* pointer = allocate_or_raise(t_kernel_device, bytes);
    return {pointer, pointer, &free_device_memory, Device(c10::DeviceType::CPU)};
  }

  // oneDNN frees by it what it has allocated in a kernel or outside of one.
  c10::DeleterFnPtr raw_deleter() const override {
    return &free_either;
  }

  void copy_data(void* destination, const void* source, size_t bytes) const override {
    host_->copy_data(destination, source, bytes);
  }

 private:
  static void free_either(void* pointer) {
    if (!deallocate(pointer)) {
      host_deleter(pointer);
    }
  }

  static inline c10::DeleterFnPtr host_deleter = nullptr;
  c10::Allocator* const host_;
};

class PinnedMemory final : public HostAllocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, c10::DeviceType::CPU};
    }
    void* pointer = allocate_pinned(bytes);
    return {pointer, pointer, &deallocate_pinned, c10::DeviceType::CPU};
  }

  c10::DeleterFnPtr raw_deleter() const override {
    return &deallocate_pinned;
  }

  void copy_data(void* destination, const void* source, size_t bytes) const override {
    default_copy_data(destination, source, bytes);
  }

  bool record_event(void*, void*, Stream) override {
    return true;  // a pending copy holds on to its source by itself
  }

  void empty_cache() override {}

  HostStats get_stats() override {
    return {};
  }

  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

PinnedMemory* pinned_memory() {
  static auto* allocator = new PinnedMemory;
  return allocator;
}

// ------------------------------------------------------------------------------------------------ generators

// Random numbers are the CPU's: the same seed gives the same numbers as on the CPU (real XPUs use Philox).
class Generator final : public c10::GeneratorImpl {
 public:
  explicit Generator(DeviceIndex device)
      : GeneratorImpl(Device(kXPU, device), c10::DispatchKeySet(c10::DispatchKey::XPU)),
        cpu(at::detail::createCPUGenerator()) {}

  void set_current_seed(uint64_t seed) override {
    cpu.set_current_seed(seed);
  }

  void set_offset(uint64_t offset) override {
    cpu.set_offset(offset);
  }

  uint64_t get_offset() const override {
    return cpu.get_offset();
  }

  uint64_t current_seed() const override {
    return cpu.current_seed();
  }

  uint64_t seed() override {
    return cpu.seed();
  }

  void set_state(const c10::TensorImpl& state) override {
    cpu.unsafeGetGeneratorImpl()->set_state(state);
  }

  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }

  Generator* clone_impl() const override {
    auto* copy = new Generator(device_.index());
    copy->cpu = cpu.clone();
    return copy;
  }

  at::Generator cpu;
};

const at::Generator& default_generator(DeviceIndex device) {
  static auto* generators = [] {
    auto* list = new std::vector<at::Generator>;
    for (int i = 0; i < kMaxDevices; i++) {
      list->push_back(at::make_generator<Generator>(static_cast<DeviceIndex>(i)));
    }
    return list;
  }();
  return generators->at(device < 0 ? current_device() : device);
}

// Set while Python asks for the default generators themselves, to fill torch.xpu.default_generators.
thread_local bool t_hand_out_defaults = false;

// ------------------------------------------------------------------------------------------------ device guard

class DeviceGuard final : public DeviceGuardInterface {
 public:
  c10::DeviceType type() const override {
    return kXPU;
  }

  Device exchangeDevice(Device device) const override {
    const Device previous = getDevice();
    setDevice(device);
    return previous;
  }

  Device getDevice() const override {
    return Device(kXPU, current_device());
  }

  void setDevice(Device device) const override {
    if (device.index() >= 0) {
      set_current_device(device.index());
    }
  }

  void uncheckedSetDevice(Device device) const noexcept override {
    if (device.index() >= 0) {
      set_current_device_unchecked(device.index());
    }
  }

  DeviceIndex deviceCount() const noexcept override {
    return static_cast<DeviceIndex>(device_count());
  }

  DeviceCapability getDeviceCapability(Device) const override {
    return {};
  }

  Stream getStream(Device device) const noexcept override {
    const int index = index_of(device);
    return Stream(Stream::UNSAFE, Device(kXPU, index), current_stream(index));
  }

  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::DEFAULT, Device(kXPU, index_of(device)));
  }

  Stream getNewStream(Device device, int) const override {
    return Stream(Stream::UNSAFE, Device(kXPU, index_of(device)), new_stream());
  }

  Stream getStreamFromGlobalPool(Device device, bool) const override {
    return getNewStream(device, 0);
  }

  Stream exchangeStream(Stream stream) const noexcept override {
    const Stream previous = getStream(stream.device());
    set_current_stream(stream.device_index(), stream.id());
    return previous;
  }

  void* getStreamNativeHandle(const Stream stream) const override {
    return reinterpret_cast<void*>(kNativeHandles + stream.id());
  }

  bool queryStream(const Stream& stream) const override {
    return query(stream_position(key_of(stream)));
  }

  void synchronizeStream(const Stream& stream) const override {
    count(Counter::kStreamSyncs);
    notify("stream synchronize");
    check_alive();
    check_may_wait(key_of(stream));
    finish_stream(key_of(stream));
  }

  void synchronizeDevice(const DeviceIndex device) const override {
    count(Counter::kDeviceSyncs);
    notify("device synchronize");
    check_alive();
    check_may_wait_for_device(device);
    finish_device(device);
  }

  void recordDataPtrOnStream(const c10::DataPtr& pointer, const Stream& stream) const override {
    record_stream(pointer.get(), stream.id());
  }

  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<Event*>(event);
  }

  void record(void** event, const Stream& stream, const DeviceIndex, const c10::EventFlag) const override {
    check_alive();
    delete static_cast<Event*>(*event);
    *event = new Event{stream_position(key_of(stream)), now_in_milliseconds()};
  }

  void block(void* event, const Stream& stream) const override {
    if (event != nullptr) {
      check_may_wait_between(key_of(stream), static_cast<Event*>(event)->recorded.key);
      wait_for(key_of(stream), static_cast<Event*>(event)->recorded);
    }
  }

  bool queryEvent(void* event) const override {
    return event == nullptr || query(static_cast<Event*>(event)->recorded);
  }

  void synchronizeEvent(void* event) const override {
    count(Counter::kEventSyncs);
    notify("event synchronize");
    check_alive();
    if (event != nullptr) {
      check_may_wait_for_event(static_cast<Event*>(event)->recorded.key);
      finish(static_cast<Event*>(event)->recorded);
    }
  }

  double elapsedTime(void* start, void* end, const DeviceIndex) const override {
    return static_cast<Event*>(end)->milliseconds - static_cast<Event*>(start)->milliseconds;
  }

 private:
  static constexpr intptr_t kNativeHandles = 0x1000;  // feigned addresses of SYCL queues start here

  static int index_of(Device device) {
    return device.index() >= 0 ? device.index() : current_device();
  }

  static StreamKey key_of(const Stream& stream) {
    return {stream.device_index(), stream.id()};
  }
};

// ------------------------------------------------------------------------------------------------ hooks

// Without data members, like its base: the object may be placed over an existing one of the base's type.
class Hooks final : public HooksInterface {
 public:
  Hooks() = default;
  explicit Hooks(at::XPUHooksArgs) {}

  bool isBuilt() const override {
    return true;
  }

  bool isAvailable() const override {
    return device_count() > 0;
  }

  bool hasPrimaryContext(DeviceIndex) const override {
    return true;
  }

  void init() const override {}

  bool hasXPU() const override {
    return true;
  }

  std::string showConfig() const override {
    return "simulated XPU";
  }

  int32_t getGlobalIdxFromDevice(const Device& device) const override {
    return device.index();
  }

  const at::Generator& getDefaultGenerator(DeviceIndex device) const override {
    return default_generator(device);
  }

  at::Generator getNewGenerator(DeviceIndex device) const override {
    if (t_hand_out_defaults) {
      return default_generator(device);
    }
    const int index = device < 0 ? current_device() : device;
    return at::make_generator<Generator>(static_cast<DeviceIndex>(index));
  }

  DeviceIndex getNumGPUs() const override {
    return deviceCount();
  }

  DeviceIndex deviceCount() const override {
    return static_cast<DeviceIndex>(device_count());
  }

  DeviceIndex current_device() const override {
    return getCurrentDevice();
  }

  DeviceIndex getCurrentDevice() const override {
    return static_cast<DeviceIndex>(xpusim::current_device());
  }

  void setCurrentDevice(DeviceIndex device) const override {
    set_current_device(device);
  }

  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    const DeviceIndex previous = getCurrentDevice();
    if (device >= 0) {
      set_current_device(device);
    }
    return previous;
  }

  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return exchangeDevice(device);
  }

  Device getDeviceFromPtr(void* pointer) const override {
    const int device = device_of(pointer);
    return Device(kXPU, device < 0 ? xpusim::current_device() : device);
  }

  void deviceSynchronize(DeviceIndex device) const override {
    DeviceGuard().synchronizeDevice(device);
  }

  at::Allocator* getPinnedMemoryAllocator() const override {
    return pinned_memory();
  }

  bool isPinnedPtr(const void* pointer) const override {
    return is_pinned(pointer);
  }
};

static_assert(sizeof(Hooks) == sizeof(at::XPUHooksInterface));
static_assert(sizeof(at::XPUHooksInterface) == sizeof(void*));

}  // namespace

void free_device_memory(void* pointer) {
  deallocate(pointer);
}

DeviceAllocator* device_allocator() {
  static auto* allocator = new DeviceMemory;
  return allocator;
}

KernelScope::KernelScope(int device) : previous_(t_kernel_device) {
  t_kernel_device = device;
}

KernelScope::~KernelScope() {
  t_kernel_device = previous_;
}

at::Generator cpu_generator(const std::optional<at::Generator>& generator, int device) {
  const at::Generator& given = generator.has_value() ? *generator : default_generator(static_cast<DeviceIndex>(device));
  if (given.device().type() != kXPU) {
    return given;
  }
  return static_cast<Generator*>(given.unsafeGetGeneratorImpl())->cpu;
}

}  // namespace xpusim

namespace at {
using SimulatedXPUHooks = ::xpusim::Hooks;
C10_REGISTER_TYPED_CLASS(XPUHooksRegistry, "XPUHooks", SimulatedXPUHooks)
}  // namespace at

// Called once by Python, after `import torch` and before the first backward pass.
extern "C" __attribute__((visibility("default"))) int xpusim_install(int detach_cuda) {
  using namespace xpusim;
  constexpr uint8_t kOverTheDefault = 1;
  c10::SetAllocator(kXPU, device_allocator(), kOverTheDefault);
  c10::SetAllocator(c10::DeviceType::CPU, new HostOrDeviceMemory(c10::GetDefaultCPUAllocator()), kOverTheDefault);
  set_host_allocator(pinned_memory());
  static const c10::impl::DeviceGuardImplRegistrar registrar(kXPU, new DeviceGuard);

  // Whoever asked for the hooks before has made the stock object and keeps a reference: place ours over it.
  const at::XPUHooksInterface& hooks = at::detail::getXPUHooks();
  if (!hooks.hasXPU()) {
    new (const_cast<at::XPUHooksInterface*>(&hooks)) Hooks();
  }
  // A CUDA build refuses to have two accelerators ("Cannot have both XPU and cuda"): take its hooks away.
  if (detach_cuda != 0) {
    new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) at::CUDAHooksInterface();
  }
  return register_fallbacks();
}

extern "C" __attribute__((visibility("default"))) void xpusim_hand_out_default_generators(int on) {
  xpusim::t_hand_out_defaults = on != 0;
}
