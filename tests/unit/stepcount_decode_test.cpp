// What stepcount takes for an atomic read-modify-write, and the address it finds for it. The bytes are an
// assembler's.
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <initializer_list>

#if defined(__x86_64__)

#include "perf/stepcount/decode.hpp"

namespace {

using stepcount::decode;
using stepcount::instruction;
using stepcount::kind;

instruction decoded(std::initializer_list<unsigned char> bytes) {
  std::array<std::uint8_t, 32> code{};
  std::size_t at = 0;
  for (const unsigned char byte : bytes) code[at++] = byte;
  return decode(code.data(), 0x1000);
}

user_regs_struct registers() {
  user_regs_struct r{};
  r.rax = 0x100;
  r.rbx = 0x200;
  r.rsp = 0x300;
  r.r12 = 0x400;
  r.r9 = 0x10;
  r.fs_base = 0x7000;
  return r;
}

}  // namespace

TEST_CASE("stepcount: system calls, atomics and everything else") {
  CHECK(decoded({0x0F, 0x05}).what == kind::system_call);
  CHECK(decoded({0x48, 0x89, 0x03}).what == kind::plain);               // mov %rax,(%rbx)
  CHECK(decoded({0x48, 0x87, 0xC3}).what == kind::plain);               // xchg %rax,%rbx: no memory
  CHECK(decoded({0x48, 0x87, 0x03}).what == kind::atomic);              // xchg %rax,(%rbx)
  CHECK(decoded({0xF0, 0x48, 0x0F, 0xB1, 0x0B}).what == kind::atomic);  // lock cmpxchg %rcx,(%rbx)
  CHECK(decoded({0xF3, 0x0F, 0x1E, 0xFA}).what == kind::plain);         // endbr64
}

TEST_CASE("stepcount: the address of an atomic's operand") {
  const user_regs_struct r = registers();
  CHECK(operand_address(decoded({0xF0, 0xFF, 0x00}), r) == 0x100);                    // lock incl (%rax)
  CHECK(operand_address(decoded({0xF0, 0xFF, 0x43, 0xF8}), r) == 0x1F8);              // lock incl -8(%rbx)
  CHECK(operand_address(decoded({0xF0, 0x48, 0x83, 0x0C, 0x24, 0x00}), r) == 0x300);  // lock orq $0,(%rsp)
  CHECK(operand_address(decoded({0xF0, 0x43, 0xFF, 0x44, 0x8C, 0x04}), r) ==
        0x444);                                                                     // lock incl 4(%r12,%r9,4)
  CHECK(operand_address(decoded({0xF0, 0xFF, 0x05, 0x10, 0, 0, 0}), r) == 0x1017);  // lock incl 0x10(%rip)
  CHECK(operand_address(decoded({0xF0, 0x83, 0x05, 0x10, 0, 0, 0, 0x01}), r) ==
        0x1018);  // lock addl $1,0x10(%rip)
  CHECK(operand_address(decoded({0x64, 0xF0, 0x0F, 0xB1, 0x0C, 0x25, 8, 3, 0, 0}), r) ==
        0x7308);  // lock cmpxchg %ecx,%fs:0x308
}

#endif
