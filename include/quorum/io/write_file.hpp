// Writing a whole file so that whoever opens it finds the old content or the new one, never a part.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "quorum/core/error.hpp"

namespace quorum::io {

namespace detail {

// A new file beside the one to be written; removed again unless it takes that one's place.
class TemporaryFile {
 public:
  // mode: permissions, of which the process's umask takes some.
  TemporaryFile(const std::string& path, mode_t mode) : path_(path) {
    static std::atomic<unsigned> count{0};
    do {  // a killed process of the same id may have left one of that name
      name_ = path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(count.fetch_add(1));
      descriptor_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    } while (descriptor_ < 0 && errno == EEXIST);
    if (descriptor_ < 0) fail("in a folder that can be written to");
  }
  ~TemporaryFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (!name_.empty()) unlink(name_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  void set_mode(mode_t mode) {
    if (fchmod(descriptor_, mode) != 0) fail("writable with the permissions it had");
  }
  void write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(descriptor_, bytes.data(), bytes.size());
      if (written >= 0) {
        bytes = bytes.subspan(size_t(written));
      } else if (errno != EINTR) {
        fail("writable");
      }
    }
  }
  // To the disk, then into the place of the file. The order matters: a name must not reach the disk before what it names.
  void replace_file() {
    if (fsync(descriptor_) != 0) fail("writable to the disk");
    if (close(std::exchange(descriptor_, -1)) != 0) fail("writable");
    if (std::rename(name_.c_str(), path_.c_str()) != 0) fail("replaceable");
    name_.clear();
  }
  [[noreturn]] void fail(const char* rule) const {
    throw_error(ErrorCode::io_failure, "write_file", "'" + path_ + "'", rule, std::strerror(errno));
  }

 private:
  const std::string& path_;
  std::string name_;
  int descriptor_ = -1;
};

// Makes the folder's list of names durable. False, with errno set, if the system refused; a file system that cannot do this is no failure.
inline bool sync_folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return errno == EACCES;  // may be written to but not listed
  const bool done = fsync(descriptor) == 0 || errno == EINVAL || errno == ENOTSUP;
  const int reason = errno;
  close(descriptor);
  errno = reason;
  return done;
}

}  // namespace detail

// Writes `bytes` as the whole content of the file `path`, new or in the place of an old one, whose permissions it takes over.
//
// Who opens the file meanwhile, or after the process or the machine has stopped half-way, finds the old content or the new one: the bytes
// go to a temporary file in the same folder and to the disk, then the file is replaced in one step. Who has the old one mapped keeps it.
// When this returns the new content is on the disk. Two writers of one path do not mix: the later one's content stands. A process that is
// killed half-way leaves its temporary file, `<path>.tmp-<process>-<number>`. Nothing reads it, later writes neither use nor remove it; it
// may be deleted once no writer is at work. A symbolic link is replaced itself; hard links to the old file keep the old content. Errors:
// Error(io_failure) naming the file and the operating system's reason. The old file is then as it was and the temporary one removed,
//   except that when the folder cannot be brought to the disk the new content stands, without being safe from a loss of power.
// Cost: one pass over the bytes and two waits for the disk; POSIX only.
inline void write_file(const std::string& path, std::span<const std::byte> bytes) {
  struct stat old = {};
  const bool replaces = lstat(path.c_str(), &old) == 0;
  if (replaces && !S_ISREG(old.st_mode) && !S_ISLNK(old.st_mode)) {
    throw_error(ErrorCode::io_failure, "write_file", "'" + path + "'", "a regular file or absent", "a directory or a device");
  }
  const bool keeps_mode = replaces && S_ISREG(old.st_mode);
  detail::TemporaryFile file(path, keeps_mode ? mode_t(S_IRUSR | S_IWUSR) : mode_t(0666));  // closed to others until it has its mode
  if (keeps_mode) file.set_mode(old.st_mode & mode_t(07777));
  file.write(bytes);
  file.replace_file();
  if (!detail::sync_folder_of(path)) file.fail("in a folder that can be brought to the disk");
}

}  // namespace quorum::io
