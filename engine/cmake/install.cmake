# cmake --install: headers, the archive, a find_package(percore) configuration and a pkg-config file.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/percore)

install(TARGETS percore EXPORT percore-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${percore_SOURCE_DIR}/include/percore
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.hpp")
install(EXPORT percore-targets NAMESPACE percore:: DESTINATION ${config_dir})

configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/percore-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/percore-config.cmake
  INSTALL_DESTINATION ${config_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/percore-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${CMAKE_CURRENT_BINARY_DIR}/percore-config.cmake ${CMAKE_CURRENT_BINARY_DIR}/percore-config-version.cmake
  DESTINATION ${config_dir})

# The .pc file finds its prefix from its own place, so that `cmake --install --prefix` and a moved tree both work.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
else()
  file(RELATIVE_PATH up /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
  string(REGEX REPLACE "/$" "" up "${up}")
  set(pc_prefix "\${pcfiledir}/${up}")
endif()
set(pc_libdir "\${prefix}")
cmake_path(APPEND pc_libdir "${CMAKE_INSTALL_LIBDIR}")
set(pc_includedir "\${prefix}")
cmake_path(APPEND pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
# hwloc is linked dynamically, so its own private libraries (Libs.private of hwloc.pc) are of no concern.
set(hwloc_dirs ${PERCORE_HWLOC_LIBRARY_DIRS})
list(REMOVE_ITEM hwloc_dirs ${CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES})
list(TRANSFORM hwloc_dirs PREPEND -L)
list(TRANSFORM PERCORE_HWLOC_LIBRARIES PREPEND -l OUTPUT_VARIABLE hwloc_libraries)
set(hwloc_flags ${hwloc_dirs} ${hwloc_libraries})
list(JOIN hwloc_flags " " pc_hwloc)
set(pc_mimalloc "")
if(PERCORE_MIMALLOC)
  set(pc_mimalloc "-Wl,--push-state,--no-as-needed -lmimalloc -Wl,--pop-state ")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/percore.pc.in ${CMAKE_CURRENT_BINARY_DIR}/percore.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/percore.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
