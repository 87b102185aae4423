// What a write sends when it is not the caller's memory. Not for users.
#pragma once

#include <cstdint>

namespace percore::engine {
struct slot;
}

namespace percore::detail {

// Lies in the frame of the coroutine that waits for the write.
struct write_source {
  enum class outcome : std::uint8_t {
    more,    // something was sent, or is to be tried again; slot::writable tells whether now
    done,    // all of it is sent
    failed,  // the source's own fault, said by slot::fail(): the connection lives on
  };
  // One step, while the socket takes bytes and nothing is unsent.
  outcome (*send)(write_source& self, engine::slot& through) noexcept = nullptr;
};

}  // namespace percore::detail
