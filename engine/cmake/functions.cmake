# What the targets of this repository have in common. Everything is set on one target, privately: a project that
# embeds percore inherits no flag from here.

function(percore_warnings target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow
    $<$<BOOL:${PERCORE_WARNINGS_AS_ERRORS}>:-Werror>)
endfunction()

# A program or test of this repository: C++20, our warnings, includes by repository path, binary in bin/.
function(percore_program target)
  percore_warnings(${target})
  target_compile_features(${target} PRIVATE cxx_std_20)
  target_include_directories(${target} PRIVATE ${percore_SOURCE_DIR} ${percore_SOURCE_DIR}/include)
  set_target_properties(${target} PROPERTIES
    CXX_EXTENSIONS OFF
    RUNTIME_OUTPUT_DIRECTORY ${percore_BINARY_DIR}/bin)
endfunction()

# Makes mimalloc the allocator of a program. The program names none of its functions, so a linker that defaults to
# --as-needed (Ubuntu's) would drop it.
function(percore_link_mimalloc target)
  find_package(mimalloc 2.0 CONFIG REQUIRED)
  target_link_libraries(${target} PRIVATE mimalloc)
  target_link_options(${target} PRIVATE LINKER:--no-as-needed)
endfunction()
