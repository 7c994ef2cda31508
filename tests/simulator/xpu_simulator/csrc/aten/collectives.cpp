// Collectives on XPU tensors: gloo's, on host tensors over the same bytes.
//
// A stock build registers the c10d operators for CPU and CUDA only. The kernel here calls the CPU's with a group whose
// CPU backend is the real group's XPU backend, and dresses the returned work so that its future speaks of XPU tensors
// again: DistributedDataParallel would otherwise copy every bucket back from the "host".
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <torch/library.h>

#include <memory>
#include <utility>
#include <vector>

#include "../runtime/counters.h"
#include "../runtime/device.h"
#include "aliases.h"
#include "backend.h"
#include "fallback.h"

namespace xpusim {
namespace {

using c10::IValue;
using c10::ivalue::Future;
using torch::jit::Stack;

IValue to_device(IValue value, Aliases& aliases, c10::Device device) {
  if (value.isTensor()) {
    return aliases.to_device(value.toTensor(), device);
  }
  if (value.isTensorList()) {
    std::vector<at::Tensor> tensors;
    for (const at::Tensor& tensor : value.toTensorVector()) {
      tensors.push_back(aliases.to_device(tensor, device));
    }
    return IValue(std::move(tensors));
  }
  if (value.isList()) {
    c10::impl::GenericList mapped(value.toList().elementType());
    for (const IValue& element : value.toListRef()) {
      mapped.push_back(to_device(element, aliases, device));
    }
    return IValue(std::move(mapped));
  }
  return value;
}

class DeviceWork final : public c10d::Work {
 public:
  DeviceWork(c10::intrusive_ptr<c10d::Work> work, std::shared_ptr<Aliases> aliases, c10::Device device)
      : c10d::Work(-1, work->retrieveOpType()), work_(std::move(work)), aliases_(std::move(aliases)), device_(device) {}

  bool isCompleted() override {
    return work_->isCompleted();
  }

  bool isSuccess() const override {
    return work_->isSuccess();
  }

  std::exception_ptr exception() const override {
    return work_->exception();
  }

  int sourceRank() const override {
    return work_->sourceRank();
  }

  std::vector<at::Tensor> result() override {
    std::vector<at::Tensor> results;
    for (const at::Tensor& tensor : work_->result()) {
      results.push_back(aliases_->to_device(tensor, device_));
    }
    return results;
  }

  void synchronize() override {
    work_->synchronize();
  }

  bool wait(std::chrono::milliseconds timeout) override {
    return work_->wait(timeout);
  }

  void abort() override {
    work_->abort();
  }

  c10::intrusive_ptr<Future> getFuture() override {
    auto host = work_->getFuture();
    auto future = c10::make_intrusive<Future>(host->elementType(), std::vector<c10::Device>{device_});
    host->addCallback([future, aliases = aliases_, device = device_](Future& done) {
      if (done.hasError()) {
        future->setError(done.exception_ptr());
      } else {
        future->markCompleted(to_device(done.value(), *aliases, device));
      }
    });
    return future;
  }

 private:
  const c10::intrusive_ptr<c10d::Work> work_;
  const std::shared_ptr<Aliases> aliases_;
  const c10::Device device_;
};

bool is_group(const c10::Argument& argument) {
  return argument.type()->str().find("c10d.ProcessGroup") != std::string::npos;
}

// The real group has no CPU backend, as xccl has none on hardware: collectives on CPU tensors are refused there.
IValue group_for_host(const IValue& value) {
  const auto group = value.toCustomClass<c10d::ProcessGroup>();
  auto host = c10::make_intrusive<c10d::ProcessGroup>(group->getRank(), group->getSize());
  host->setBoundDeviceId(group->getBoundDeviceId());
  host->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, group->getBackend(kXPU));
  return IValue(std::move(host));
}

bool returns_work(const c10::Argument& result) {
  return result.type()->str().find("c10d.Work") != std::string::npos;
}

// xccl takes these two as flat memory, gloo by their first dimension.
bool is_flat(const std::string& name) {
  return name == "c10d::_allgather_base_" || name == "c10d::_reduce_scatter_base_";
}

void flatten(Stack* stack, size_t base) {
  for (size_t i = base; i < base + 2; i++) {
    at::Tensor tensor = (*stack)[i].toTensor();
    TORCH_CHECK(tensor.is_contiguous(), "Tensors must be contiguous");
    (*stack)[i] = tensor.view({-1});
  }
}

int64_t bytes_of(const IValue& value) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    return tensor.defined() ? static_cast<int64_t>(tensor.nbytes()) : 0;
  }
  int64_t bytes = 0;
  if (value.isTensorList() || value.isList()) {
    for (const IValue& element : value.toListRef()) {
      bytes += bytes_of(element);
    }
  }
  return bytes;
}

c10::Device device_of(const IValue& value) {
  if (value.isTensor() && value.toTensor().defined()) {
    return value.toTensor().device();
  }
  if (value.isTensorList() || value.isList()) {
    for (const IValue& element : value.toListRef()) {
      return device_of(element);
    }
  }
  return c10::DeviceType::CPU;
}

c10::Device device_of_arguments(const IValue* arguments, size_t n) {
  for (size_t i = 0; i < n; i++) {
    const c10::Device device = device_of(arguments[i]);
    if (device.type() == kXPU) {
      return device;
    }
  }
  return c10::Device(kXPU, static_cast<c10::DeviceIndex>(current_device()));
}

void collective(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  auto aliases = std::make_shared<Aliases>();
  const size_t n_arguments = op.schema().arguments().size();
  const size_t first = stack->size() - n_arguments;
  count(Counter::kCollectives);
  count(Counter::kCollectiveBytes, bytes_of((*stack)[first]));
  if (is_flat(op.schema().name())) {
    flatten(stack, first);
  }
  for (size_t i = 0; i < n_arguments; i++) {
    if (is_group(op.schema().arguments()[i])) {
      (*stack)[first + i] = group_for_host((*stack)[first + i]);
    }
  }
  const c10::Device device = device_of_arguments(stack->data() + first, n_arguments);
  run_on_host(op, op, stack, *aliases);
  const auto& results = op.schema().returns();
  const size_t base = stack->size() - results.size();
  for (size_t i = 0; i < results.size(); i++) {
    if (!returns_work(results[i])) {
      continue;
    }
    IValue& value = (*stack)[base + i];
    value = IValue(c10::static_intrusive_pointer_cast<c10d::Work>(c10::make_intrusive<DeviceWork>(
        value.toCustomClass<c10d::Work>(), aliases, device)));
  }
}

}  // namespace
}  // namespace xpusim

// Called once torch.distributed has been imported. Returns the number of operators registered.
extern "C" __attribute__((visibility("default"))) int xpusim_install_collectives() {
  static torch::Library library(torch::Library::IMPL, "c10d", c10::DispatchKey::XPU, __FILE__, __LINE__);
  static int registered = 0;
  if (registered > 0) {
    return registered;
  }
  auto& dispatcher = c10::Dispatcher::singleton();
  for (const auto& name : dispatcher.getAllOpNames()) {
    if (name.name.rfind("c10d::", 0) != 0) {
      continue;
    }
    const auto op = dispatcher.findOp(name);
    if (!op || !op->hasSchema() || !op->hasKernelForDispatchKey(c10::DispatchKey::CPU)) {
      continue;
    }
    library.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&xpusim::collective>());
    registered++;
  }
  return registered;
}
