// Runs an operator's CPU kernel on XPU tensors.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <string>

#include "../runtime/counters.h"
#include "aliases.h"

namespace xpusim {

// The boxed kernel of every operator that has no kernel of its own in kernels.cpp.
void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// The same for `op` by way of the CPU kernel of another operator `target`, whose arguments differ in that a
// convolution's sizes of the bias are inserted. `aliases` are those of the call.
enum class Adapt { kNothing, kInsertBiasSizes };
void run_on_host(
    const c10::OperatorHandle& op,
    const c10::OperatorHandle& target,
    torch::jit::Stack* stack,
    Aliases& aliases,
    Adapt adapt = Adapt::kNothing);

// Nothing above the CPU's kernels sees what is called.
class NoDispatch {
 private:
  c10::impl::ExcludeDispatchKeyGuard guard_{
      c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset};
};

// One kernel on the device's current stream: counted, and raising what was ordered for it. One that is recorded is not
// launched.
void launch_kernel(OperatorCounters& counters, int device);
// A kernel that computes in float64: counted, and refused where the device can't.
void count_float64(OperatorCounters& counters, int device);
// A kernel that only converts to or from float64: counted, and allowed anywhere. torch-xpu-ops is built with
// -fsycl-fp64-conv-emu for DG2 (BuildFlags.cmake), which emulates conversions, and nothing else (intel/llvm#13912).
void count_float64_conversion(OperatorCounters& counters);
void require_fp64(int device);

// A kernel over a list of tensors: its addresses and its chunks are copied from pinned memory before it, each with an
// event by which the host's allocator knows when they were read (torch-xpu-ops' MultiTensorApply.h).
void count_list_metadata();

// A copy between host and device.
void count_host_to_device(bool pinned, bool non_blocking, size_t bytes);

}  // namespace xpusim
