// Kernel TLS for a kernel that has none: what Documentation/networking/tls.rst says of sending, in user space, behind
// the seam. Records go over the real socket, encrypted with the keys that the engine handed over, so any TLS client
// tells whether keys, sequence numbers and record types are right.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "engine/sys/faults.hpp"

namespace percore::test {

class kernel_tls_stand_in final : public sys::kernel_stand_in {
 public:
  kernel_tls_stand_in() { sys::set_kernel_stand_in(this); }
  kernel_tls_stand_in(const kernel_tls_stand_in&) = delete;
  kernel_tls_stand_in& operator=(const kernel_tls_stand_in&) = delete;
  ~kernel_tls_stand_in() { sys::set_kernel_stand_in(nullptr); }

  // What setsockopt answers; 0: as it should.
  std::atomic<int> ulp_error{0};   // to TCP_ULP: ENOENT without the module
  std::atomic<int> keys_error{0};  // to TLS_TX

  // Calls of each kind so far.
  std::atomic<unsigned> asked{0};     // TCP_ULP
  std::atomic<unsigned> messages{0};  // records of another type than application data
  std::atomic<std::uint64_t> file_bytes{0};  // taken by sendfile

  int setsockopt(int fd, int level, int name, const void* value, socklen_t length) noexcept override;
  ssize_t sendmsg(int fd, const msghdr* message, int flags) noexcept override;
  ssize_t sendfile(int fd, int file, off_t* offset, std::size_t length) noexcept override;
  [[nodiscard]] bool has(int fd) const noexcept override;
  void closed(int fd) noexcept override;

 private:
  struct stream {
    std::uint16_t version = 0;
    std::uint16_t cipher = 0;
    std::vector<unsigned char> key;
    std::vector<unsigned char> nonce;  // salt and iv
    std::uint64_t sequence = 0;
    std::vector<unsigned char> open;  // application data that MSG_MORE has left without its end
  };
  static bool take_keys(stream& into, const void* value, socklen_t length);
  static std::vector<unsigned char> record(stream& with, unsigned char type, std::span<const unsigned char> content);
  static int put(int fd, stream& with, unsigned char type, std::span<const unsigned char> content);

  mutable std::mutex lock_;
  std::map<int, stream> streams_;
};

}  // namespace percore::test
