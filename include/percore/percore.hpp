// All of percore's public interface.
#pragma once

#include <percore/address.hpp>
#include <percore/blocking.hpp>
#include <percore/bytes_view.hpp>
#include <percore/connection.hpp>
#include <percore/connection_handle.hpp>
#include <percore/dial.hpp>
#include <percore/error.hpp>
#include <percore/network.hpp>
#include <percore/offload.hpp>
#include <percore/options.hpp>
#include <percore/placement.hpp>
#include <percore/proxy_protocol.hpp>
#include <percore/relay.hpp>
#include <percore/send_file.hpp>
#include <percore/server.hpp>
#include <percore/socket_options.hpp>
#include <percore/spawn.hpp>
#include <percore/stats.hpp>
#include <percore/task.hpp>
#include <percore/tls.hpp>
#include <percore/version.hpp>
#include <percore/when.hpp>
