// Chat: what one member says, all members hear, on whichever core they are.
//
//   chat [ADDRESS]         default 127.0.0.1:5000; try it with two of: nc 127.0.0.1 5000
//
// The first line that a client sends is its name, every further one (up to 1024 bytes) goes to everybody, the speaker
// included. Each core keeps a list of its own members that no other core touches, so there is no lock: a line reaches
// the members of another core as a message to that core.
//
// Nobody waits for a slow reader: a member for whom 64 KiB (listen_options::unsent_tail_bytes) lie unsent is dropped
// by the next line that does not fit. A speaker waits while the mailbox of a core is full.
#include <percore/percore.hpp>

#include <chrono>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

// The members on this thread's core. Only that thread uses it, and never across a co_await.
thread_local std::vector<percore::connection*> members;

class membership {
 public:
  explicit membership(percore::connection& conn) : conn_(&conn) { members.push_back(conn_); }
  membership(const membership&) = delete;
  membership& operator=(const membership&) = delete;
  ~membership() { std::erase(members, conn_); }

 private:
  percore::connection* conn_;
};

void deliver(const std::string& line) {
  for (percore::connection* member : members)
    if (!member->try_write(line)) member->reset();
}

percore::task<> tell_everybody(percore::connection& speaker, std::string line) {
  percore::server& server = speaker.owner();
  for (std::size_t core = 0; core < server.core_count(); ++core)
    while (server.post(core, [line] { deliver(line); }) == percore::post_result::queue_full)
      if (!co_await speaker.sleep_for(std::chrono::milliseconds(1))) co_return;
}

std::string without_line_end(std::string_view line) {
  while (line.ends_with('\n') || line.ends_with('\r')) line.remove_suffix(1);
  return std::string(line);
}

percore::task<> chat(percore::connection& conn) {
  conn.try_write("your name?\n");
  std::string name;
  if (auto line = co_await conn.read_until("\n", 64)) name = without_line_end(line);
  if (name.empty()) co_return;

  const membership here(conn);
  std::string text = "* " + name + " joined\n";
  co_await tell_everybody(conn, text);
  while (auto line = co_await conn.read_until("\n", 1024)) {
    text = name + ": " + without_line_end(line) + '\n';
    co_await tell_everybody(conn, text);
  }
  text = "* " + name + " left\n";
  co_await tell_everybody(conn, text);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view where = argc > 1 ? argv[1] : "127.0.0.1:5000";
  if (argc > 2 || where.starts_with('-')) {
    const bool asked = argc == 2 && where == "--help";
    (asked ? std::cout : std::cerr) << "usage: chat [ADDRESS]\n"
                                       "Line-based chat on ADDRESS (default 127.0.0.1:5000; port 0: any free\n"
                                       "port). The first line is your name. SIGINT or SIGTERM ends it.\n";
    return asked ? 0 : 2;
  }
  try {
    percore::server_options settings;
    settings.on_started = [](percore::server& started) {
      std::cout << "listening on " << started.local_address().to_string() << std::endl;
    };
    percore::server server(settings);
    server.listen(where, chat);
    server.serve();
  } catch (const std::invalid_argument& mistake) {
    std::cerr << "chat: " << mistake.what() << '\n';
    return 2;
  } catch (const std::exception& failure) {
    std::cerr << "chat: " << failure.what() << '\n';
    return 1;
  }
}
