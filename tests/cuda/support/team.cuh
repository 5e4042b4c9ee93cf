// What the device that runs the tests allows of teams.
#pragma once

#include "quorum/cuda/dispatch/tuning.cuh"

namespace quorum::test {

// 1 where blocks cannot run in teams: below compute capability 9.0.
inline int most_team_blocks() {
  static const bool has_teams = cuda::DeviceTuning::of_current().has_teams;
  return has_teams ? cuda::kMaxTeamBlocks : 1;
}

}  // namespace quorum::test
