// What the simulated driver throws. The ATen layer turns OutOfMemory into torch's own class; the other is a plain
// std::runtime_error, which torch shows as RuntimeError, as it does with a sycl::exception.
#pragma once

#include <stdexcept>
#include <string>

namespace xpusim {

struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace xpusim
