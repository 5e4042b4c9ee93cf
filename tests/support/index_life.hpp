// An index's life at random, next to a model that keeps the tokens in plain lists. Operations take any numbers, so that every part of a
// sequence of them is one too: that is what shrinking a failure needs, and what a fuzzer makes.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"
#include "tests/reference/attention_reference.hpp"
#include "tests/support/random.hpp"

namespace quorum::test {

enum class LifeAction : uint8_t { append, truncate, erase, overwrite, invalidate, poison, build, fork, save, decode, count };

struct LifeOperation {
  LifeAction action = LifeAction::append;
  int sequence = 0, a = 0, b = 0;  // any numbers; reduced to what is possible when they are carried out
};

inline std::string to_string(const LifeOperation& operation) {
  static const char* const kNames[] = {"append", "truncate", "erase", "overwrite", "invalidate",
                                       "poison", "build",    "fork",  "save",      "decode"};
  std::ostringstream out;
  out << kNames[size_t(operation.action)] << '(' << operation.sequence << ", " << operation.a << ", " << operation.b << ')';
  return out.str();
}

inline constexpr AttentionShape kLifeShape{2, 2, 16, 0.25f};

inline IndexOptions life_options(int pieces) {
  IndexOptions options;
  options.cluster_size = 4;
  options.segment_tokens = 48;
  options.iterations = 3;
  options.num_sink_tokens = 2;
  options.window_tokens = 3;
  options.recluster_every = 8;
  options.merge_tokens = 32;
  options.pieces_per_append = pieces;
  return options;
}

// One sequence: its rows, its index, and what the index should know.
struct LifeSequence {
  static constexpr int kCapacity = 160;
  ClusterIndex index;
  std::vector<float> keys = std::vector<float>(size_t(kCapacity) * 32, kNan), values = keys;  // [token][KV head][16]
  std::vector<int> written;                                                                   // live tokens, oldest first
  std::vector<bool> poisoned = std::vector<bool>(kCapacity, false);
  int num_tokens = 0;
  int num_fresh = 0;  // tokens written since tokens were last taken away

  explicit LifeSequence(int pieces) : index(kLifeShape, life_options(pieces)) {}

  KvCacheView view() const { return KvCacheView::nhd(keys.data(), values.data(), num_tokens, 2, 16); }
  void forget(int begin, int end) {
    std::erase_if(written, [&](int t) { return t >= begin && t < end; });
  }
  void write(int begin, int end, bool poison, Random& random) {
    forget(begin, end);
    for (int t = begin; t < end; ++t) {
      poisoned[size_t(t)] = poison;
      change(t, random);
      written.push_back(t);
    }
  }
  void change(int token, Random& random) {
    for (size_t i = size_t(token) * 32; i < size_t(token + 1) * 32; ++i) {
      keys[i] = float(random.gaussian()) * 2.0f;
      values[i] = float(random.gaussian());
    }
    if (poisoned[size_t(token)]) keys[size_t(token) * 32 + 5] = kNan;  // of KV head 0
  }
};

// Carries out operations on up to four sequences, forks of one another, and compares each with its model after every step.
class IndexLife {
 public:
  IndexLife(uint64_t seed, int pieces) : random_(seed) {
    for (int i = 0; i < 4; ++i) sequences_.emplace_back(pieces);
  }

  // Returns what is wrong, or nothing.
  std::optional<std::string> apply(const LifeOperation& operation) {
    LifeSequence& s = sequences_[size_t(operation.sequence) % sequences_.size()];
    const int n = s.num_tokens, begin = n == 0 ? 0 : operation.a % (n + 1), end = begin + (n == begin ? 0 : operation.b % (n - begin + 1));
    switch (operation.action) {
      case LifeAction::append: {
        const int count = std::min(1 + operation.a % 12, LifeSequence::kCapacity - n);
        s.num_tokens = n + count;
        s.num_fresh += count;
        s.write(n, s.num_tokens, false, random_);
        s.index.append(s.view(), executor_);
        break;
      }
      case LifeAction::truncate:
        s.index.truncate(begin);
        s.forget(begin, n);
        s.num_tokens = begin;
        s.num_fresh = 0;
        break;
      case LifeAction::erase:
        s.index.erase(begin, end);
        s.forget(begin, end);
        s.num_fresh = 0;
        for (int t = begin; t < end; ++t) std::fill_n(&s.keys[size_t(t) * 32], 32, kNan);
        break;
      case LifeAction::overwrite:
      case LifeAction::poison: {
        const bool poison = operation.action == LifeAction::poison;
        const int last = poison ? std::min(end, begin + 1) : end;
        s.write(begin, last, poison, random_);
        s.index.overwrite(begin, last);
        s.num_fresh = last - begin;
        break;
      }
      case LifeAction::invalidate:
        for (const int t : s.written)
          if (t >= begin && t < end) s.change(t, random_);
        s.index.invalidate(begin, end);
        break;
      case LifeAction::build:
        s.written.clear();
        s.write(0, n, false, random_);
        s.index.build(s.view(), executor_);
        s.num_fresh = n;
        break;
      case LifeAction::fork:
        sequences_[size_t(operation.a) % sequences_.size()] = LifeSequence(s);
        break;
      case LifeAction::save:
        s.index = ClusterIndex::load(kLifeShape, s.index.save());
        break;
      default:
        return decode(s, operation.a);
    }
    return difference(s);
  }

 private:
  // Every live token once in each KV head's clusters or in the list, which holds sinks, then what waits, in the order of writing.
  std::optional<std::string> difference(const LifeSequence& s) const {
    const ClusterIndexView& view = s.index.view();
    if (view.always.num_known != s.num_tokens) return "number of tokens";
    if (s.index.num_live_tokens() != int(s.written.size())) return "number of live tokens";
    std::vector<int> listed(view.always.listed, view.always.listed + view.always.num_listed);
    std::vector<int> live = s.written;
    std::sort(live.begin(), live.end());
    for (int h = 0; h < view.num_kv_heads; ++h) {
      std::vector<int> all = listed;
      bool poisoned = false;
      for (int j = 0; j < view.heads[h].num_cluster_slots(); ++j) {
        const ClusterRef cluster = cluster_at(view.heads[h], j);
        if (cluster.size() != cluster.num_tokens()) return "size of a cluster";
        for (int i = 0; i < cluster.num_tokens(); ++i) {
          all.push_back(cluster.tokens()[i]);
          poisoned = poisoned || (h == 0 && s.poisoned[size_t(all.back())]);
          if (all.back() >= view.indexed_end) return "indexed_end";
        }
      }
      if (int(all.size()) - int(listed.size()) != view.num_indexed) return "num_indexed";
      if (poisoned != view.heads[h].non_finite) return "non_finite";
      std::sort(all.begin(), all.end());
      if (all != live) return "tokens of KV head " + std::to_string(h);
    }
    for (int t = 0; t < s.num_tokens; ++t) {
      const bool lives = view.live == nullptr || (view.live[t / 64] >> (t % 64) & 1) != 0;
      if (lives != std::binary_search(live.begin(), live.end(), t)) return "live bit of token " + std::to_string(t);
    }
    return newest(s, listed);
  }
  // The newest tokens end the list, in the order of writing: window_tokens of them, or as many as were written since tokens were last
  // taken away.
  static std::optional<std::string> newest(const LifeSequence& s, const std::vector<int>& listed) {
    const size_t window = std::min({size_t(s.index.options().window_tokens), s.written.size(), size_t(s.num_fresh)});
    if (listed.size() < window ||
        !std::equal(listed.end() - std::ptrdiff_t(window), listed.end(), s.written.end() - std::ptrdiff_t(window)))
      return "window";
    return {};
  }

  // Reading everything, by clusters or by codes, and densely, is attention over the live tokens.
  std::optional<std::string> decode(const LifeSequence& s, int number) {
    std::vector<float> query(32), output(32, kNan), lse(2, kNan);
    for (float& x : query) x = float(random_.gaussian());
    DecodeOptions options;
    options.dense_below = 0;
    options.num_samples = 8;
    options.candidate_coverage = 1.0f;
    options.unit = number % 2 == 0 ? ReadUnit::clusters : ReadUnit::automatic;
    if (number % 3 == 0)
      options.target_ratio = 1.0f;
    else
      options.fixed_budget = LifeSequence::kCapacity;
    Decoder decoder(kLifeShape, options, {1, LifeSequence::kCapacity, 1024, 1});
    const SequenceView sequence{s.view(), &s.index.view()};
    std::vector<HeadReport> reports(2);
    const auto status =
        decoder.decode(QueryView::contiguous(query.data(), 1, 2, 16), {&sequence, 1}, {output.data(), lse.data()}, reports, executor_);
    if (status != DecodeStatus::ok) return status_message(status);
    for (int h = 0; h < 2; ++h) {
      const bool poisoned = h == 0 && std::any_of(s.written.begin(), s.written.end(), [&](int t) { return s.poisoned[size_t(t)]; });
      if (const auto wrong = compare(s, h, &query[size_t(h) * 16], &output[size_t(h) * 16], lse[size_t(h)]); wrong && !poisoned)
        return wrong;
    }
    return {};
  }
  static std::optional<std::string> compare(const LifeSequence& s, int head, const float* query, const float* output, float lse) {
    reference::Matrix keys(s.num_tokens, 16), values = keys;
    for (int t = 0; t < s.num_tokens; ++t)
      for (int c = 0; c < 16; ++c) {
        keys.row(t)[c] = double(s.keys[size_t(t * 32 + head * 16 + c)]);
        values.row(t)[c] = double(s.values[size_t(t * 32 + head * 16 + c)]);
      }
    const std::vector<double> q(query, query + 16);
    const auto want = reference::attention(q.data(), keys, values, 0.25, s.written);
    if (s.written.empty() ? lse != -kInfinity : !(std::fabs(double(lse) - want.lse) <= 1e-3)) return "lse of head " + std::to_string(head);
    for (int c = 0; c < 16; ++c)
      if (!(std::fabs(double(output[c]) - want.output[size_t(c)]) <= 2e-3)) return "output of head " + std::to_string(head);
    return {};
  }

  Random random_;
  SerialExecutor executor_;
  std::vector<LifeSequence> sequences_;
};

// What goes wrong first, if anything does.
struct LifeFailure {
  size_t step = 0;
  std::string what;
};
inline std::optional<LifeFailure> live(const std::vector<LifeOperation>& operations, uint64_t seed, int pieces) {
  IndexLife life(seed, pieces);
  for (size_t i = 0; i < operations.size(); ++i) {
    try {
      if (const auto wrong = life.apply(operations[i])) return LifeFailure{i, *wrong};
    } catch (const std::exception& error) {
      return LifeFailure{i, error.what()};
    }
  }
  return {};
}

inline std::vector<LifeOperation> random_operations(int count, Random& random) {
  // Appending is what happens most; a sequence that is seldom built and cut holds more.
  static constexpr LifeAction kOften[] = {LifeAction::append,     LifeAction::append, LifeAction::append,    LifeAction::append,
                                          LifeAction::append,     LifeAction::erase,  LifeAction::overwrite, LifeAction::overwrite,
                                          LifeAction::invalidate, LifeAction::decode, LifeAction::decode,    LifeAction::save};
  std::vector<LifeOperation> operations;
  for (int i = 0; i < count; ++i) {
    LifeOperation operation;
    operation.action = random.below(4) == 0 ? LifeAction(random.below(int(LifeAction::count))) : kOften[random.below(12)];
    operation.sequence = random.below(4);
    operation.a = random.below(1000);
    operation.b = random.below(2) == 0 ? random.below(4) : random.below(1000);  // short ranges and long ones
    operations.push_back(operation);
  }
  return operations;
}

// Leaves out what a failure does not need, larger parts first. fails(operations): whether they still fail.
template <class Fails>
std::vector<LifeOperation> shrink(std::vector<LifeOperation> operations, Fails&& fails) {
  for (size_t part = operations.size() / 2; part > 0; part /= 2)
    for (size_t at = 0; at + part <= operations.size();) {
      std::vector<LifeOperation> less = operations;
      less.erase(less.begin() + std::ptrdiff_t(at), less.begin() + std::ptrdiff_t(at + part));
      if (fails(less))
        operations = less;
      else
        at += part;
    }
  return operations;
}

}  // namespace quorum::test
