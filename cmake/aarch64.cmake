# Toolchain: compile on another machine for 64-bit Arm with Debian's or Ubuntu's g++-aarch64-linux-gnu, and let ctest run the programs in
# the user-mode emulator of qemu-user. Used by the preset `neon`; cmake/setup.sh --with arm installs both.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)

# Libraries come from the target's own tree only. Headers and CMake packages also from the host: Eigen, xsimd and doctest are headers
# alone, the same for every processor.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE BOTH)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE BOTH)

# These packages lie in /usr/include, which also holds the host's C library. The compiler searches it last, after the headers of the
# target, and it must stay there: CMake drops a folder from the command line that the compiler searches by itself.
