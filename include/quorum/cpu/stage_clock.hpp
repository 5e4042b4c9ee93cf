// Where a step's time goes, when somebody asks.
#pragma once

#include <chrono>

#include "quorum/core/decode_report.hpp"

namespace quorum::cpu {

// One worker's clock. Off, it costs a branch a stage; on, a reading of the system's clock.
class StageClock {
 public:
  void enable(bool on) {
    on_ = on;
    times_ = {};
  }
  // Time from here on belongs to the next stage that ends.
  void start() {
    if (on_) last_ = Clock::now();
  }
  // The time since start() or the last end belongs to `stage`.
  void end(double StageTimes::*stage) {
    if (!on_) return;
    const auto now = Clock::now();
    times_.*stage += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }
  const StageTimes& times() const { return times_; }

 private:
  using Clock = std::chrono::steady_clock;
  bool on_ = false;
  Clock::time_point last_{};
  StageTimes times_;
};

}  // namespace quorum::cpu
