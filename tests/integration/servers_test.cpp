// Several servers in one process.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/clean_process.hpp"
#include "tests/support/test_server.hpp"

namespace percore::test {
namespace {

std::string ask(const address& where, std::string_view question) {
  client peer(where);
  peer.send_all(question);
  peer.half_close();
  return peer.recv_to_end();
}

TEST_CASE_FIXTURE(clean_process, "servers: live side by side and end one by one") {
  std::vector<std::unique_ptr<test_server>> servers;
  for (int i = 0; i < 5; ++i) {
    const std::string name = "server " + std::to_string(i);
    servers.push_back(std::make_unique<test_server>(
        [name](connection& conn) -> task<> { co_await conn.write(name); }, i % 2 == 0 ? all_cores() : one_core()));
  }
  while (!servers.empty()) {
    for (const auto& each : servers) CHECK(ask(each->where(), "").starts_with("server "));
    CHECK(ask(servers.back()->where(), "") == "server " + std::to_string(servers.size() - 1));
    servers.size() % 2 == 0 ? (*servers.back())->shutdown() : (*servers.back())->halt();
    servers.pop_back();
  }
}

TEST_CASE_FIXTURE(clean_process, "servers: count for themselves") {
  test_server first(echo);
  test_server second(echo);
  for (int i = 0; i < 3; ++i) CHECK(ask(first.where(), "first") == "first");
  CHECK(ask(second.where(), "second") == "second");
  CHECK(first.total().accepted == 3);
  CHECK(second.total().accepted == 1);
}

TEST_CASE_FIXTURE(clean_process, "servers: one posts to the other's connections") {
  channel<connection_handle> screens;
  test_server screen([&](connection& conn) -> task<> {
    screens.put(conn.handle());
    co_await conn.read();
  });
  client viewer = screen.connect();
  const connection_handle handle = screens.take();
  test_server keyboard([handle](connection& conn) -> task<> {
    while (auto data = co_await conn.read()) handle.write(std::string(data.text()));
  });
  client typist = keyboard.connect();
  typist.send_all("typed here");
  CHECK(viewer.recv_exactly(10) == "typed here");
}

TEST_CASE_FIXTURE(clean_process, "servers: one ends another from its own core") {
  test_server victim(echo);
  client idle = victim.connect();
  test_server ender([&](connection& conn) -> task<> {
    co_await conn.read();
    victim->begin_shutdown();
    co_await conn.write("begun");
  });
  CHECK(ask(ender.where(), "end it") == "begun");
  victim->wait();
  CHECK(idle.wait_for_end() == ending::fin);
}

TEST_CASE_FIXTURE(clean_process, "servers: many one after the other") {
  for (int i = 0; i < 30; ++i) {
    test_server server(echo, all_cores());
    CHECK(ask(server.where(), "once more") == "once more");
  }
}

TEST_CASE_FIXTURE(clean_process, "servers: started and ended by different threads at the same time") {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int k = 0; k < 5; ++k) {
        test_server server(echo, all_cores());
        CHECK(ask(server.where(), "threads") == "threads");
        k % 2 == 0 ? server->shutdown() : server->halt();
      }
    });
  }
  for (std::thread& each : threads) each.join();
}

}  // namespace
}  // namespace percore::test
