// The operators that are more than a computation: those that make, resize or view memory, copy, or wait; and those for
// which ATen asks accelerators for another operator than the CPU.
#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/Resize.h>
#include <ATen/native/ResizeCommon.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/_scaled_dot_product_attention_math.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/copy_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "../runtime/counters.h"
#include "../runtime/device.h"
#include "../runtime/faults.h"
#include "../runtime/memory.h"
#include "../runtime/quirks.h"
#include "../runtime/recording.h"
#include "../runtime/streams.h"
#include "aliases.h"
#include "backend.h"
#include "fallback.h"
#include "graphs.h"
#include "spoiler.h"

namespace xpusim {
namespace {

using at::Tensor;
using c10::Device;
using c10::DispatchKey;
using c10::DispatchKeySet;
using c10::Storage;
using torch::jit::Stack;

StreamKey stream_of(const Tensor& tensor) {
  const int device = tensor.device().index();
  return {device, current_stream(device)};
}

// ------------------------------------------------------------------------------------------------ memory and views

at::ScalarType type_or_default(std::optional<at::ScalarType> type) {
  return type.value_or(c10::get_default_dtype_as_scalartype());
}

bool fills_uninitialized_memory() {
  const auto& context = at::globalContext();
  return context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory();
}

// As torch-xpu-ops' TensorFactories.cpp and Resize.cpp do: a kernel for each tensor.
Tensor filled(Tensor tensor) {
  if (fills_uninitialized_memory()) {
    const NoDispatch no_dispatch;
    at::native::fill_empty_deterministic_(tensor);
  }
  return tensor;
}

Tensor empty(
    c10::SymIntArrayRef size,
    std::optional<at::ScalarType> type,
    std::optional<at::Layout>,
    std::optional<Device> device,
    std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(device.value_or(Device(kXPU)));
  return filled(at::detail::empty_generic(
      C10_AS_INTARRAYREF_SLOW(size), device_allocator(), DispatchKeySet(DispatchKey::XPU), type_or_default(type),
      format));
}

Tensor empty_strided(
    c10::SymIntArrayRef size,
    c10::SymIntArrayRef strides,
    std::optional<at::ScalarType> type,
    std::optional<at::Layout>,
    std::optional<Device> device,
    std::optional<bool>) {
  const c10::DeviceGuard guard(device.value_or(Device(kXPU)));
  return filled(at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides), device_allocator(),
      DispatchKeySet(DispatchKey::XPU), type_or_default(type)));
}

Tensor as_strided(
    const Tensor& self,
    c10::SymIntArrayRef size,
    c10::SymIntArrayRef strides,
    std::optional<c10::SymInt> offset) {
  count(Counter::kViews);
  std::optional<int64_t> plain_offset;
  if (offset.has_value()) {
    plain_offset = offset->expect_int();
  }
  return at::native::as_strided_tensorimpl(
      self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides), plain_offset);
}

Tensor view(const Tensor& self, c10::SymIntArrayRef size) {
  count(Counter::kViews);
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef strides) {
  count(Counter::kViews);
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(strides));
}

// Grows the storage to hold the tensor, and keeps what was in it.
void reserve_storage(const Tensor& self) {
  auto* storage = self.storage().unsafeGetStorageImpl();
  const size_t bytes = at::detail::computeStorageNbytes(
      self.sizes(), self.strides(), self.element_size(), self.storage_offset());
  if (self.numel() == 0 || bytes <= storage->nbytes()) {
    return;
  }
  c10::DataPtr memory = device_allocator()->allocate(bytes);
  if (storage->nbytes() > 0) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !records(self.device().index()), "The simulated XPU doesn't model a capture in which a tensor grows.");
    std::memcpy(memory.get(), storage->data(), storage->nbytes());
  }
  storage->set_data_ptr_noswap(std::move(memory));
  storage->set_nbytes(bytes);
}

const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> format) {
  const c10::DeviceGuard guard(self.device());
  const auto bytes_before = static_cast<int64_t>(self.storage().nbytes());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(C10_AS_INTARRAYREF_SLOW(size));
  if (format.has_value() && *format != at::MemoryFormat::Contiguous) {
    impl->empty_tensor_restride(*format);
  }
  reserve_storage(self);
  if (fills_uninitialized_memory()) {
    const NoDispatch no_dispatch;
    at::native::fill_resize_deterministic_(self, bytes_before);
  }
  return self;
}

Tensor& set_storage_with_offset(
    Tensor& self,
    Storage storage,
    c10::SymInt offset,
    c10::SymIntArrayRef size,
    c10::SymIntArrayRef strides) {
  TORCH_CHECK(
      storage.device().type() == kXPU, "Attempted to set the storage of a tensor on device \"", self.device(),
      "\" to a storage on different device \"", storage.device(),
      "\". This is no longer allowed; the devices must match.");
  const c10::DeviceGuard guard(self.device());
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  const auto plain_size = C10_AS_INTARRAYREF_SLOW(size);
  const auto plain_strides = C10_AS_INTARRAYREF_SLOW(strides);
  if (plain_strides.empty() && !plain_size.empty()) {
    impl->set_storage_offset(offset.expect_int());
    impl->set_sizes_contiguous(plain_size);
  } else {
    impl->set_sizes_and_strides(plain_size, plain_strides, offset.expect_int());
  }
  reserve_storage(self);
  return self;
}

Tensor& set_storage(Tensor& self, Storage storage) {
  const c10::SymInt elements(static_cast<int64_t>(storage.nbytes() / self.element_size()));
  return set_storage_with_offset(self, std::move(storage), 0, c10::SymIntArrayRef(&elements, 1), {});
}

Tensor& set_to_tensor(Tensor& self, const Tensor& source) {
  return set_storage_with_offset(
      self, source.storage(), source.storage_offset(), source.sym_sizes(), source.sym_strides());
}

Tensor& set_to_nothing(Tensor& self) {
  const c10::DeviceGuard guard(self.device());
  constexpr bool kResizable = true;
  return set_storage(self, Storage(Storage::use_byte_size_t(), 0, device_allocator(), kResizable));
}

bool is_set_to(const Tensor& self, const Tensor& other) {
  return self.storage().unsafeGetStorageImpl() == other.storage().unsafeGetStorageImpl() &&
      self.storage_offset() == other.storage_offset() && self.sizes() == other.sizes() &&
      self.strides() == other.strides();
}

void record_tensor_on_stream(Tensor& self, c10::Stream stream) {
  device_allocator()->recordStream(self.storage().data_ptr(), stream);
}

// ------------------------------------------------------------------------------------------------ copies

bool is_same_layout(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides() &&
      a.is_non_overlapping_and_dense() && a.is_conj() == b.is_conj() && a.is_neg() == b.is_neg();
}

bool is_double(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble || tensor.scalar_type() == at::kComplexDouble;
}

void count_conversion(const Tensor& self, const Tensor& source, OperatorCounters& counters) {
  if (is_double(self) || is_double(source)) {
    count_float64_conversion(counters);
  }
}

void copy_now(const Tensor& self, const Tensor& source) {
  const NoDispatch no_dispatch;
  const KernelTimer timer;
  Aliases aliases;
  Tensor to = aliases.to_host(self);
  at::native::copy_(to, aliases.to_host(source), /*non_blocking=*/false);
}

// A copy in a capture: from device memory, or from the host's, which the graph keeps.
void record_copy(const Tensor& self, const Tensor& source) {
  before_write(self);
  copy_now(self, source);
  record_result(self);
  const Tensor to = at_its_address(self);
  const Tensor from = at_its_address(source);
  record("aten::copy_", {self, source}, [to, from] {
    Tensor destination = to;
    at::native::copy_(destination, from, /*non_blocking=*/false);
  });
}

// How much of a copy lands: all of it, unless a quirk has ordered otherwise. Nobody has reported bytes; that copies of
// copy engines fail on DG2 under `xe` is llama.cpp#27063.
size_t landing(const Tensor& self, StreamKey stream) {
  const bool in_side_stream = stream.stream != 0;
  return in_side_stream && has_quirk(Quirk::kWrongSideStreamCopy) ? self.nbytes() / 2 : self.nbytes();
}

// The rest reads as memory that nobody has written.
void spoil_rest(const Tensor& self, size_t landed) {
  if (landed < self.nbytes() && self.is_non_overlapping_and_dense()) {
    std::memset(static_cast<char*>(self.data_ptr()) + landed, poison_of(self.scalar_type()), self.nbytes() - landed);
  }
}

// Pageable memory is read at once, into pinned memory that the copy is made from later (Copy.cpp).
void stage(Copy& copy) {
  auto staged = std::make_shared<std::vector<char>>(copy.bytes);
  std::memcpy(staged->data(), copy.source, copy.bytes);
  copy.source = staged->data();
  copy.keep_alive = std::move(staged);
}

void copy_later(
    const Tensor& self,
    const Tensor& source,
    StreamKey stream,
    const Tensor& host_side,
    bool is_staged = false) {
  Copy copy;
  copy.destination = self.data_ptr();
  copy.source = source.data_ptr();
  copy.bytes = self.nbytes();
  copy.landing = landing(self, stream);
  copy.poison = poison_of(self.scalar_type());
  copy.keep_alive = std::make_shared<Storage>(host_side.storage());
  if (is_staged) {
    stage(copy);
  }
  enqueue(stream, std::move(copy));
}

// What is enqueued before a copy happens before it; the host waits for that only where the copy blocks.
void reach(StreamKey stream, bool non_blocking) {
  if (non_blocking) {
    before_kernel(stream);
  } else {
    finish_stream(stream);
  }
}

void copy_on_device(const Tensor& self, const Tensor& source, OperatorCounters& counters) {
  const bool same_device = self.device() == source.device();
  if (records(self.device().index())) {
    TORCH_CHECK_NOT_IMPLEMENTED(same_device, "The simulated XPU doesn't model a capture over several devices.");
    if (!is_same_layout(self, source)) {
      count_conversion(self, source, counters);
    }
    record_copy(self, source);
    return;
  }
  count(same_device ? Counter::kD2D : Counter::kPeerToPeer);
  launch_kernel(counters, self.device().index());
  if (!same_device) {
    before_kernel(stream_of(source));
  }
  if (!is_same_layout(self, source)) {
    count_conversion(self, source, counters);
  }
  copy_now(self, source);
  note_written(self);
}

void copy_to_device(const Tensor& self, const Tensor& source, bool non_blocking, OperatorCounters& counters) {
  const StreamKey stream = stream_of(self);
  const bool pinned = is_pinned(source.storage().data());
  if (records(stream.device)) {
    if (!non_blocking) {
      check_may_wait(stream);
    }
    record_copy(self, pinned ? source : source.clone());  // pageable memory is staged, see `stage`
    return;
  }
  count_host_to_device(pinned, non_blocking, source.nbytes());
  if (non_blocking && self.scalar_type() != source.scalar_type()) {
    count_conversion(self, source, counters);  // the conversion is the device's
  }
  if (is_asynchronous() && non_blocking && is_same_layout(self, source)) {
    copy_later(self, source, stream, source, !pinned);
    return;
  }
  reach(stream, non_blocking);
  copy_now(self, source);
  spoil_rest(self, landing(self, stream));
  if (non_blocking) {
    note_written(self);
  }
}

void copy_to_host(const Tensor& self, const Tensor& source, bool non_blocking, OperatorCounters& counters) {
  const StreamKey stream = stream_of(source);
  if (records(stream.device)) {
    check_may_wait(stream);
    TORCH_CHECK_NOT_IMPLEMENTED(false, "The simulated XPU doesn't model a capture with copies to the host.");
  }
  count(non_blocking ? Counter::kD2HNonBlocking : Counter::kD2HBlocking);
  count(Counter::kD2HBytes, static_cast<int64_t>(source.nbytes()));
  notify(non_blocking ? "d2h non_blocking" : "d2h blocking");
  if (non_blocking && self.scalar_type() != source.scalar_type()) {
    count_conversion(self, source, counters);
  }
  if (is_asynchronous() && non_blocking && is_same_layout(self, source)) {
    copy_later(self, source, stream, self);
    return;
  }
  reach(stream, non_blocking);
  copy_now(self, source);
  spoil_rest(self, landing(self, stream));
}

Tensor& copy_(Tensor& self, const Tensor& source, bool non_blocking) {
  static OperatorCounters& counters = operator_counters("aten::copy_");
  if (self.is_same(source) || self.numel() == 0) {
    return self;
  }
  check_alive();
  if (self.is_xpu() && source.is_xpu()) {
    copy_on_device(self, source, counters);
  } else if (self.is_xpu()) {
    copy_to_device(self, source, non_blocking, counters);
  } else {
    copy_to_host(self, source, non_blocking, counters);
  }
  return self;
}

Tensor copy_from(const Tensor& self, const Tensor& destination, bool non_blocking) {
  Tensor to = destination;
  return copy_(to, self, non_blocking);
}

Tensor copy_from_and_resize(const Tensor& self, const Tensor& destination) {
  Tensor to = destination;
  if (to.sizes() != self.sizes()) {
    to.resize_(self.sizes());
  }
  return copy_(to, self, /*non_blocking=*/false);
}

bool all_on(at::TensorList tensors, Device device) {
  return std::all_of(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return tensor.device() == device; });
}

// One kernel within a device; otherwise one copy after the other, as on hardware.
void foreach_copy_(at::TensorList self, at::TensorList source, bool non_blocking) {
  TORCH_CHECK(self.size() == source.size(), "Tensor lists must have the same number of tensors");
  const Device device = self[0].device();
  if (device.type() == kXPU && all_on(self, device) && all_on(source, device)) {
    static OperatorCounters& counters = operator_counters("aten::_foreach_copy_");
    launch_kernel(counters, device.index());
    count_list_metadata();
    for (size_t i = 0; i < self.size(); i++) {
      if (records(device.index())) {
        record_copy(self[i], source[i]);
        continue;
      }
      copy_now(self[i], source[i]);
      note_written(self[i]);
    }
    if (has_quirk(Quirk::kWrongForeachCopy) && self[0].scalar_type() != source[0].scalar_type()) {
      const NoDispatch no_dispatch;
      Aliases aliases;
      aliases.to_host(self.back()).zero_();
    }
    return;
  }
  for (size_t i = 0; i < self.size(); i++) {
    self[i].copy_(source[i], non_blocking);
  }
}

at::Scalar local_scalar_dense(const Tensor& self) {
  count(Counter::kItemSyncs);
  notify("item");
  check_alive();
  check_may_wait(stream_of(self));
  finish_stream(stream_of(self));
  const NoDispatch no_dispatch;
  Aliases aliases;
  return at::_local_scalar_dense(aliases.to_host(self));
}

// ------------------------------------------------------------------------------------------------ other operators

c10::OperatorHandle find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

void convolution(const c10::OperatorHandle& op, DispatchKeySet, Stack* stack) {
  static const c10::OperatorHandle target = find("aten::convolution");
  Aliases aliases;
  run_on_host(op, target, stack, aliases);
}

void convolution_backward(const c10::OperatorHandle& op, DispatchKeySet, Stack* stack) {
  static const c10::OperatorHandle target = find("aten::convolution_backward");
  Aliases aliases;
  run_on_host(op, target, stack, aliases, Adapt::kInsertBiasSizes);
}

// The composite asks which fused kernel an XPU has; a build without XPU answers with an internal assert.
Tensor scaled_dot_product_attention(
    const Tensor& query,
    const Tensor& key,
    const Tensor& value,
    const std::optional<Tensor>& mask,
    double dropout,
    bool is_causal,
    std::optional<double> scale,
    bool enable_gqa) {
  return std::get<0>(at::_scaled_dot_product_attention_math(
      query, key, value, mask, dropout, is_causal, std::nullopt, scale, enable_gqa));
}

}  // namespace

TORCH_LIBRARY_IMPL(_, XPU, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, XPU, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", &view);
  m.impl("_reshape_alias", &reshape_alias);
  m.impl("resize_", &resize_);
  m.impl("set_.source_Storage_storage_offset", &set_storage_with_offset);
  m.impl("set_.source_Storage", &set_storage);
  m.impl("set_.source_Tensor", &set_to_tensor);
  m.impl("set_", &set_to_nothing);
  m.impl("is_set_to", &is_set_to);
  m.impl("record_stream", &record_tensor_on_stream);
  m.impl("copy_", &copy_);
  m.impl("_foreach_copy_", &foreach_copy_);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar_dense);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl("convolution_backward_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution_backward>());
  m.impl("scaled_dot_product_attention", &scaled_dot_product_attention);
}

TORCH_LIBRARY_IMPL(aten, AutogradXPU, m) {
  m.impl("scaled_dot_product_attention", &scaled_dot_product_attention);
}

}  // namespace xpusim
