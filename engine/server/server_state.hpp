#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include <percore/server.hpp>

#include "engine/core/core.hpp"
#include "engine/core/deputies.hpp"
#include "engine/core/limits.hpp"
#include "engine/core/stall_watch.hpp"
#include "engine/sys/listen_group.hpp"
#include "engine/sys/threads.hpp"

namespace percore::engine {

// What stands behind a server object. Its lock serves starting, stopping and waiting only; no core takes it while it
// serves.
class server_state {
 public:
  server_state(server& face, server_options options);
  ~server_state();

  // With one of the two kinds of handler.
  std::size_t add_listener(const address* where, int fd, detail::handler handler, listen_options options,
                           blocking_listener blocking = {});
  void start();
  void serve();
  void wait();
  void begin_shutdown(std::chrono::milliseconds grace) noexcept;
  void begin_halt() noexcept;
  // The caller is one of this server's threads, a core's or a helper, which must not wait for itself.
  [[nodiscard]] bool on_own_thread() const noexcept;

  post_result post(std::size_t core, detail::message&& what);
  [[nodiscard]] server_stats stats() const;
  [[nodiscard]] address local_address(std::size_t listener) const;
  [[nodiscard]] const placement_plan& placement() const;
  [[nodiscard]] std::size_t core_count() const noexcept { return started_ ? cores_.size() : 0; }
  [[nodiscard]] bool stopping() const noexcept { return stopping_->load(std::memory_order_acquire); }

 private:
  struct listener {
    std::optional<address> where;  // none: `adopted_fd`
    int adopted_fd = -1;
    listen_options options;
    listener_config config;
    std::unique_ptr<sys::listen_group> group;
  };
  enum class gate { closed, open, aborted };

  void warn(const std::string& text) const;
  void plan_cores();
  void refuse_shared_addresses() const;
  void bind_listeners();
  void listen_all();
  void start_threads();
  void run_core(std::size_t index) noexcept;
  void prepare_core(std::size_t index);
  void prepare_deputies(std::size_t index);
  void start_watches();
  void stop_watches() noexcept;
  [[nodiscard]] helpers::pool_settings helper_settings(std::size_t index);
  void wait_until_prepared();
  void warn_of_distant_memory() const;
  void abort_start() noexcept;
  void signal_all(loop::mailbox::signals bits) noexcept;
  void end_core(std::size_t index) noexcept;
  void core_ended() noexcept;
  void close_adopted() noexcept;

  server& face_;
  const server_options options_;
  shared_limits limits_;
  helpers::shared_cap helpers_cap_;
  std::vector<std::shared_ptr<listener>> listeners_;
  placement_plan plan_;
  // Cores stay after their end, for stats(). Declared after the groups that their acceptors release.
  std::vector<std::shared_ptr<core>> cores_;
  std::vector<sys::core_thread> threads_;
  std::vector<std::shared_ptr<deputies>> deputies_;  // one for each core if they are open to takeovers
  std::unique_ptr<stall_watch> watch_;
  std::unique_ptr<takeover_watch> takeover_watch_;
  std::vector<loop::wakeup> wakeups_;  // one for each core until it takes its own
  std::atomic<bool> started_{false};
  const std::shared_ptr<std::atomic<bool>> stopping_ = std::make_shared<std::atomic<bool>>(false);
  std::atomic<std::int64_t> grace_end_ns_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  gate gate_ = gate::closed;
  bool gate_was_opened_ = false;  // from then on the listeners belong to the cores' threads
  std::size_t prepared_ = 0;
  std::size_t listening_ = 0;
  std::size_t running_ = 0;
  std::exception_ptr failure_;  // of the first core that could not start
  std::shared_ptr<loop::wakeup> ended_;  // woken when the last core ends; for serve()
  std::mutex join_mutex_;
};

}  // namespace percore::engine
