// spawn: coroutines that no connection's handler waits for.
#pragma once

#include <percore/task.hpp>

namespace percore {

// Starts `work` at the next step of this core's loop and lets nobody wait for it; its frame goes with its end. What it
// throws is counted and reported as if it had left a handler (server_options::on_exception). A shutdown waits for it only
// while it waits for an operation of an outgoing connection or for a helper; when the core ends it is destroyed where it
// waits. On a core's thread: from a handler, or a function given to server::post. Throws std::bad_alloc,
// and std::logic_error on any other thread, and in a handler whose listener has listen_options::spill
// or whose server has a takeover: post() it.
//
// As everywhere, what a lambda captures lives in the lambda, not in the coroutine: give what the task needs as arguments
// of a function.
void spawn(task<> work);

}  // namespace percore
