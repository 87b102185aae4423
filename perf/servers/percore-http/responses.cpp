#include "perf/servers/percore-http/responses.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace percore_http {
namespace {

constexpr std::size_t longest_copied_body = 64 * 1024;
constexpr std::size_t buffer_bytes = 32 * 1024;
constexpr std::size_t most_copies = 32;

std::size_t content_bytes_of(body_kind kind, std::size_t body_bytes) noexcept {
  switch (kind) {
    case body_kind::aes128:
      return aes128_cbc::output_bytes(body_bytes);
    case body_kind::sha256:
      return sha256_hex::output_bytes;
    case body_kind::plain:
      break;
  }
  return body_bytes;
}

const char* reason(std::uint16_t status) noexcept {
  switch (status) {
    case 400:
      return "400 Bad Request";
    case 413:
      return "413 Content Too Large";
    case 414:
      return "414 URI Too Long";
    case 417:
      return "417 Expectation Failed";
    case 431:
      return "431 Request Header Fields Too Large";
    case 501:
      return "501 Not Implemented";
    case 505:
      return "505 HTTP Version Not Supported";
    default:
      return "500 Internal Server Error";
  }
}

// Up to the value of Date.
std::string head_start(const char* status) {
  return std::string("HTTP/1.1 ") + status + "\r\nServer: percore\r\nDate: ";
}

std::string head_rest(bool keep_alive, std::size_t content_bytes) {
  return std::string("\r\nConnection: ") + (keep_alive ? "keep-alive" : "close") +
         "\r\nContent-Type: text/plain\r\nContent-Length: " + std::to_string(content_bytes) + "\r\n\r\n";
}

}  // namespace

response_layout::response_layout(body_kind kind, std::size_t body_bytes)
    : kind_(kind),
      plain_body_(body_bytes, 'x'),
      content_bytes_(content_bytes_of(kind, body_bytes)),
      body_is_shared_(kind == body_kind::plain && body_bytes > longest_copied_body) {
  const std::string start = head_start("200 OK");
  const std::string gap(date_bytes, '?');
  date_offset_ = start.size();
  keep_alive_head_ = start + gap + head_rest(true, content_bytes_);
  close_head_ = start + gap + head_rest(false, content_bytes_);
  copies_ = std::clamp<std::size_t>(buffer_bytes / stride(true), 1, most_copies);
}

response_source::response_source(const response_layout& layout)
    : layout_(layout), made_per_request_(layout.kind() != body_kind::plain) {
  if (layout.kind() == body_kind::aes128) cipher_.emplace();
  if (layout.kind() == body_kind::sha256) digest_.emplace();
}

response_source::~response_source() {
  take_returned();
  for (response_buffer* buffer : free_) {
    while (buffer != nullptr) delete std::exchange(buffer, buffer->next);
  }
}

void response_source::take_returned() noexcept {
  response_buffer* buffer = returned_.exchange(nullptr, std::memory_order_acquire);
  while (buffer != nullptr) give_back(std::exchange(buffer, buffer->next));
}

response_buffer* response_source::returned_or_new(bool keep_alive) {
  take_returned();
  response_buffer* buffer = take_free(keep_alive);
  return buffer != nullptr ? buffer : make_buffer(keep_alive);
}

response_buffer* response_source::make_buffer(bool keep_alive) const {
  const std::string_view head = layout_.head(keep_alive);
  const std::size_t stride = layout_.stride(keep_alive);
  const std::size_t copies = layout_.copies(keep_alive);
  auto buffer = std::make_unique<response_buffer>();
  buffer->keep_alive = keep_alive;
  buffer->bytes = std::make_unique<char[]>(copies * stride);
  for (std::size_t i = 0; i < copies; ++i) {
    char* response = buffer->bytes.get() + i * stride;
    std::memcpy(response, head.data(), head.size());
    // Other kinds of body are made for each request.
    if (layout_.kind() == body_kind::plain && !layout_.body_is_shared()) {
      std::memcpy(response + head.size(), layout_.plain_body().data(), layout_.content_bytes());
    }
  }
  return buffer.release();
}

void response_source::stamp(response_buffer& buffer) const noexcept {
  const std::size_t stride = layout_.stride(buffer.keep_alive);
  for (std::size_t i = 0; i < layout_.copies(buffer.keep_alive); ++i) {
    std::memcpy(buffer.bytes.get() + i * stride + layout_.date_offset(), clock_.text().data(), date_bytes);
  }
  buffer.second = clock_.second();
}

void response_source::make_bodies(response_buffer& buffer, std::size_t count) {
  const std::size_t head_bytes = layout_.head(buffer.keep_alive).size();
  const std::size_t stride = layout_.stride(buffer.keep_alive);
  for (std::size_t i = 0; i < count; ++i) {
    char* content = buffer.bytes.get() + i * stride + head_bytes;
    if (cipher_) cipher_->encrypt(layout_.plain_body(), content);
    if (digest_) digest_->digest(layout_.plain_body(), content);
  }
}

std::string response_source::error_response(std::uint16_t status, bool with_body,
                                            std::chrono::steady_clock::time_point now) {
  clock_.advance(now);
  const std::string content = std::string(reason(status)) + "\n";
  std::string response = head_start(reason(status));
  response.append(clock_.text().data(), date_bytes);
  response += head_rest(false, content.size());
  if (with_body) response += content;
  return response;
}

}  // namespace percore_http
