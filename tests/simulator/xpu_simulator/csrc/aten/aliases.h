// Host tensors over device memory, and back. Both share the bytes: nothing is copied.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>
#include <c10/util/SmallVector.h>

namespace xpusim {

// The pairs of storages of one kernel call.
class Aliases {
 public:
  // A CPU tensor over the bytes of an XPU one. Any other tensor is returned as it is.
  at::Tensor to_host(const at::Tensor& tensor);

  // An XPU tensor for what a kernel returned: a view of an argument stays one, and new memory changes hands.
  at::Tensor to_device(const at::Tensor& result, c10::Device device);

  // After the kernel: a written argument takes over what the kernel made of its size and its memory.
  void write_back(const at::Tensor& device_tensor, const at::Tensor& host_tensor);

 private:
  struct Pair {
    c10::Storage device;
    c10::Storage host;
    void* pointer;  // as they were before the kernel
    size_t bytes;
  };

  const c10::Storage& host_storage(const at::Tensor& tensor);

  c10::SmallVector<Pair, 6> pairs_;
};

}  // namespace xpusim
