// Graphs: what is launched on a recording stream is kept, and done again on the same memory by a replay.
//
// A capture runs no kernel on a real device. Here each runs once, so that ATen learns what its results look like; when
// the capture ends, what it changed is put back, and what it made reads as memory that nobody has written.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <functional>
#include <string>
#include <vector>

namespace xpusim {

// A tensor of the host over the bytes of a device's, which it doesn't keep: a graph knows addresses.
at::Tensor at_its_address(const at::Tensor& tensor);

// Before a kernel runs in a capture: the memory that it will change is noted, to be put back.
void before_write(const at::Tensor& tensor);
void before_draw(const at::Generator& generator);

// After it: what a replay does, and the tensors that it reads or writes.
void record(const std::string& name, std::vector<at::Tensor> tensors, std::function<void()> again);
// Of a result, what the capture's end leaves unwritten.
void record_result(const at::Tensor& result);

}  // namespace xpusim
