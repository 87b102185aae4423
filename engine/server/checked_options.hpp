#pragma once

#include <percore/options.hpp>

#include "engine/connection/slot.hpp"

namespace percore::engine {

// What a server is told, with defaults that depend on the build filled in. Throws std::invalid_argument, naming the option
// and its limits.
server_options checked(server_options options);

// The same for a listener, of which the handler is known already: fills in what its connections need to know.
void configure(listener_config& config, const listen_options& options, const server_options& server);

}  // namespace percore::engine
