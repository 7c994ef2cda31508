#include "aliases.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/TensorImpl.h>

#include <cstring>
#include <utility>

#include "backend.h"

namespace xpusim {
namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::Storage;
using c10::StorageImpl;

// A host storage holds on to the device's: an asynchronous collective outlives the call.
void release_device_storage(void* storage) {
  c10::raw::intrusive_ptr::decref(static_cast<c10::intrusive_ptr_target*>(storage));
}

Tensor make_tensor(Storage storage, DispatchKey key, const Tensor& like) {
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) {
    made._set_conj(true);
  }
  if (like.is_neg()) {
    made._set_neg(true);
  }
  return made;
}

// Takes the memory out of a host storage as device memory. A kernel's memory nearly always is already, see KernelScope;
// what it had made earlier, or elsewhere, is copied.
c10::DataPtr take_memory(StorageImpl* host, c10::Device device) {
  if (host->data_ptr().get_deleter() == &free_device_memory || host->nbytes() == 0) {
    c10::DataPtr memory = host->set_data_ptr(c10::DataPtr(nullptr, c10::DeviceType::CPU));
    memory.unsafe_set_device(device);
    return memory;
  }
  const c10::DeviceGuard guard(device);
  c10::DataPtr memory = device_allocator()->allocate(host->nbytes());
  std::memcpy(memory.get(), host->data(), host->nbytes());
  return memory;
}

}  // namespace

const Storage& Aliases::host_storage(const Tensor& tensor) {
  const Storage& device = tensor.storage();
  StorageImpl* impl = device.unsafeGetStorageImpl();
  for (const Pair& pair : pairs_) {
    if (pair.device.unsafeGetStorageImpl() == impl) {
      return pair.host;
    }
  }
  void* pointer = impl->mutable_data_ptr().get();
  c10::raw::intrusive_ptr::incref(impl);
  c10::DataPtr alias(pointer, impl, &release_device_storage, c10::DeviceType::CPU);
  constexpr bool kResizable = true;
  Storage host(
      Storage::use_byte_size_t(), impl->nbytes(), std::move(alias), c10::GetAllocator(c10::DeviceType::CPU), kResizable);
  pairs_.push_back({device, std::move(host), pointer, impl->nbytes()});
  return pairs_.back().host;
}

Tensor Aliases::to_host(const Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_xpu()) {
    return tensor;
  }
  Tensor host = make_tensor(host_storage(tensor), DispatchKey::CPU, tensor);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    host.unsafeGetTensorImpl()->set_wrapped_number(true);
  }
  return host;
}

Tensor Aliases::to_device(const Tensor& result, c10::Device device) {
  if (!result.defined() || !result.is_cpu()) {
    return result;
  }
  TORCH_CHECK_NOT_IMPLEMENTED(
      result.layout() == at::kStrided, "The simulated XPU knows strided tensors only, got ", result.layout());
  StorageImpl* host = result.storage().unsafeGetStorageImpl();
  for (const Pair& pair : pairs_) {
    if (pair.host.unsafeGetStorageImpl() == host) {
      return make_tensor(pair.device, DispatchKey::XPU, result);
    }
  }
  const size_t bytes = host->nbytes();
  constexpr bool kResizable = true;
  Storage storage(Storage::use_byte_size_t(), bytes, take_memory(host, device), device_allocator(), kResizable);
  pairs_.push_back({storage, result.storage(), nullptr, bytes});
  return make_tensor(std::move(storage), DispatchKey::XPU, result);
}

void Aliases::write_back(const Tensor& device_tensor, const Tensor& host_tensor) {
  if (!device_tensor.defined() || !device_tensor.is_xpu()) {
    return;
  }
  StorageImpl* impl = device_tensor.storage().unsafeGetStorageImpl();
  for (Pair& pair : pairs_) {
    if (pair.device.unsafeGetStorageImpl() != impl) {
      continue;
    }
    StorageImpl* host = pair.host.unsafeGetStorageImpl();
    if (host->nbytes() != pair.bytes || host->data_ptr().get() != pair.pointer) {
      pair.bytes = host->nbytes();
      impl->set_data_ptr_noswap(take_memory(host, impl->device()));
      impl->set_nbytes(pair.bytes);
      pair.pointer = nullptr;
    }
    break;
  }
  if (device_tensor.sizes() != host_tensor.sizes() || device_tensor.strides() != host_tensor.strides() ||
      device_tensor.storage_offset() != host_tensor.storage_offset()) {
    device_tensor.unsafeGetTensorImpl()->set_sizes_and_strides(
        host_tensor.sizes(), host_tensor.strides(), host_tensor.storage_offset());
  }
}

}  // namespace xpusim
