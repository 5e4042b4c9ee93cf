// Runs the threads of a block, each on a fiber, on one OS thread: a thread runs until it waits for others. Blocks run one after another,
// those of a team (a cluster of thread blocks in CUDA's words) together.
#pragma once

#include <vector_types.h>

#include <cstdint>
#include <functional>
#include <source_location>
#include <stdexcept>
#include <string>

#include "tests/cuda/emulation/fiber.hpp"

namespace quorum::emulation {

// Which of the threads that can go on does so next. The blocks of a grid run in the same order.
enum class ThreadOrder { forward, reverse, random };
// When an asynchronous copy happens: as late or as early as it may, or one or the other by chance.
enum class AsyncCopyTime { at_wait, at_issue, random };

// Read at each launch. The first values come from the environment: QUORUM_EMULATION_ORDER (forward, reverse, random),
// QUORUM_EMULATION_ASYNC (wait, issue, random; without it: the first of these for forward, and so on), QUORUM_EMULATION_SEED.
struct Settings {
  ThreadOrder order = ThreadOrder::forward;
  AsyncCopyTime async_copies = AsyncCopyTime::at_wait;
  uint64_t seed = 1;
};
Settings& settings();

// What a kernel did wrong that no sanitizer sees: threads that wait for ever, a barrier not all reach, a shuffle without its lanes.
class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

inline constexpr unsigned kMaxThreads = 1024, kMaxTeamBlocks = 8, kMaxTeamThreads = kMaxThreads * kMaxTeamBlocks;

// Runs body() once for each thread of the grid. team_blocks: neighbours along x that make a team, at most kMaxTeamBlocks; divides grid.x.
// Errors: Failure; the grid is given up then.
void run_grid(dim3 grid, dim3 block, unsigned team_blocks, size_t dynamic_shared_bytes, const std::function<void()>& body);

// --- For the pieces that kernels call; only while a kernel runs ------------------------------------------------------
using Site = std::source_location;

// Done once for all who meet, when the last has come: payloads[i] is that of lane i (or thread i of the block), null if it is not there.
using Combine = void (*)(void** payloads, int count);

// An exchange of values orders no memory accesses and leaves out lanes that have ended; a barrier orders those before it and after it;
// a matrix operation is an exchange that needs all lanes.
enum class Meeting { exchange, barrier, matrix };

// Waits until every lane of `mask` that has not ended is in the same operation with the same mask.
void meet_warp(const char* operation, unsigned mask, void* payload, Combine combine, Meeting kind, Site site);
// Waits until every thread of the block that has not ended is here, on the same line.
void meet_block(const char* operation, void* payload, Combine combine, Site site);
// Waits until every thread of the team that has not ended is here, on the same line.
void meet_team(const char* operation, Site site);
// Lets others run, now and then, in random order: where a thread acts on memory that others act on without meeting.
void maybe_let_others_run();

unsigned lane_id();
unsigned thread_number();  // in the team
unsigned block_rank();     // in the team
unsigned team_blocks();
// Gives the launch up unless a block of the team has its shared memory: it has begun, and not ended.
void check_neighbour(unsigned rank, Site site);
// A random number from the seed of the launch.
uint64_t random_number();
// Gives the launch up with a Failure.
[[noreturn]] void fail(std::string what, Site site);

}  // namespace quorum::emulation
