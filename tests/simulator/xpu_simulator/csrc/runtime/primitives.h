// oneDNN's cache of compiled primitives: a GPU's convolutions and products are compiled at their first use with a shape,
// a type and a layout, and the least recently used is forgotten. It holds 1024, or ONEDNN_PRIMITIVE_CACHE_CAPACITY of
// them, which is read with the first (oneDNN's documentation, "Primitive Cache"; XPU builds heed it: pytorch#196231).
#pragma once

#include <string>

namespace xpusim {

// Counts a hit or a miss. The key is all that a primitive depends on.
void use_primitive(const std::string& key);

// As in a new process.
void forget_primitives();

}  // namespace xpusim
