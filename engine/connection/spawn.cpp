// spawn: coroutines of the core's own.

#include <percore/spawn.hpp>

#include <exception>
#include <new>
#include <stdexcept>
#include <utility>

#include "engine/connection/slice.hpp"
#include "engine/connection/slot.hpp"

namespace percore {

namespace {

// The coroutine that awaits a spawned task. Starts in the core's list of what is ready; while it lives it is in the list of
// those that are to be destroyed with the core.
struct spawned {
  struct promise_type : detail::ready_node, engine::spawned_link {
    promise_type() noexcept {
      run = [](detail::ready_node& node) {
        engine::core_of_thread->resume_lone(
            std::coroutine_handle<promise_type>::from_promise(static_cast<promise_type&>(node)));
      };
      destroy = [](engine::spawned_link& self) noexcept {
        std::coroutine_handle<promise_type>::from_promise(static_cast<promise_type&>(self)).destroy();
      };
    }
    static void* operator new(std::size_t bytes) { return ::operator new(bytes); }
    static void operator delete(void* frame) noexcept { ::operator delete(frame); }
    spawned get_return_object() noexcept { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() noexcept { engine::core_of_thread->report(std::current_exception()); }
  };
  std::coroutine_handle<promise_type> handle;
};

spawned run_to_its_end(task<> work) { co_await work; }

}  // namespace

void spawn(task<> work) {
  engine::core_resources* core = engine::core_of_thread;
  if (core == nullptr || engine::slice_of_thread != nullptr) {
    throw std::logic_error("percore: spawn() away from a core");
  }
  if (!work) throw std::bad_alloc();
  spawned::promise_type& made = run_to_its_end(std::move(work)).handle.promise();
  core->spawned.push_back(made);
  core->ready.push_back(made);
}

void engine::end_spawned(core_resources& core) noexcept {
  while (spawned_link* next = core.spawned.pop_front()) next->destroy(*next);
}

}  // namespace percore
