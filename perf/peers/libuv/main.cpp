// libuv's best form: one loop per thread with its own SO_REUSEPORT listener, one receive buffer per loop, and
// uv_try_write, which sends at once and queues nothing (libuv documentation, uv_stream_t). No TLS: libuv has
// none.

#include <uv.h>

#include <array>
#include <cstdlib>
#include <string>
#include <string_view>

#include "perf/peers/common/peer.hpp"
#include "perf/program.hpp"

namespace {

struct loop {
  explicit loop(const peer::options& options) : opt(options), responder(options) {}

  const peer::options& opt;
  peer::responder responder;
  std::array<char, 65536> in;
};

struct connection {
  uv_tcp_t tcp;
  uv_timer_t timer;
  uv_write_t write;
  loop* home;
  int handles = 1;  // open ones; the connection is freed with the last
  int answers = 0;
  std::string head;  // the start of a request that has not come whole
  std::string own;
};

connection* of(uv_handle_t* handle) {
  return static_cast<connection*>(handle->data);
}
uv_stream_t* stream_of(connection* conn) {
  return reinterpret_cast<uv_stream_t*>(&conn->tcp);
}

void on_closed(uv_handle_t* handle) {
  connection* conn = of(handle);
  if (--conn->handles == 0) delete conn;
}

void end(connection* conn) {
  auto* tcp = reinterpret_cast<uv_handle_t*>(&conn->tcp);
  if (uv_is_closing(tcp)) return;
  uv_close(tcp, on_closed);
  if (conn->home->opt.sleep_ms != 0) uv_close(reinterpret_cast<uv_handle_t*>(&conn->timer), on_closed);
}

void answer(connection* conn);

// The rare answer that the socket did not take whole has been sent.
void on_written(uv_write_t* write, int status) {
  auto* conn = static_cast<connection*>(write->data);
  if (status < 0 || !conn->home->opt.keep_alive) return end(conn);
  if (--conn->answers > 0) answer(conn);
}

void answer(connection* conn) {
  while (conn->answers > 0) {
    const std::string_view response = conn->home->responder.next(conn->own);
    uv_buf_t buffer = uv_buf_init(const_cast<char*>(response.data()), static_cast<unsigned>(response.size()));
    const int sent = uv_try_write(stream_of(conn), &buffer, 1);
    if (sent < 0 && sent != UV_EAGAIN) return end(conn);
    const auto done = static_cast<std::size_t>(sent < 0 ? 0 : sent);
    if (done < response.size()) {
      buffer = uv_buf_init(buffer.base + done, static_cast<unsigned>(response.size() - done));
      if (uv_write(&conn->write, stream_of(conn), &buffer, 1, on_written) != 0) end(conn);
      return;
    }
    if (!conn->home->opt.keep_alive) return end(conn);
    --conn->answers;
  }
}

void on_timer(uv_timer_t* timer) {
  answer(static_cast<connection*>(timer->data));
}

void on_read(uv_stream_t* stream, ssize_t bytes, const uv_buf_t* buffer) {
  auto* conn = static_cast<connection*>(stream->data);
  if (bytes < 0) return end(conn);
  std::string_view data(buffer->base, static_cast<std::size_t>(bytes));
  if (!conn->head.empty()) data = conn->head.append(data);
  std::size_t used = 0;
  conn->answers += peer::responder::count_requests(data, used);
  conn->head = std::string(data.substr(used));
  if (conn->head.size() > peer::request_bytes) return end(conn);
  if (conn->answers == 0) return;
  if (conn->home->opt.sleep_ms == 0) return answer(conn);
  // The loop's clock counts whole milliseconds: one more, or it could end early.
  uv_timer_start(&conn->timer, on_timer, static_cast<std::uint64_t>(conn->home->opt.sleep_ms) + 1, 0);
}

void on_connection(uv_stream_t* listener, int status) {
  if (status < 0) return;
  auto* conn = new connection;
  conn->home = static_cast<loop*>(listener->data);
  uv_tcp_init(listener->loop, &conn->tcp);
  conn->tcp.data = conn->timer.data = conn->write.data = conn;
  if (conn->home->opt.sleep_ms != 0) {
    uv_timer_init(listener->loop, &conn->timer);
    ++conn->handles;
  }
  if (uv_accept(listener, stream_of(conn)) != 0) return end(conn);
  uv_tcp_nodelay(&conn->tcp, 1);
  uv_read_start(
      stream_of(conn),
      [](uv_handle_t* handle, std::size_t, uv_buf_t* buffer) {
        auto& in = of(handle)->home->in;
        *buffer = uv_buf_init(in.data(), static_cast<unsigned>(in.size()));
      },
      on_read);
}

void serve(const peer::loop_setting& setting) {
  loop home(setting.opt);
  uv_loop_t uv;
  uv_loop_init(&uv);
  uv_tcp_t listener;
  uv_tcp_init(&uv, &listener);
  listener.data = &home;
  if (uv_tcp_open(&listener, setting.listener_fd) != 0 ||
      uv_listen(reinterpret_cast<uv_stream_t*>(&listener), 4096, on_connection) != 0) {
    program::die("uv_listen");
  }
  uv_run(&uv, UV_RUN_DEFAULT);
}

}  // namespace

int main(int argc, char** argv) {
  const peer::options opt = peer::parse_options(argc, argv, false);
  peer::run(opt, serve);
  std::_Exit(0);  // the loops use this frame's objects until the process is gone
}
