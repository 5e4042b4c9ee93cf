# Makes the target quorum::xsimd from whichever xsimd there is: an xsimd package (its target is `xsimd` or `xsimd::xsimd`),
# or headers alone on the include path (set xsimd_INCLUDE_DIR to point at them). Sets quorum_xsimd_problem when there is none.
# Read by quorum's own CMakeLists.txt and by the installed package.
set(quorum_xsimd_problem "")
if(NOT TARGET quorum::xsimd)
  if(NOT TARGET xsimd AND NOT TARGET xsimd::xsimd)
    # No version here: xsimd's version file accepts its own major version only, and any from 8.1 on will do.
    find_package(xsimd CONFIG QUIET)
  endif()
  if(TARGET xsimd::xsimd OR TARGET xsimd)
    if(DEFINED xsimd_VERSION AND xsimd_VERSION VERSION_LESS 8.1)
      set(quorum_xsimd_problem "quorum needs xsimd 8.1 or newer, found ${xsimd_VERSION} in ${xsimd_DIR}")
    endif()
    set(quorum_xsimd_target xsimd)
    if(TARGET xsimd::xsimd)
      set(quorum_xsimd_target xsimd::xsimd)
    endif()
    get_target_property(quorum_xsimd_includes ${quorum_xsimd_target} INTERFACE_INCLUDE_DIRECTORIES)
  else()
    find_path(xsimd_INCLUDE_DIR xsimd/xsimd.hpp)
    if(NOT xsimd_INCLUDE_DIR)
      set(quorum_xsimd_problem
          "quorum needs xsimd (Debian and Ubuntu: libxsimd-dev): neither its package nor xsimd/xsimd.hpp was found; set xsimd_DIR or xsimd_INCLUDE_DIR")
    endif()
    set(quorum_xsimd_includes "${xsimd_INCLUDE_DIR}")
  endif()
  if(NOT quorum_xsimd_problem)
    # The include folder is copied, not linked: xsimd's own target is not visible above the folder that found it.
    add_library(quorum::xsimd INTERFACE IMPORTED GLOBAL)
    set_target_properties(quorum::xsimd PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${quorum_xsimd_includes}")
  endif()
endif()
