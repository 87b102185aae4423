// pace: requests at a constant rate, latency counted from the intended time of sending (free of coordinated
// omission).

#include "perf/pace/options.hpp"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cinttypes>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "perf/program.hpp"
#include "perf/pace/exchange.hpp"
#include "perf/pace/histogram.hpp"

namespace {

using pace::exchange;
using pace::histogram;
using pace::options;
using pace::outcome;

constexpr std::uint64_t second_ns = 1'000'000'000;
constexpr std::uint64_t patience_ns = 2 * second_ns;  // for answers after the last request

std::uint64_t now_ns() {
  std::timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * second_ns + static_cast<std::uint64_t>(time.tv_nsec);
}

std::string make_request(const options& opt) {
  return "GET " + opt.target + std::string(" HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: ") +
         (opt.close ? "close" : "keep-alive") + "\r\n\r\n";
}

// One thread's share: its own schedule, connections and histogram.
class pacer {
 public:
  pacer(const options& opt, double rate, int connections, SSL_CTX* tls, const std::string& request)
      : opt_(opt), interval_ns_(1e9 / rate), epoll_fd_(epoll_create1(EPOLL_CLOEXEC)) {
    for (int i = 0; i < connections; ++i) {
      all_.push_back(std::make_unique<exchange>(opt.address, tls, request, opt.resume));
      give_back(*all_.back());
    }
  }

  void run(std::uint64_t start) {
    const auto first_counted = start + static_cast<std::uint64_t>(opt_.warm_up_s * 1e9);
    const auto end = first_counted + static_cast<std::uint64_t>(opt_.duration_s * 1e9);
    first_counted_ = first_counted;
    start_ = start;
    while (true) {
      const std::uint64_t now = now_ns();
      send_due(now, end);
      const bool all_sent = intended(next_) >= end;
      if ((all_sent && busy_ == 0) || now > end + patience_ns) break;
      wait(now, all_sent ? end + patience_ns : intended(next_));
    }
    give_up(now_ns(), end);
  }

  histogram latency;
  histogram lag;  // from the intended time to the sending of requests that found a free connection
  std::uint64_t errors = 0;
  std::uint64_t unanswered = 0;

 private:
  [[nodiscard]] std::uint64_t intended(std::uint64_t request) const {
    return start_ + static_cast<std::uint64_t>(static_cast<double>(request) * interval_ns_);
  }

  void give_back(exchange& which) {
    which.next_free = free_;
    free_ = &which;
  }

  void count(std::uint64_t intended_at, std::uint64_t now) {
    if (intended_at >= first_counted_) latency.add(now - std::min(now, intended_at));
  }

  void send_due(std::uint64_t now, std::uint64_t end) {
    for (std::uint64_t at; free_ != nullptr && (at = intended(next_)) <= now && at < end; ++next_) {
      exchange& chosen = *free_;
      free_ = chosen.next_free;
      if (!waited_ && at >= first_counted_) lag.add(now - at);
      ++busy_;
      if (!chosen.is_open() && !chosen.open(epoll_fd_)) {
        fail(chosen, at, now);
        continue;
      }
      chosen.begin(at);
      settle(chosen, chosen.advance());
    }
    waited_ = free_ == nullptr;  // the next one is late because of the server
  }

  void settle(exchange& which, outcome result) {
    if (result == outcome::waiting) return;
    const std::uint64_t now = now_ns();
    if (result == outcome::failed) return fail(which, which.intended(), now);
    count(which.intended(), now);
    if (opt_.close) which.close();
    --busy_;
    give_back(which);
  }

  // A failed request counts with the time that it took, so that errors do not make the curve look better.
  void fail(exchange& which, std::uint64_t at, std::uint64_t now) {
    which.close();
    if (at >= first_counted_) ++errors;
    count(at, now);
    --busy_;
    give_back(which);
  }

  void wait(std::uint64_t now, std::uint64_t until) {
    const std::uint64_t left =
        until > now && free_ != nullptr ? until - now : (free_ == nullptr ? second_ns / 10 : 0);
    const timespec timeout{static_cast<time_t>(left / second_ns), static_cast<long>(left % second_ns)};
    std::array<epoll_event, 256> events;
    const int found =
        epoll_pwait2(epoll_fd_, events.data(), static_cast<int>(events.size()), &timeout, nullptr);
    for (int i = 0; i < found; ++i) {
      auto& which = *static_cast<exchange*>(events[static_cast<std::size_t>(i)].data.ptr);
      if (!which.is_open()) continue;
      if (which.busy()) {
        settle(which, which.advance());
      } else if ((events[static_cast<std::size_t>(i)].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) {
        which.close();  // an idle connection that the server has ended is opened again when it is needed
      }
    }
  }

  void give_up(std::uint64_t now, std::uint64_t end) {
    for (const auto& which : all_) {
      if (which->is_open() && which->busy()) {
        if (which->intended() >= first_counted_) ++unanswered;
        count(which->intended(), now);
      }
    }
    for (std::uint64_t at; (at = intended(next_)) < end; ++next_) {  // never sent: no connection got free
      if (at >= first_counted_) ++unanswered;
      count(at, now);
    }
  }

  const options& opt_;
  double interval_ns_;
  int epoll_fd_;
  std::vector<std::unique_ptr<exchange>> all_;
  exchange* free_ = nullptr;
  std::uint64_t next_ = 0;
  std::uint64_t busy_ = 0;
  std::uint64_t start_ = 0;
  std::uint64_t first_counted_ = 0;
  bool waited_ = false;
};

void be_on_time_on(int cpu) {
  program::pin_to(cpu);
  prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);  // 50 us otherwise, which every wait would be late
}

void print(const options& opt, const histogram& latency, const histogram& lag, std::uint64_t errors,
           std::uint64_t unanswered) {
  constexpr double shares[] = {0,    0.1,   0.2,    0.3,   0.4,    0.5,    0.6,     0.7,
                               0.75, 0.8,   0.85,   0.9,   0.925,  0.95,   0.975,   0.98,
                               0.99, 0.995, 0.9975, 0.999, 0.9995, 0.9999, 0.99999, 1};
  std::printf("{\"rate\": %.1f, \"connections\": %d, \"seconds\": %g, \"requests\": %" PRIu64
              ", \"errors\": %" PRIu64 ", \"unanswered\": %" PRIu64
              ",\n \"lag_us_p99\": %.1f,\n \"latency_us\": {",
              opt.rate, opt.connections, opt.duration_s, latency.total(), errors, unanswered,
              static_cast<double>(lag.quantile(0.99)) / 1e3);
  const char* comma = "";
  for (const double share : shares) {
    std::printf("%s\"%g\": %.1f", comma, 100 * share, static_cast<double>(latency.quantile(share)) / 1e3);
    comma = ", ";
  }
  std::printf("}}\n");
}

void run_at_rate(const options& opt, SSL_CTX* tls, const std::string& request) {
  std::vector<std::unique_ptr<pacer>> pacers;
  std::vector<std::thread> threads;
  const std::vector<int> cpus = program::allowed_cpus();
  for (int i = 0; i < opt.threads; ++i) {
    const int share = opt.connections / opt.threads + (i < opt.connections % opt.threads ? 1 : 0);
    pacers.push_back(std::make_unique<pacer>(opt, opt.rate / opt.threads, share, tls, request));
  }
  const std::uint64_t start = now_ns() + second_ns / 50;
  for (int i = 0; i < opt.threads; ++i) {
    const auto place = static_cast<std::size_t>(i);
    threads.emplace_back([&, place] {
      be_on_time_on(cpus[place % cpus.size()]);
      // Staggered, so that the threads do not send in step.
      pacers[place]->run(start + static_cast<std::uint64_t>(static_cast<double>(place) * 1e9 / opt.rate));
    });
  }
  for (std::thread& thread : threads) thread.join();
  auto latency = std::make_unique<histogram>();
  auto lag = std::make_unique<histogram>();
  std::uint64_t errors = 0;
  std::uint64_t unanswered = 0;
  for (const auto& each : pacers) {
    latency->add(each->latency);
    lag->add(each->lag);
    errors += each->errors;
    unanswered += each->unanswered;
  }
  print(opt, *latency, *lag, errors, unanswered);
}

// At most `most_under_way` connect at a time: a listen queue is finite.
int hold_idle(const options& opt, SSL_CTX* tls, const std::string& request) {
  constexpr int most_under_way = 256;
  sigset_t stop;
  sigemptyset(&stop);
  sigaddset(&stop, SIGINT);
  sigaddset(&stop, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &stop, nullptr);
  const int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  std::vector<std::unique_ptr<exchange>> all;
  int answered = 0;
  while (answered < opt.idle) {
    while (static_cast<int>(all.size()) < opt.idle &&
           static_cast<int>(all.size()) - answered < most_under_way) {
      all.push_back(std::make_unique<exchange>(opt.address, tls, request, false));
      if (!all.back()->open(epoll_fd)) {
        std::fprintf(stderr, "pace: no more than %zu connections can be opened here\n", all.size() - 1);
        return 1;
      }
      all.back()->begin(0);
    }
    std::array<epoll_event, 256> events;
    const int found = epoll_wait(epoll_fd, events.data(), static_cast<int>(events.size()), 10'000);
    if (found == 0) {
      std::fprintf(stderr, "pace: %d of %d connections answered, then nothing for 10 s\n", answered,
                   opt.idle);
      return 1;
    }
    for (int i = 0; i < found; ++i) {
      auto& which = *static_cast<exchange*>(events[static_cast<std::size_t>(i)].data.ptr);
      if (!which.busy()) continue;
      const outcome result = which.advance();
      if (result == outcome::failed) {
        std::fprintf(stderr, "pace: a connection failed after %d were answered\n", answered);
        return 1;
      }
      if (result == outcome::done) ++answered;
    }
  }
  std::printf("idle %d\n", answered);
  std::fflush(stdout);
  int number = 0;
  sigwait(&stop, &number);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const options opt = pace::parse_options(argc, argv);
  signal(SIGPIPE, SIG_IGN);  // OpenSSL writes sockets by write(2)
  program::raise_descriptor_limit();
  SSL_CTX* tls = opt.tls ? pace::make_client_context(opt.resume) : nullptr;
  const std::string request = make_request(opt);
  int status = 0;
  if (opt.idle > 0) {
    status = hold_idle(opt, tls, request);
  } else {
    run_at_rate(opt, tls, request);
  }
  if (tls != nullptr) SSL_CTX_free(tls);
  return status;
}
