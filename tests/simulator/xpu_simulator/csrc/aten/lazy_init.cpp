// torch initialises a device on first use, by calling torch.xpu._lazy_init, and refuses to in a forked process. A build
// with XPU support registers for that when the device is initialised; so does this one.
#include "backend.h"
#include "releases.h"

#define XPUSIM_API extern "C" __attribute__((visibility("default")))

XPUSIM_API void xpusim_register_fork_handler() {
  xpusim::register_fork_handler();
}

XPUSIM_API int xpusim_is_in_bad_fork() {
  return xpusim::is_in_bad_fork();
}

// The next operator on the device initialises it anew.
XPUSIM_API void xpusim_require_initialization() {
  torch::utils::set_requires_device_init(xpusim::kXPU, true);
}
