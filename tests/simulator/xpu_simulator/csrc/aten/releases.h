// What releases of torch differ in, read in their headers. A class here has the functions of 2.14's, so that
// backend.cpp overrides the same ones for every release; an older torch doesn't call those that it lacks.
#pragma once

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Generator.h>
#include <ATen/detail/XPUHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pthread.h>
#include <torch/csrc/utils/device_lazy_init.h>
#include <torch/version.h>

#include <utility>

#define XPUSIM_TORCH_SINCE(minor) (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= (minor))

namespace xpusim {

// ----------------------------------------------------------------------------------- c10/core/CachingDeviceAllocator.h

using c10::CachingDeviceAllocator::DeviceStats;

#if XPUSIM_TORCH_SINCE(9)
using c10::MempoolId_t;
struct DeviceAllocator : c10::DeviceAllocator {
#else
using MempoolId_t = std::pair<uint64_t, uint64_t>;
struct DeviceAllocator : c10::Allocator {
  virtual bool initialized() = 0;
  virtual void emptyCache(MempoolId_t pool) = 0;
  virtual void recordStream(const c10::DataPtr& pointer, c10::Stream stream) = 0;
  virtual DeviceStats getDeviceStats(c10::DeviceIndex device) = 0;
  virtual void resetAccumulatedStats(c10::DeviceIndex device) = 0;
  virtual void resetPeakStats(c10::DeviceIndex device) = 0;
#endif
#if !XPUSIM_TORCH_SINCE(10)
  virtual std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) = 0;
#endif
};

// ------------------------------------------------------------------------------------ ATen/core/CachingHostAllocator.h

#if XPUSIM_TORCH_SINCE(8)
using at::HostAllocator;
using at::HostStats;

inline void set_host_allocator(HostAllocator* allocator) {
  at::setHostAllocator(c10::DeviceType::XPU, allocator);
}
#else
struct HostStats {};

struct HostAllocator : c10::Allocator {
  virtual bool record_event(void* pointer, void* context, c10::Stream stream) = 0;
  virtual void empty_cache() = 0;
  virtual HostStats get_stats() = 0;
  virtual void reset_accumulated_stats() = 0;
  virtual void reset_peak_stats() = 0;
};

inline void set_host_allocator(HostAllocator*) {}  // torch asks the hooks for it
#endif

// ---------------------------------------------------------------------------- c10/core/impl/DeviceGuardImplInterface.h

#if XPUSIM_TORCH_SINCE(10)
using c10::DeviceCapability;
#else
struct DeviceCapability {};
#endif

struct DeviceGuardInterface : c10::impl::DeviceGuardImplInterface {
#if !XPUSIM_TORCH_SINCE(6)
  virtual void synchronizeDevice(c10::DeviceIndex device) const = 0;
#endif
#if !XPUSIM_TORCH_SINCE(10)
  virtual DeviceCapability getDeviceCapability(c10::Device device) const = 0;
#endif
#if !XPUSIM_TORCH_SINCE(11)
  virtual void* getStreamNativeHandle(c10::Stream stream) const = 0;
#endif
};

// ------------------------------------------------------------------------------------- ATen/detail/XPUHooksInterface.h

struct HooksInterface : at::XPUHooksInterface {
#if !XPUSIM_TORCH_SINCE(7)
  virtual bool isBuilt() const = 0;
  virtual bool isAvailable() const = 0;
#endif
#if !XPUSIM_TORCH_SINCE(6)
  virtual void init() const = 0;
  virtual const at::Generator& getDefaultGenerator(c10::DeviceIndex device) const = 0;
  virtual at::Generator getNewGenerator(c10::DeviceIndex device) const = 0;

  void initXPU() const override {
    init();
  }

  const at::Generator& getDefaultXPUGenerator(c10::DeviceIndex device) const override {
    return getDefaultGenerator(device);
  }

  at::Generator getXPUGenerator(c10::DeviceIndex device) const override {
    return getNewGenerator(device);
  }
#endif
};

// --------------------------------------------------------------------------------- torch/csrc/utils/device_lazy_init.h

#if XPUSIM_TORCH_SINCE(8)
inline void register_fork_handler() {
  torch::utils::register_fork_handler_for_device_init(c10::DeviceType::XPU);
}

inline bool is_in_bad_fork() {
  return torch::utils::is_device_in_bad_fork(c10::DeviceType::XPU);
}
#else
inline bool g_in_bad_fork = false;

inline void register_fork_handler() {  // as 2.7's torch/csrc/xpu/Module.cpp does
  [[maybe_unused]] static const int once = pthread_atfork(nullptr, nullptr, [] {
    g_in_bad_fork = true;
    torch::utils::set_requires_device_init(c10::DeviceType::XPU, true);
  });
}

inline bool is_in_bad_fork() {
  return g_in_bad_fork;
}
#endif

}  // namespace xpusim
