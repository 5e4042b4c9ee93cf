// The bytes of a file, mapped read-only or held in memory, behind one owner.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "quorum/core/error.hpp"

namespace quorum::io {

// Read-only bytes of a file; move-only, the bytes stay where they are when the owner moves.
//
// Memory: pages come from the file on first touch and are shared with other readers; POSIX only.
// Caller: a mapped file must not be shortened while it is open; reading beyond its new end raises SIGBUS.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept { swap(other); }
  MappedFile& operator=(MappedFile&& other) noexcept {
    MappedFile taken(std::move(other));
    swap(taken);
    return *this;
  }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile() {
    if (mapping_ != nullptr) munmap(mapping_, mapped_bytes_);
  }

  // Errors: Error(io_failure) naming the file and the operating system's reason; a directory or device is refused.
  static MappedFile open(const std::string& path) {
    const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) fail(path, "readable", std::strerror(errno));
    MappedFile file;
    struct stat status = {};
    const bool known = fstat(descriptor, &status) == 0, regular = known && S_ISREG(status.st_mode);
    if (regular && status.st_size > 0) {
      void* mapping = mmap(nullptr, size_t(status.st_size), PROT_READ, MAP_PRIVATE, descriptor, 0);
      if (mapping != MAP_FAILED) {
        file.mapping_ = mapping;
        file.mapped_bytes_ = size_t(status.st_size);
      }
    }
    const int reason = errno;
    close(descriptor);  // a mapping outlives its descriptor
    if (!known) fail(path, "readable", std::strerror(reason));
    if (!regular) fail(path, "a regular file", "a directory or a device");
    if (status.st_size > 0 && file.mapping_ == nullptr) fail(path, "mappable", std::strerror(reason));
    return file;
  }

  // A copy of bytes that are in memory already.
  static MappedFile copy(std::span<const std::byte> bytes) {
    MappedFile file;
    file.memory_.assign(bytes.begin(), bytes.end());
    return file;
  }

  std::span<const std::byte> bytes() const {
    return mapping_ != nullptr ? std::span(static_cast<const std::byte*>(mapping_), mapped_bytes_) : std::span(memory_);
  }

 private:
  [[noreturn]] static void fail(const std::string& path, const char* rule, const char* reason) {
    throw_error(ErrorCode::io_failure, "MappedFile::open", "'" + path + "'", rule, reason);
  }
  void swap(MappedFile& other) noexcept {
    std::swap(mapping_, other.mapping_);
    std::swap(mapped_bytes_, other.mapped_bytes_);
    memory_.swap(other.memory_);
  }

  void* mapping_ = nullptr;
  size_t mapped_bytes_ = 0;
  std::vector<std::byte> memory_;
};

}  // namespace quorum::io
