// Logits of one run in a file, and how far another run is from them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace quorum_ggml {

// Rows of f32, one after the other.
class LogitsFile {
 public:
  // One of the two is empty. Errors: std::runtime_error if a file cannot be opened.
  LogitsFile(const std::string& save, const std::string& compare) {
    if (save.empty() == compare.empty()) throw std::runtime_error("exactly one of --save and --compare must be given");
    if (!save.empty()) out_.open(save, std::ios::binary);
    if (!compare.empty()) in_.open(compare, std::ios::binary);
    if (save.empty() ? !in_ : !out_) throw std::runtime_error("cannot open " + (save.empty() ? compare : save));
  }

  // target: the token that really came next, -1 if none did.
  void add(std::span<const float> logits, int target) {
    if (out_.is_open()) {
      out_.write(reinterpret_cast<const char*>(logits.data()), std::streamsize(logits.size_bytes()));
      if (!out_) throw std::runtime_error("the logits cannot be written");
    } else {
      reference_.resize(logits.size());
      in_.read(reinterpret_cast<char*>(reference_.data()), std::streamsize(logits.size_bytes()));
      if (!in_) throw std::runtime_error("the file of logits is too short: it was made with other arguments");
      compare(logits, target);
    }
    if (target >= 0) loss_ += log_sum(logits) - double(logits[size_t(target)]);
    ++rows_;
  }

  std::string summary() const {
    char text[512];
    const double rows = double(std::max(rows_, 1));
    if (out_.is_open()) {
      std::snprintf(text, sizeof(text), "{\"positions\": %d, \"perplexity\": %.6f}", rows_, std::exp(loss_ / rows));
      return text;
    }
    std::vector<double> sorted = divergence_;
    std::sort(sorted.begin(), sorted.end());
    double sum = 0.0;
    for (const double kl : sorted) sum += kl;
    std::snprintf(
        text, sizeof(text),
        "{\"positions\": %d, \"kl_mean\": %.6g, \"kl_p99\": %.6g, \"kl_max\": %.6g, \"top1\": %.6f, \"largest_difference\": %.6g, "
        "\"perplexity\": {\"reference\": %.6f, \"this\": %.6f}}",
        rows_, sum / rows, sorted[sorted.size() * 99 / 100], sorted.back(), double(agreeing_) / rows, largest_difference_,
        std::exp(reference_loss_ / rows), std::exp(loss_ / rows));
    return text;
  }
  const std::vector<double>& divergence() const { return divergence_; }

 private:
  static double log_sum(std::span<const float> logits) {
    const float largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0.0;
    for (const float x : logits) sum += std::exp(double(x - largest));
    return double(largest) + std::log(sum);
  }

  void compare(std::span<const float> logits, int target) {
    const double own = log_sum(logits), reference = log_sum(reference_);
    double kl = 0.0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double p = double(reference_[i]) - reference, q = double(logits[i]) - own;
      kl += std::exp(p) * (p - q);
      largest_difference_ = std::max(largest_difference_, std::fabs(p - q));
    }
    divergence_.push_back(std::max(kl, 0.0));
    const auto best = [](std::span<const float> row) { return std::max_element(row.begin(), row.end()) - row.begin(); };
    agreeing_ += best(logits) == best(reference_) ? 1 : 0;
    if (target >= 0) reference_loss_ += reference - double(reference_[size_t(target)]);
  }

  std::ofstream out_;
  std::ifstream in_;
  std::vector<float> reference_;
  std::vector<double> divergence_;
  int rows_ = 0, agreeing_ = 0;
  double loss_ = 0.0, reference_loss_ = 0.0, largest_difference_ = 0.0;
};

}  // namespace quorum_ggml
