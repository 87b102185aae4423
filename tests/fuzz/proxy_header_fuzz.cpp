// The PROXY protocol over any bytes: what is a header is one in its own length too, nothing shorter is, and what was read can be
// written and read again.

#include <percore/proxy_protocol.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void try_header(std::string_view bytes) {
  using percore::proxy_parse;
  percore::proxy_header header, again;
  std::size_t used = 0, used_again = 0;
  if (percore::parse_proxy_header(bytes, header, used) != proxy_parse::done) return;
  check(used <= bytes.size());
  const std::string exact(bytes.substr(0, used));
  check(percore::parse_proxy_header(exact, again, used_again) == proxy_parse::done && used_again == used);
  check(again.source == header.source && again.destination == header.destination);
  for (std::size_t i = 0; i < used; ++i) {
    check(percore::parse_proxy_header(exact.substr(0, i), again, used_again) == proxy_parse::more);
  }
  header.fields.clear();
  const std::string written = percore::to_bytes(header);
  check(percore::parse_proxy_header(written, again, used_again) == proxy_parse::done && used_again == written.size());
  if (header.source.family() == header.destination.family() && (header.version == 2 || !header.source.is_unix())) {
    check(again.source == header.source && again.destination == header.destination);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try_header(bytes);
  try_header("PROXY " + bytes);
  try_header("PROXY TCP4 " + bytes + "\r\n");
  try_header(std::string("\r\n\r\n\0\r\nQUIT\n", 12) + bytes);
  return 0;
}
