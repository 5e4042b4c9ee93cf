# Makes the target quorum::cuda, for programs that include quorum/cuda.cuh, when a CUDA toolkit is on the machine; without one there is no
# such target and nothing else changes. Sets quorum_cuda_toolkit to its root and quorum_cuda_includes to its include folders, or to "".
# Read by quorum's own CMakeLists.txt and by the installed package.
find_program(QUORUM_NVCC nvcc PATHS /usr/local/cuda/bin)
find_path(QUORUM_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES include
          targets/x86_64-linux/include)
mark_as_advanced(QUORUM_NVCC QUORUM_CUDA_INCLUDE_DIR)

set(quorum_cuda_toolkit "")
set(quorum_cuda_includes "")
if(QUORUM_CUDA_INCLUDE_DIR)
  cmake_path(GET QUORUM_CUDA_INCLUDE_DIR PARENT_PATH quorum_cuda_toolkit)
  set(quorum_cuda_includes "${QUORUM_CUDA_INCLUDE_DIR}")
  if(EXISTS "${QUORUM_CUDA_INCLUDE_DIR}/cccl/cub")  # where CUB lies since CUDA 13
    list(APPEND quorum_cuda_includes "${QUORUM_CUDA_INCLUDE_DIR}/cccl")
  endif()
  if(NOT TARGET quorum::cuda)
    add_library(quorum::cuda INTERFACE IMPORTED GLOBAL)
    target_link_libraries(quorum::cuda INTERFACE quorum::quorum)
    target_include_directories(quorum::cuda SYSTEM INTERFACE ${quorum_cuda_includes})
    # CMake up to 3.25 knows no C++20 for this nvcc and drops cxx_std_20 without a word. The kernels call the constexpr functions of core.
    target_compile_options(quorum::cuda INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20;--expt-relaxed-constexpr>")
  endif()
endif()
