#include "engine/loop/mailbox.hpp"

namespace percore {

post_result detail::post_message(mailbox_link& link, message&& what) noexcept { return link.post(std::move(what)); }

}  // namespace percore
