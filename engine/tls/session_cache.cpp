#include "engine/tls/session_cache.hpp"

#include <new>
#include <utility>

namespace percore::tls {

bool session_cache::good(const entry& one, std::int64_t now) const noexcept {
  // A clock that was set back makes everything old.
  return now >= one.by.done && now < one.expires && now - one.by.done < longest_chain_ &&
         (one.by.valid_until == 0 || now < one.by.valid_until);
}

void session_cache::put(entry&& what, std::int64_t now) noexcept {
  if (most_ == 0 || !good(what, now)) return;
  std::size_t of_this_key = 1;
  for (auto it = entries_.begin(); it != entries_.end();) {
    const bool one_too_many = it->key == what.key && ++of_this_key > most_of_a_key;
    it = one_too_many || !good(*it, now) ? entries_.erase(it) : std::next(it);
  }
  try {
    entries_.push_front(std::move(what));
  } catch (const std::bad_alloc&) {
    return;  // the next handshake is a full one
  }
  if (entries_.size() > most_) entries_.pop_back();
}

std::optional<session_cache::entry> session_cache::take(const std::string& key, std::int64_t now) noexcept {
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (!good(*it, now)) {
      it = entries_.erase(it);
    } else if (it->key == key) {
      entry found = std::move(*it);
      entries_.erase(it);
      return found;
    } else {
      ++it;
    }
  }
  return std::nullopt;
}

}  // namespace percore::tls
