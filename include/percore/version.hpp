#pragma once

#define PERCORE_VERSION_MAJOR 0
#define PERCORE_VERSION_MINOR 1
#define PERCORE_VERSION_PATCH 0

namespace percore {

// "0.1.0", of the library that is linked.
const char* version() noexcept;

}  // namespace percore
