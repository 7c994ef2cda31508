#include "graphs.h"

#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "../runtime/counters.h"
#include "../runtime/device.h"
#include "../runtime/memory.h"
#include "../runtime/quirks.h"
#include "../runtime/recording.h"
#include "../runtime/streams.h"
#include "backend.h"
#include "fallback.h"
#include "spoiler.h"

namespace xpusim {
namespace {

using at::Tensor;

struct Kernel {
  std::string name;
  std::function<void()> again;
};

struct Use {
  uint64_t serial;
  std::string kernel;  // the first one that uses it
};

struct Written {
  char* pointer;
  size_t bytes;
  bool is_number;  // a floating-point one, which may be spoilt: a later capture computes with it
  unsigned char poison;
};

// What a capture changes on its way, and puts back.
struct Journal {
  struct Before {
    uint64_t serial;
    std::vector<char> bytes;
  };
  std::map<void*, Before> memory;
  std::map<at::Generator, Tensor, bool (*)(const at::Generator&, const at::Generator&)> generators{
      [](const at::Generator& a, const at::Generator& b) {
        return a.unsafeGetGeneratorImpl() < b.unsafeGetGeneratorImpl();
      }};
  std::vector<Written> results;
};

struct Graph {
  StreamKey stream{-1, 0};
  uint64_t pool = 0;
  bool captured = false;
  std::vector<Kernel> kernels;
  std::map<const void*, Use> used;  // memory that isn't the pool's, and the allocation that it was of
};

std::mutex g_mutex;
std::map<int64_t, std::unique_ptr<Graph>>& graphs() {
  static auto* map = new std::map<int64_t, std::unique_ptr<Graph>>;
  return *map;
}
int64_t g_next_graph = 1;
Graph* g_capturing = nullptr;  // one at a time, see begin_recording
std::unique_ptr<Journal> g_journal;

void use(Graph& graph, const std::string& name, const Tensor& tensor) {
  const void* base = tensor.storage().data();
  const Allocation allocation = allocation_of(base);
  if (allocation.serial != 0 && allocation.pool != graph.pool) {
    graph.used.emplace(base, Use{allocation.serial, name});
  }
}

bool overlap(const Written& a, const Written& b) {
  return a.pointer < b.pointer + b.bytes && b.pointer < a.pointer + a.bytes;
}

// Numbers alone: of whole numbers a later capture makes indices.
void spoil(const std::vector<Written>& results) {
  std::vector<Written> others;
  std::copy_if(results.begin(), results.end(), std::back_inserter(others), [](const Written& w) { return !w.is_number; });
  for (const Written& result : results) {
    const bool shares = std::any_of(others.begin(), others.end(), [&](const Written& w) { return overlap(w, result); });
    if (result.is_number && !shares) {
      std::memset(result.pointer, result.poison, result.bytes);
    }
  }
}

void put_back(Journal& journal) {
  spoil(journal.results);
  for (const auto& [pointer, before] : journal.memory) {
    if (allocation_of(pointer).serial == before.serial) {
      std::memcpy(pointer, before.bytes.data(), before.bytes.size());
    }
  }
  for (const auto& [generator, state] : journal.generators) {
    at::Generator to = generator;
    to.set_state(state);
  }
}

Graph& find_graph(int64_t id) {
  std::lock_guard<std::mutex> lock(g_mutex);
  return *graphs().at(id);
}

void check_memory(const Graph& graph) {
  for (const auto& [pointer, use] : graph.used) {
    TORCH_CHECK(
        allocation_of(pointer).serial == use.serial, "XPUGraph::replay: ", use.kernel,
        " uses memory that was freed after the capture. A real XPU reads or overwrites there whatever lies there now.");
  }
}

}  // namespace

Tensor at_its_address(const Tensor& tensor) {
  if (!tensor.defined() || !(tensor.is_xpu() || tensor.is_cpu()) || (tensor.is_cpu() && device_of(tensor.storage().data()) < 0)) {
    return tensor;  // a number of the host is part of the graph
  }
  constexpr bool kResizable = false;
  c10::DataPtr pointer(tensor.storage().mutable_data(), c10::DeviceType::CPU);
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), std::move(pointer), nullptr, kResizable);
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.is_conj()) {
    made._set_conj(true);
  }
  if (tensor.is_neg()) {
    made._set_neg(true);
  }
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) {
    impl->set_wrapped_number(true);
  }
  return made;
}

void before_write(const Tensor& tensor) {
  if (g_journal == nullptr || !tensor.defined() || tensor.storage().nbytes() == 0) {
    return;
  }
  void* base = tensor.storage().mutable_data();
  const Allocation allocation = allocation_of(base);
  if (allocation.pool == g_capturing->pool || g_journal->memory.count(base) != 0) {
    return;
  }
  const char* bytes = static_cast<const char*>(base);
  std::vector<char> before(bytes, bytes + tensor.storage().nbytes());
  g_journal->memory.emplace(base, Journal::Before{allocation.serial, std::move(before)});
}

void before_draw(const at::Generator& generator) {
  if (g_journal != nullptr && g_journal->generators.count(generator) == 0) {
    g_journal->generators.emplace(generator, generator.get_state());
  }
}

void record_result(const Tensor& result) {
  if (!result.defined() || result.numel() == 0 || !result.is_non_overlapping_and_dense()) {
    return;
  }
  const bool is_number = at::isFloatingType(result.scalar_type());
  g_journal->results.push_back(
      {static_cast<char*>(result.data_ptr()), result.nbytes(), is_number, poison_of(result.scalar_type())});
}

void record(const std::string& name, std::vector<Tensor> tensors, std::function<void()> again) {
  for (const Tensor& tensor : tensors) {
    if (tensor.defined() && tensor.storage().nbytes() > 0) {
      use(*g_capturing, name, tensor);
    }
  }
  g_capturing->kernels.push_back({name, std::move(again)});
}

// ---------------------------------------------------------------------------------------- what torch_xpu.py calls

int64_t new_graph() {
  std::lock_guard<std::mutex> lock(g_mutex);
  graphs()[g_next_graph] = std::make_unique<Graph>();
  return g_next_graph++;
}

uint64_t new_pool() {
  static std::atomic<uint64_t> next{1};
  return next++;
}

void begin_capture(int64_t id, uint64_t pool) {
  Graph& graph = find_graph(id);
  const int device = current_device();
  TORCH_CHECK(
      !graph.captured,
      "This XPUGraph instance already owns a captured graph. To capture a new graph, create a new instance.");
  TORCH_CHECK(current_stream(device) != 0, "XPU graphs must be captured on a non-default stream.");
  graph.stream = {device, current_stream(device)};
  graph.pool = pool;
  begin_recording(graph.stream, pool);
  use_pool(device, pool, +1);
  g_capturing = &graph;
  g_journal = std::make_unique<Journal>();
}

void end_capture(int64_t id) {
  Graph& graph = find_graph(id);
  TORCH_CHECK(g_capturing == &graph, "Capture must end on the same stream it began on.");
  end_recording(graph.stream);
  put_back(*g_journal);
  g_capturing = nullptr;
  g_journal.reset();
  graph.captured = true;
}

void replay(int64_t id) {
  static OperatorCounters& counters = operator_counters("XPUGraph::replay");
  Graph& graph = find_graph(id);
  TORCH_CHECK(graph.captured, "Called XPUGraph::replay without a preceding successful capture.");
  const int device = graph.stream.device;
  TORCH_CHECK(
      !records(device), "Cannot prepare for replay during capturing stage. during XPU graph capture. If you need this "
      "call to be captured, please file an issue. Current xpuStreamCaptureStatus: Recording");
  const c10::DeviceGuard guard(c10::Device(kXPU, static_cast<c10::DeviceIndex>(device)));
  launch_kernel(counters, device);
  check_memory(graph);
  const NoDispatch no_dispatch;
  for (const Kernel& kernel : graph.kernels) {
    kernel.again();
  }
}

void reset_graph(int64_t id) {
  Graph& graph = find_graph(id);
  if (graph.captured) {
    use_pool(graph.stream.device, graph.pool, -1);
    graph.captured = false;
  }
  graph.kernels.clear();
  graph.used.clear();
}

void free_graph(int64_t id) {
  reset_graph(id);
  std::lock_guard<std::mutex> lock(g_mutex);
  graphs().erase(id);
}

uint64_t pool_of_graph(int64_t id) {
  return find_graph(id).pool;
}

int64_t kernels_of_graph(int64_t id) {
  return static_cast<int64_t>(find_graph(id).kernels.size());
}

}  // namespace xpusim

namespace {

thread_local std::string t_graph_error;

template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& error) {
    t_graph_error = error.what_without_backtrace();
  } catch (const std::exception& error) {
    t_graph_error = error.what();
  }
  return 1;
}

}  // namespace

#define XPUSIM_API extern "C" __attribute__((visibility("default")))

XPUSIM_API const char* xpusim_last_graph_error() {
  return t_graph_error.c_str();
}

XPUSIM_API int64_t xpusim_graph_new() {
  return xpusim::new_graph();
}

XPUSIM_API int64_t xpusim_graph_pool_new() {
  return static_cast<int64_t>(xpusim::new_pool());
}

XPUSIM_API int xpusim_graph_begin(int64_t graph, int64_t pool) {
  return guarded([&] { xpusim::begin_capture(graph, static_cast<uint64_t>(pool)); });
}

XPUSIM_API int xpusim_graph_end(int64_t graph) {
  return guarded([&] { xpusim::end_capture(graph); });
}

XPUSIM_API int xpusim_graph_replay(int64_t graph) {
  return guarded([&] { xpusim::replay(graph); });
}

XPUSIM_API int xpusim_graph_reset(int64_t graph) {
  return guarded([&] { xpusim::reset_graph(graph); });
}

XPUSIM_API void xpusim_graph_free(int64_t graph) {
  xpusim::free_graph(graph);
}

XPUSIM_API int64_t xpusim_graph_pool(int64_t graph) {
  return static_cast<int64_t>(xpusim::pool_of_graph(graph));
}

XPUSIM_API int64_t xpusim_graph_kernels(int64_t graph) {
  return xpusim::kernels_of_graph(graph);
}

XPUSIM_API int xpusim_is_recording(int device) {
  return xpusim::records(device) ? 1 : 0;
}
