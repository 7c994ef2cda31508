#include "fallback.h"

#include <ATen/ops/copy_native.h>
#include <ATen/ops/to_native.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <set>
#include <sstream>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../runtime/device.h"
#include "../runtime/errors.h"
#include "../runtime/faults.h"
#include "../runtime/primitives.h"
#include "../runtime/quirks.h"
#include "../runtime/recording.h"
#include "../runtime/streams.h"
#include "backend.h"
#include "graphs.h"
#include "spoiler.h"

namespace xpusim {
namespace {

using at::Tensor;
using c10::Device;
using c10::IValue;
using torch::jit::Stack;

enum class Softmax { kNone, kForward, kBackward };
// What oneDNN has primitives for: a product or a convolution is one, a convolution's backward pass one for each gradient.
enum class Primitives { kNone, kOne, kGradients };

// What the fallback has to know of an operator, read from its schema once.
struct Operator {
  explicit Operator(OperatorCounters& counters_of_operator) : counters(counters_of_operator) {}

  OperatorCounters& counters;
  bool is_view = false;
  bool takes_host_indices = false;
  bool result_shape_depends_on_data = false;
  bool computes_in_float = false;
  bool computes_in_double = false;
  bool takes_lists = false;
  bool writes_unsaid = false;  // arguments that its schema calls read-only
  Primitives primitives = Primitives::kNone;
  Spoilable spoilable = Spoilable::kNothing;
  Softmax softmax = Softmax::kNone;
  c10::SmallVector<bool, 8> is_written;            // for every argument
  c10::SmallVector<int, 2> generator_arguments;
  c10::SmallVector<int, 4> returned_argument;      // for every result: the written argument that it is, or -1
};

bool starts_with(const std::string& text, const char* prefix) {
  return text.rfind(prefix, 0) == 0;
}

bool takes_host_indices(const std::string& name) {
  static const char* const kPrefixes[] = {
      "aten::index.", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index",
      "aten::_pack_padded_sequence", "aten::_ctc_loss"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes), [&](const char* p) { return starts_with(name, p); });
}

// Operators after which the host waits, to learn the size of the result or its value.
bool waits_for_result(const std::string& name) {
  static const std::set<std::string> kNames = {
      "aten::nonzero",        "aten::masked_select",      "aten::equal",
      "aten::_unique",        "aten::_unique2",           "aten::unique_dim",
      "aten::unique_consecutive", "aten::unique_dim_consecutive", "aten::repeat_interleave.Tensor",
      "aten::bincount",       "aten::_is_all_true",       "aten::_is_any_true",
      "aten::histc",          "torchvision::nms"};
  return kNames.count(name) != 0;
}

// Slow in 16 bits on most CPUs. An XPU accumulates in float too.
bool computes_in_float(const std::string& name) {
  static const std::set<std::string> kNames = {
      "aten::convolution_overrideable", "aten::convolution_backward_overrideable", "aten::mm", "aten::addmm",
      "aten::bmm", "aten::baddbmm"};
  return kNames.count(name) != 0;
}

bool takes_lists(const std::string& name) {
  static const char* const kPrefixes[] = {"aten::_foreach_", "aten::_fused_", "aten::_amp_foreach_"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes), [&](const char* p) { return starts_with(name, p); });
}

// Running statistics: in the schema of `native_batch_norm` nothing says that they are written.
bool writes_unsaid(const std::string& name) {
  static const char* const kPrefixes[] = {"aten::native_batch_norm", "aten::_batch_norm_impl_index"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes), [&](const char* p) { return starts_with(name, p); });
}

Primitives primitives_of(const std::string& name) {
  if (name == "aten::convolution_backward_overrideable") {
    return Primitives::kGradients;
  }
  return computes_in_float(name) ? Primitives::kOne : Primitives::kNone;
}

// Kernels that compute with numbers of the host in double, whatever the tensors hold: `double lr, beta1 …` in
// torch-xpu-ops' FusedAdamUtils.h, FusedSgdKernels.cpp and FusedAdagradKernels.cpp, `double growth_factor_` in
// AmpKernels.cpp (2.5 … 2.14, read at ab84f925a).
bool computes_in_double(const std::string& name) {
  static const char* const kPrefixes[] = {
      "aten::_amp_update_scale", "aten::_fused_adam_", "aten::_fused_adamw_", "aten::_fused_sgd_",
      "aten::_fused_adagrad_"};
  return std::any_of(std::begin(kPrefixes), std::end(kPrefixes), [&](const char* p) { return starts_with(name, p); });
}

Softmax softmax_kind(const std::string& name) {
  if (name == "aten::_softmax" || name == "aten::_log_softmax") {
    return Softmax::kForward;
  }
  if (name == "aten::_softmax_backward_data" || name == "aten::_log_softmax_backward_data") {
    return Softmax::kBackward;
  }
  return Softmax::kNone;
}

std::unique_ptr<Operator> describe(const c10::OperatorHandle& op, const std::string& name) {
  auto made = std::make_unique<Operator>(operator_counters(name));
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); i++) {
    const auto* alias = arguments[i].alias_info();
    made->is_written.push_back(alias != nullptr && alias->isWrite());
    if (arguments[i].type()->str().find("Generator") != std::string::npos) {
      made->generator_arguments.push_back(static_cast<int>(i));
    }
  }
  for (const auto& result : op.schema().returns()) {
    int which = -1;
    const auto* alias = result.alias_info();
    if (alias != nullptr && !alias->isWrite()) {
      made->is_view = true;
    }
    for (size_t i = 0; which < 0 && alias != nullptr && alias->isWrite() && i < arguments.size(); i++) {
      if (made->is_written[i] && *arguments[i].alias_info() == *alias) {
        which = static_cast<int>(i);
      }
    }
    made->returned_argument.push_back(which);
  }
  made->takes_host_indices = takes_host_indices(name);
  made->result_shape_depends_on_data = waits_for_result(name);
  made->computes_in_float = computes_in_float(name);
  made->computes_in_double = computes_in_double(name);
  made->spoilable = spoilable(name);
  made->takes_lists = takes_lists(name);
  made->writes_unsaid = writes_unsaid(name);
  made->primitives = primitives_of(name);
  made->softmax = softmax_kind(name);
  return made;
}

const Operator& look_up(const c10::OperatorHandle& op) {
  static std::mutex mutex;
  static auto* known = new std::unordered_map<c10::OperatorName, std::unique_ptr<Operator>>;
  std::lock_guard<std::mutex> lock(mutex);
  auto& entry = (*known)[op.operator_name()];
  if (!entry) {
    entry = describe(op, c10::toString(op.operator_name()));
  }
  return *entry;
}

// ---- over all tensors of an argument or a result

bool is_list_of_tensor_lists(const IValue& value) {
  if (!value.isList()) {
    return false;
  }
  const auto element = value.toList().elementType();
  return element->kind() == c10::TypeKind::ListType &&
      element->castRaw<c10::ListType>()->getElementType()->kind() == c10::TypeKind::TensorType;
}

template <class Map>
std::vector<Tensor> map_list(const std::vector<Tensor>& tensors, Map map) {
  std::vector<Tensor> mapped;
  mapped.reserve(tensors.size());
  for (const Tensor& tensor : tensors) {
    mapped.push_back(map(tensor));
  }
  return mapped;
}

template <class Map>
void map_tensors(IValue& value, Map map) {
  if (value.isTensor()) {
    value = map(value.toTensor());
  } else if (value.isTensorList()) {
    value = map_list(value.toTensorVector(), map);
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> mapped;
    for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector()) {
      const bool present = tensor.has_value() && tensor->defined();
      mapped.push_back(present ? std::optional<Tensor>(map(*tensor)) : tensor);
    }
    value = std::move(mapped);
  } else if (is_list_of_tensor_lists(value)) {
    std::vector<std::vector<Tensor>> mapped;
    for (const IValue& list : value.toListRef()) {
      mapped.push_back(map_list(list.toTensorVector(), map));
    }
    value = std::move(mapped);
  }
}

Tensor cast(const Tensor& tensor, at::ScalarType type) {
  return at::native::to(tensor, type, /*non_blocking=*/false, /*copy=*/true, std::nullopt);
}

bool is_double(const Tensor& tensor) {
  return tensor.scalar_type() == at::kDouble || tensor.scalar_type() == at::kComplexDouble;
}

// What the arguments tell of the call.
struct Arguments {
  Device device{kXPU, -1};
  bool any_on_device = false;
  bool any_on_host = false;  // other than scalars that are only read
  bool any_double = false;
  size_t host_bytes = 0;

  void see(const Tensor& tensor, bool is_written) {
    if (!tensor.defined()) {
      return;
    }
    if (!tensor.is_xpu()) {
      if (tensor.is_cpu() && (tensor.dim() > 0 || is_written)) {
        any_on_host = true;
        host_bytes += tensor.nbytes();
      }
      return;
    }
    if (!any_on_device) {
      any_on_device = true;
      device = tensor.device();
    }
    TORCH_CHECK(
        tensor.device() == device || tensor.dim() == 0,
        "Expected all tensors to be on the same device, but found at least two devices, ", device, " and ",
        tensor.device(), "!");
    any_double |= is_double(tensor);
  }
};

// An argument that the kernel writes: as it came, and as the kernel got it.
struct Written {
  int argument;
  IValue device;
  IValue host;
};

bool any_mask(const IValue& indices) {
  if (!indices.isOptionalTensorList()) {
    return false;
  }
  for (const std::optional<Tensor>& index : indices.toOptionalTensorVector()) {
    if (index.has_value() && index->defined() && index->scalar_type() == at::kBool) {
      return true;
    }
  }
  return false;
}

// x[mask] = number becomes masked_fill_, without a wait, when the number lies on the host.
bool becomes_masked_fill(const Operator& op, const IValue* arguments) {
  if (!starts_with(op.counters.name, "aten::_index_put_impl_")) {
    return false;
  }
  const Tensor& value = arguments[2].toTensor();
  return value.numel() == 1 && value.is_cpu();
}

// CPU kernels refuse the softmax from half to float that ATen asks of accelerators: cast first, or afterwards.
std::optional<at::ScalarType> split_softmax(const Operator& op, IValue* arguments) {
  if (op.softmax == Softmax::kForward && arguments[2].toBool()) {
    arguments[0] = cast(arguments[0].toTensor(), at::kFloat);
    arguments[2] = false;
  } else if (op.softmax == Softmax::kBackward) {
    const at::ScalarType computed = arguments[0].toTensor().scalar_type();
    const auto wanted = static_cast<at::ScalarType>(arguments[3].toInt());
    if (computed != wanted) {
      arguments[3] = static_cast<int64_t>(computed);
      return wanted;
    }
  }
  return std::nullopt;
}

bool has_type(const IValue& value, at::ScalarType type) {
  return value.isTensor() && value.toTensor().defined() && value.toTensor().scalar_type() == type;
}

// Casts the tensors of 16 bits, and returns their type.
std::optional<at::ScalarType> cast_to_float(IValue* arguments, size_t n) {
  std::optional<at::ScalarType> from;
  for (size_t i = 0; i < n; i++) {
    for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
      if (has_type(arguments[i], type)) {
        arguments[i] = cast(arguments[i].toTensor(), at::kFloat);
        from = type;
      }
    }
  }
  return from;
}

void cast_from_float(IValue* results, size_t n, at::ScalarType type) {
  for (size_t i = 0; i < n; i++) {
    if (has_type(results[i], at::kFloat)) {
      results[i] = cast(results[i].toTensor(), type);
    }
  }
}

// convolution_backward has the sizes of the bias where convolution_backward_overrideable has not.
void insert_bias_sizes(Stack* stack, size_t base) {
  const IValue* arguments = stack->data() + base;
  const Tensor& weight = arguments[2].toTensor();
  const bool transposed = arguments[6].toBool();
  const int64_t groups = arguments[8].toInt();
  const int64_t channels = transposed ? weight.size(1) * groups : weight.size(0);
  stack->insert(stack->begin() + static_cast<ptrdiff_t>(base) + 3, IValue(std::vector<int64_t>{channels}));
}

// What a primitive depends on: of a tensor its type, its sizes and its layout.
void write_key(std::ostream& out, const IValue& argument) {
  if (argument.isTensor() && argument.toTensor().defined()) {
    const Tensor& tensor = argument.toTensor();
    out << ' ' << tensor.scalar_type() << tensor.sizes();
    if (tensor.dim() < 4) {
      out << tensor.strides();
    } else {
      out << tensor.suggest_memory_format();
    }
  } else if (argument.isIntList()) {
    out << ' ' << at::IntArrayRef(argument.toIntVector());
  } else if (argument.isInt()) {
    out << ' ' << argument.toInt();
  } else if (argument.isBool()) {
    out << ' ' << argument.toBool();
  }
}

// One call of an operator, from the device's tensors on the stack to the device's results on it.
class HostCall {
 public:
  HostCall(const c10::OperatorHandle& handle, Stack* stack, Aliases& aliases)
      : op_(look_up(handle)),
        stack_(stack),
        aliases_(aliases),
        n_arguments_(handle.schema().arguments().size()),
        n_results_(handle.schema().returns().size()),
        base_(stack->size() - n_arguments_) {}

  void move_arguments_to_host() {
    const bool self_on_host = n_arguments_ > 0 && at(0).isTensor() && at(0).toTensor().is_cpu();
    for (size_t i = 0; i < n_arguments_; i++) {
      move_argument_to_host(i);
    }
    if (!seen_.any_on_device) {
      seen_.device = Device(kXPU, wanted_.index() >= 0 ? wanted_.index() : current_device());
    }
    if (seen_.any_on_device && seen_.any_on_host) {
      TORCH_CHECK(
          op_.takes_host_indices, "Expected all tensors to be on the same device, but found at least two devices, ",
          seen_.device, " and cpu! (when checking arguments of ", op_.counters.name, ")");
      TORCH_CHECK(
          !self_on_host, "indices should be either on cpu or on the same device as the indexed tensor (cpu)");
      count_host_to_device(/*pinned=*/false, /*non_blocking=*/false, seen_.host_bytes);
    }
    for (const int i : op_.generator_arguments) {
      at(i) = cpu_generator(at(i).toOptional<at::Generator>(), device());
    }
  }

  void launch() {
    if (op_.is_view) {
      count(Counter::kViews);
      return;
    }
    launch_kernel(op_.counters, device());
    if (op_.primitives != Primitives::kNone && any_channels_last(&at(0), n_arguments_)) {
      count(Counter::kChannelsLastPrimitives);
    }
    if (op_.result_shape_depends_on_data || counts_a_mask()) {
      check_may_wait({device(), current_stream(device())});
      count(Counter::kImplicitSyncs);
      notify(op_.counters.name.c_str());
      finish_stream({device(), current_stream(device())});
    }
    if (seen_.any_double) {
      count_float64(op_.counters, device());
    }
    if (op_.computes_in_double) {
      require_fp64(device());
    }
    if (op_.takes_lists) {
      count_list_metadata();
    }
    if (op_.primitives != Primitives::kNone) {
      count_primitives();
    }
  }

  void run(const c10::OperatorHandle& target, Adapt adapt) {
    if (is_recorded()) {
      before_recording();
    }
    compute(op_, target, adapt, stack_, base_, n_results_, device());
    base_ = stack_->size() - n_results_;
  }

  // A replay computes what this call did, from the same addresses to the same addresses.
  void record_for_replay(const c10::OperatorHandle& target, Adapt adapt) {
    if (!is_recorded()) {
      return;
    }
    std::vector<Tensor> tensors;
    const auto keep = [&](const Tensor& tensor) {
      tensors.push_back(tensor);
      return at_its_address(tensor);
    };
    for (const Written& argument : written_) {  // which an `out` was resized to
      recorded_[argument.argument] = argument.device;
    }
    for (IValue& argument : recorded_) {
      map_tensors(argument, keep);
    }
    std::vector<IValue> results;
    for (size_t i = 0; i < n_results_; i++) {
      results.push_back(op_.returned_argument[i] >= 0 ? IValue() : at(i));
      map_tensors(results.back(), keep);
      map_tensors(results.back(), [](const Tensor& tensor) {
        record_result(tensor);
        return tensor;
      });
    }
    const auto again = [&op = op_, target, adapt, arguments = std::move(recorded_), results = std::move(results)] {
      Stack stack(arguments.begin(), arguments.end());
      compute(op, target, adapt, &stack, 0, results.size(), KernelScope::kHost);
      for (size_t i = 0; i < results.size(); i++) {
        copy_results(stack[i], results[i]);
      }
    };
    record(op_.counters.name, std::move(tensors), again);
  }

  void move_results_to_device() {
    for (const Written& argument : written_) {
      write_back(argument);
    }
    bool any_double = false;
    for (size_t i = 0; i < n_results_; i++) {
      if (op_.returned_argument[i] >= 0) {
        at(i) = argument_as_it_came(op_.returned_argument[i]);
        continue;
      }
      map_tensors(at(i), [&](const Tensor& tensor) {
        Tensor on_device = aliases_.to_device(tensor, seen_.device);
        any_double |= on_device.defined() && on_device.is_xpu() && is_double(on_device);
        return on_device;
      });
    }
    if (has_quirk(Quirk::kCorruptEmptyCache) && !op_.is_view) {
      note_writes();
    }
    if (any_double && !seen_.any_double && !op_.is_view) {
      count_float64(op_.counters, device());
    }
  }

 private:
  // Copies that a real device wouldn't make lie in the host's memory, not in the device's.
  static void compute(
      const Operator& op,
      const c10::OperatorHandle& target,
      Adapt adapt,
      Stack* stack,
      size_t base,
      size_t n_results,
      int device) {
    IValue* arguments = stack->data() + base;
    const size_t n_arguments = stack->size() - base;
    std::optional<KernelTimer> timer;
    if (!op.is_view) {
      timer.emplace();
    }
    std::optional<Spoiler> spoiler;
    if (any_quirk()) {
      const NoDispatch guard;
      spoiler.emplace(op.spoilable, arguments, n_arguments);
    }
    std::optional<at::ScalarType> cast_from;
    if (op.computes_in_float) {
      cast_from = cast_to_float(arguments, n_arguments);
    }
    const auto cast_result = split_softmax(op, arguments);
    if (adapt == Adapt::kInsertBiasSizes) {
      insert_bias_sizes(stack, base);
    }
    {
      const NoDispatch guard;
      const KernelScope scope(cast_from || cast_result ? KernelScope::kHost : device);
      target.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
    }
    IValue* results = stack->data() + (stack->size() - n_results);
    if (spoiler) {
      const NoDispatch guard;
      spoiler->spoil(results);
    }
    const KernelScope scope(device);
    if (cast_from) {
      cast_from_float(results, n_results, *cast_from);
    }
    if (cast_result) {
      results[0] = cast(results[0].toTensor(), *cast_result);
    }
  }

  static void copy_results(IValue& computed, const IValue& recorded) {
    if (recorded.isTensor()) {
      copy_result(computed.toTensor(), recorded.toTensor());
    } else if (recorded.isTensorList()) {
      const auto from = computed.toTensorVector();
      const auto to = recorded.toTensorVector();
      for (size_t i = 0; i < to.size(); i++) {
        copy_result(from[i], to[i]);
      }
    }
  }

  static void copy_result(const Tensor& computed, Tensor recorded) {
    if (recorded.defined() && recorded.numel() > 0 && computed.data_ptr() != recorded.data_ptr()) {
      TORCH_CHECK(
          computed.sizes() == recorded.sizes(), "A replay gave a result of another size, ", computed.sizes(),
          " instead of ", recorded.sizes());
      at::native::copy_(recorded, computed, /*non_blocking=*/false);
    }
  }

  bool is_recorded() const {
    return !op_.is_view && records(device());
  }

  void before_recording() {
    const auto note = [](const Tensor& tensor) {
      before_write(tensor);
      return tensor;
    };
    for (size_t i = 0; i < n_arguments_; i++) {
      recorded_.push_back(at(i));
      if (op_.writes_unsaid) {
        map_tensors(at(i), note);
      }
    }
    for (Written& argument : written_) {
      map_tensors(argument.device, note);
    }
    for (const int i : op_.generator_arguments) {
      before_draw(at(i).toGenerator());
    }
  }

  void count_primitives() {
    std::ostringstream key;
    key << op_.counters.name;
    for (size_t i = 0; i < n_arguments_; i++) {
      write_key(key, at(i));
    }
    if (op_.primitives == Primitives::kOne) {
      use_primitive(key.str());
      return;
    }
    const auto wanted = at(n_arguments_ - 1).toBoolList();
    for (size_t gradient = 0; gradient < 2; gradient++) {  // the bias' is a sum
      if (wanted[gradient]) {
        use_primitive(key.str() + (gradient == 0 ? " of the input" : " of the weight"));
      }
    }
  }

  // An argument before the kernel, a result after it.
  IValue& at(size_t i) {
    return *(stack_->data() + base_ + i);
  }

  int device() const {
    return seen_.device.index();
  }

  void move_argument_to_host(size_t i) {
    IValue& argument = at(i);
    if (argument.isDevice() && argument.toDevice().type() == kXPU) {
      wanted_ = argument.toDevice();
      argument = Device(c10::DeviceType::CPU);
      return;
    }
    if (op_.is_written[i]) {
      written_.push_back({static_cast<int>(i), argument, IValue()});
    }
    map_tensors(argument, [&](const Tensor& tensor) {
      seen_.see(tensor, op_.is_written[i]);
      return aliases_.to_host(tensor);
    });
    if (op_.is_written[i]) {
      written_.back().host = argument;
    }
  }

  bool counts_a_mask() {
    return op_.takes_host_indices && n_arguments_ > 1 && any_mask(at(1)) && !becomes_masked_fill(op_, &at(0));
  }

  void write_back(const Written& argument) {
    if (argument.device.isTensor()) {
      aliases_.write_back(argument.device.toTensor(), argument.host.toTensor());
    } else if (argument.device.isTensorList()) {
      const auto on_device = argument.device.toTensorVector();
      const auto on_host = argument.host.toTensorVector();
      for (size_t i = 0; i < on_device.size(); i++) {
        aliases_.write_back(on_device[i], on_host[i]);
      }
    }
  }

  void note_writes() {
    const auto note = [](const Tensor& tensor) {
      note_written(tensor);
      return tensor;
    };
    for (size_t i = 0; i < n_results_; i++) {
      map_tensors(at(i), note);
    }
    for (Written& argument : written_) {
      map_tensors(argument.device, note);
    }
  }

  const IValue& argument_as_it_came(int which) const {
    const auto found = std::find_if(
        written_.begin(), written_.end(), [&](const Written& argument) { return argument.argument == which; });
    return found->device;
  }

  const Operator& op_;
  Stack* const stack_;
  Aliases& aliases_;
  const size_t n_arguments_;
  const size_t n_results_;
  size_t base_;
  Arguments seen_;
  Device wanted_{kXPU, -1};  // a factory's argument
  c10::SmallVector<Written, 4> written_;
  std::vector<IValue> recorded_;  // the arguments, in a capture
};

}  // namespace

void launch_kernel(OperatorCounters& counters, int device) {
  if (records(device)) {
    return;
  }
  counters.launches.fetch_add(1, std::memory_order_relaxed);
  try {
    launch(device);
  } catch (const OutOfMemory& error) {
    TORCH_CHECK_WITH(OutOfMemoryError, false, error.what());
  }
  before_kernel({device, current_stream(device)});
}

void require_fp64(int device) {
  if (!has_fp64(device)) {
    throw DeviceError("Required aspect fp64 is not supported on the device");
  }
}

void count_float64_conversion(OperatorCounters& counters) {
  counters.float64.fetch_add(1, std::memory_order_relaxed);
}

void count_float64(OperatorCounters& counters, int device) {
  count_float64_conversion(counters);
  require_fp64(device);
}

void count_list_metadata() {
  if (records(current_device())) {
    return;
  }
  constexpr int64_t kCopies = 2;
  count(Counter::kMetadataCopies, kCopies);
  count(Counter::kBarriers, kCopies);
}

// Copy.cpp stages pageable memory in pinned memory where a copy doesn't block, and records an event either way.
void count_host_to_device(bool pinned, bool non_blocking, size_t bytes) {
  if (non_blocking) {
    count(Counter::kBarriers);
  }
  if (pinned) {
    count(non_blocking ? Counter::kH2DPinnedNonBlocking : Counter::kH2DPinnedBlocking);
    notify(non_blocking ? "h2d pinned non_blocking" : "h2d pinned blocking");
  } else {
    count(non_blocking ? Counter::kH2DPageableNonBlocking : Counter::kH2DPageableBlocking);
    notify(non_blocking ? "h2d pageable non_blocking" : "h2d pageable blocking");
  }
  count(Counter::kH2DBytes, static_cast<int64_t>(bytes));
}

void run_on_host(
    const c10::OperatorHandle& op,
    const c10::OperatorHandle& target,
    Stack* stack,
    Aliases& aliases,
    Adapt adapt) {
  HostCall call(op, stack, aliases);
  call.move_arguments_to_host();
  call.launch();
  call.run(target, adapt);
  call.move_results_to_device();
  call.record_for_replay(target, adapt);
}

namespace {

// The operators that this build of PyTorch is to have no XPU kernels of: `XPU_SIMULATOR_MISSING=aten::silu.out,…`.
const std::set<std::string>& missing() {
  static const std::set<std::string> names = [] {
    std::set<std::string> found;
    const char* value = std::getenv("XPU_SIMULATOR_MISSING");
    std::istringstream list(value == nullptr ? "" : value);
    for (std::string name; std::getline(list, name, ',');) {
      found.insert(name);
    }
    return found;
  }();
  return names;
}

}  // namespace

void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  if (!missing().empty()) {
    // The text is torch-xpu-ops', src/ATen/native/xpu/XPUFallback.cpp.
    TORCH_CHECK_NOT_IMPLEMENTED(
        missing().count(c10::toString(op.operator_name())) == 0,
        "The operator '", op.operator_name(), "' is not currently implemented for the XPU device. Please open a feature "
        "on https://github.com/intel/torch-xpu-ops/issues. You can set the environment variable "
        "`PYTORCH_ENABLE_XPU_FALLBACK=1` to use the CPU implementation as a fallback for XPU unimplemented operators. "
        "WARNING: this will bring unexpected performance compared with running natively on XPU.");
  }
  Aliases aliases;
  run_on_host(op, op, stack, aliases);
}

// A structured operator would otherwise run as `empty` and `op.out`, and a foreach operator as a loop of kernels: slower,
// and miscounted. So every operator that the CPU has a kernel for gets the fallback by name.
int register_fallbacks() {
  static torch::Library library(torch::Library::IMPL, "aten", c10::DispatchKey::XPU, __FILE__, __LINE__);
  static int registered = 0;
  if (registered > 0) {
    return registered;
  }
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (!starts_with(name.name, "aten::")) {
      continue;
    }
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || missing().count(c10::toString(name)) > 0 || op->hasKernelForDispatchKey(c10::DispatchKey::XPU)) {
      continue;
    }
    if (op->hasKernelForDispatchKey(c10::DispatchKey::CPU) || starts_with(name.name, "aten::_foreach_")) {
      library.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&fallback>());
      registered++;
    }
  }
  return registered;
}

}  // namespace xpusim
