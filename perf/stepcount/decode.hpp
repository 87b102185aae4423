// Just enough of x86-64's encoding to find atomic read-modify-writes and the memory that they change.
#pragma once

#include <sys/user.h>

#include <array>
#include <cstdint>
#include <cstring>

namespace stepcount {

enum class kind : std::uint8_t { plain, atomic, system_call };

struct instruction {
  kind what = kind::plain;
  // The memory operand: base + index * scale + displacement, registers by their number in the encoding, -1:
  // none.
  int base = -1;
  int index = -1;
  int scale = 1;
  std::int64_t displacement = 0;
  bool relative = false;  // to the address of the next instruction, which is in `displacement` already
  bool fs = false;        // thread-local storage
};

inline bool is_legacy_prefix(std::uint8_t byte) noexcept {
  switch (byte) {
    case 0xF0:
    case 0xF2:
    case 0xF3:
    case 0x2E:
    case 0x36:
    case 0x3E:
    case 0x26:
    case 0x64:
    case 0x65:
    case 0x66:
    case 0x67:
      return true;
    default:
      return false;
  }
}

// The bytes of an immediate operand behind ModRM, of the instructions that may be locked.
inline std::size_t immediate_bytes(bool two_byte, std::uint8_t opcode, bool operand_16) noexcept {
  if (two_byte) return opcode == 0xBA ? 1 : 0;
  if (opcode == 0x81) return operand_16 ? 2 : 4;
  return opcode == 0x80 || opcode == 0x83 ? 1 : 0;
}

// ModRM, SIB and displacement (Intel SDM volume 2, 2.1.5). `at` is the place of ModRM.
inline void decode_operand(instruction& out, const std::uint8_t* code, std::size_t at, std::uint8_t rex,
                           std::uint64_t address, std::size_t immediate) noexcept {
  const int mode = code[at] >> 6;
  const int low = code[at] & 7;
  ++at;
  const int base_high = (rex & 1) != 0 ? 8 : 0;
  bool wide = mode == 2;
  if (low == 4) {
    const std::uint8_t sib = code[at++];
    const int index = ((sib >> 3) & 7) | ((rex & 2) != 0 ? 8 : 0);
    if (index != 4) out.index = index;
    out.scale = 1 << (sib >> 6);
    out.base = (sib & 7) | base_high;
    if ((sib & 7) == 5 && mode == 0) {
      out.base = -1;
      wide = true;
    }
  } else if (low == 5 && mode == 0) {
    out.relative = true;
    wide = true;
  } else {
    out.base = low | base_high;
  }
  if (mode == 1) {
    out.displacement = static_cast<std::int8_t>(code[at++]);
  } else if (wide) {
    std::int32_t value = 0;
    std::memcpy(&value, code + at, sizeof value);
    out.displacement = value;
    at += sizeof value;
  }
  if (out.relative) out.displacement += static_cast<std::int64_t>(address + at + immediate);
}

// An atomic read-modify-write has the prefix LOCK (0xF0) or is XCHG with memory, which locks without it
// (Intel SDM volume 3, 8.1.2). `code` has at least 16 bytes.
inline instruction decode(const std::uint8_t* code, std::uint64_t address) noexcept {
  instruction out;
  bool locked = false;
  bool operand_16 = false;
  std::size_t i = 0;
  for (; i < 6 && is_legacy_prefix(code[i]); ++i) {
    locked = locked || code[i] == 0xF0;
    operand_16 = operand_16 || code[i] == 0x66;
    out.fs = out.fs || code[i] == 0x64;
  }
  const std::uint8_t rex = (code[i] & 0xF0) == 0x40 ? code[i++] : std::uint8_t{0};
  const bool two_byte = code[i] == 0x0F;
  if (two_byte) ++i;
  const std::uint8_t opcode = code[i++];
  if (two_byte && opcode == 0x05) {
    out.what = kind::system_call;
    return out;
  }
  const bool exchange = !two_byte && (opcode == 0x86 || opcode == 0x87) && (code[i] & 0xC0) != 0xC0;
  if (!locked && !exchange) return out;
  out.what = kind::atomic;
  decode_operand(out, code, i, rex, address, immediate_bytes(two_byte, opcode, operand_16));
  return out;
}

inline std::uint64_t register_value(const user_regs_struct& r, int number) noexcept {
  const std::array<unsigned long long, 16> all{r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi,
                                               r.r8,  r.r9,  r.r10, r.r11, r.r12, r.r13, r.r14, r.r15};
  return number < 0 ? 0 : all[static_cast<std::size_t>(number)];
}

inline std::uint64_t operand_address(const instruction& what, const user_regs_struct& registers) noexcept {
  return register_value(registers, what.base) +
         register_value(registers, what.index) * static_cast<unsigned>(what.scale) +
         static_cast<std::uint64_t>(what.displacement) + (what.fs ? registers.fs_base : 0);
}

}  // namespace stepcount
