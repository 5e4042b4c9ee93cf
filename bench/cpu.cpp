// Time of a decode step, dense and sparse, and of building an index, against the memory bandwidth measured in the same run.
//
//   bash bench/run.sh cpu [--benchmark_filter=gemma]
// Whole clusters of about 16 tokens, but for the benchmarks in /codes/: single tokens by residual codes, as the defaults have it.
// A benchmark's time is the median over steps, each on cold caches: nothing is left of data, scratch memory and code. In /codes/turns/
// steps go round many copies of cache and index instead: data is cold, the decoder warm, as between the layers of a small model. Threads 1
// and 2, or what QUORUM_BENCH_THREADS says.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <random>

#include "bench/support/cold_caches.hpp"
#include "bench/support/measure.hpp"
#include "bench/support/workload.hpp"

namespace {

using namespace quorum;
using bench::median;
using bench::seconds_of;
using bench::Workload;

constexpr float kTargets[] = {0.5f, 0.7f, 0.8f, 0.9f, 0.95f};
constexpr int kBudgetPercents[] = {1, 2, 5, 10};  // of the tokens; generated caches say nothing of what a target costs
constexpr float kTargetErrors[] = {0.03f, 0.05f, 0.08f};
constexpr int kSteps = 32;

// 512 MB on huge pages for the measurements of bandwidth.
constexpr size_t kBandwidthBytes = size_t(512) << 20;
bench::HugeBlock& bandwidth_block() {
  static bench::HugeBlock block(kBandwidthBytes);
  return block;
}

// Bytes a second that all workers together read from memory in order: the yardstick of everything else.
double read_bandwidth(Executor& executor) {
  constexpr size_t kBytes = kBandwidthBytes;
  struct Context {
    const float* data;
    std::atomic<int> sink{0};
  } context{bandwidth_block().as<float>(), {}};
  std::vector<double> seconds;
  for (int repeat = 0; repeat < 9; ++repeat)
    seconds.push_back(seconds_of([&] {
      executor.run(
          [](void* raw, int worker, int num_workers) {
            auto& shared = *static_cast<Context*>(raw);
            const size_t part = kBytes / sizeof(float) / size_t(num_workers) / 64 * 64;
            const float* p = shared.data + part * size_t(worker);
            simd::Vector sums[4] = {simd::Vector(0.0f), simd::Vector(0.0f), simd::Vector(0.0f), simd::Vector(0.0f)};
            for (size_t i = 0; i + 64 <= part; i += 64) {
              for (size_t line = 0; line < 4; ++line) simd::prefetch(p + i + 1024 + 16 * line);
              for (size_t j = 0; j < 64; j += size_t(simd::kVectorSize)) {
                auto& sum = sums[j / size_t(simd::kVectorSize) % 4];
                sum = simd::maximum(simd::load(p + i + j), sum);
              }
            }
            shared.sink.fetch_add(int(simd::reduce_add(sums[0] + sums[1] + sums[2] + sums[3])));
          },
          &context);
    }));
  return double(kBytes) / median(seconds);
}

// The same for rows of `row_bytes` at random, which is what attention over chosen tokens does: asked for 32 rows ahead, then read.
double row_bandwidth(Executor& executor, int row_bytes) {
  constexpr int kRows = 8192, kAhead = 32;
  struct Context {
    const std::byte* data;
    std::vector<int64_t> offsets;
    int row_bytes;
    std::atomic<int> sink{0};
  } context{bandwidth_block().as<std::byte>(), {}, row_bytes, {}};
  bench::ColdCaches cold;
  std::mt19937_64 random(7);
  std::vector<double> seconds;
  for (int repeat = 0; repeat < 9; ++repeat) {
    context.offsets.clear();
    for (int i = 0; i < kRows + kAhead; ++i)
      context.offsets.push_back(int64_t(random() % (kBandwidthBytes / size_t(row_bytes))) * row_bytes);
    cold.clean(executor);
    seconds.push_back(seconds_of([&] {
      executor.run(
          [](void* raw, int worker, int num_workers) {
            auto& shared = *static_cast<Context*>(raw);
            simd::Vector sum(0.0f);
            for (int i = kRows / num_workers * worker, end = i + kRows / num_workers; i < end; ++i) {
              for (int byte = 0; byte < shared.row_bytes; byte += 64)
                simd::prefetch(shared.data + shared.offsets[size_t(i + kAhead)] + byte);
              const float* row = reinterpret_cast<const float*>(shared.data + shared.offsets[size_t(i)]);
              for (int c = 0; c < shared.row_bytes / 4; c += simd::kVectorSize) sum = simd::maximum(simd::load(row + c), sum);
            }
            shared.sink.fetch_add(int(simd::reduce_add(sum)));
          },
          &context);
    }));
  }
  return double(kRows) * row_bytes / median(seconds);
}

// Copies of a workload's cache that steps take in turn, so that each is out of the caches again when it is read next.
int copies_for_turns(const Workload& workload) {
  const int64_t bytes = int64_t(workload.kv.num_tokens) * workload.shape.num_kv_heads * workload.shape.head_dim * 4;
  return int(std::clamp<int64_t>((int64_t(1400) << 20) / bytes, 3, 200));
}

// Everything that benchmarks of one workload and thread count share; one at a time is kept.
class Session {
 public:
  Session(std::shared_ptr<Workload> workload, int threads, int batch, bool turns)
      : workload_(std::move(workload)),
        batch_(batch),
        turns_(turns ? copies_for_turns(*workload_) : 1),
        executor_(threads),
        bandwidth_(read_bandwidth(executor_)),
        output_(make_output()),
        truth_(make_output()) {
    // Each sequence of a batch has memory and an index of its own; the content is the same.
    caches_.assign(size_t(batch * turns_), workload_->kv);
    for (int i = 1; i < batch * turns_; ++i) caches_[size_t(i)] = bench::copy_cache(workload_->kv, workload_->shape, copies_);
  }

  double bandwidth() const { return bandwidth_; }
  const Workload& workload() const { return *workload_; }
  Executor& executor() { return executor_; }
  int batch() const { return batch_; }
  bool turns() const { return turns_ > 1; }
  int num_steps() const { return int(workload_->visible_tokens.size()) - batch_ + 1; }  // a step takes the next `batch` queries
  int64_t kv_bytes(int query) const {
    return int64_t(workload_->visible_tokens[size_t(query)]) * workload_->shape.num_kv_heads * workload_->shape.head_dim * 4 * batch_;
  }
  // One kind of index at a time: with residual codes, or for whole clusters.
  const ClusterIndex& index(bool codes, int sequence = 0) {
    if (indexes_.empty() || codes_ != codes) build(codes);
    return indexes_[size_t(sequence)];
  }
  // Returns the time of one sequence's index.
  double build(bool codes) {
    IndexOptions options;
    options.residual_codes = codes_ = codes;
    if (!codes) options.cluster_size = 16;
    const QueryView* queries = workload_->prompt_queries ? &*workload_->prompt_queries : nullptr;
    indexes_.assign(size_t(batch_), ClusterIndex(workload_->shape, options));
    indexes_.reserve(size_t(batch_ * turns_));
    std::vector<double> seconds;
    for (int i = 0; i < batch_; ++i)
      seconds.push_back(
          seconds_of([&] { indexes_[size_t(i)].build(caches_[size_t(i)].first(workload_->indexed_tokens), queries, executor_); }));
    const std::vector<std::byte> first = turns() ? indexes_[0].save() : std::vector<std::byte>();
    while (indexes_.size() < caches_.size()) indexes_.push_back(ClusterIndex::load(workload_->shape, first));
    return median(seconds);
  }

  // Time of one dense step on cold caches.
  double dense_step(int query) {
    std::vector<KvCacheView> kv;
    const int first = next_turn(turns_ / 2);
    for (int i = 0; i < batch_; ++i) kv.push_back(caches_[size_t(first + i)].first(workload_->visible_tokens[size_t(query)]));
    return seconds_of([&] { dense_attention(workload_->shape, workload_->query(query, batch_), kv, {truth_.data(), nullptr}, executor_); });
  }
  // Time of one sparse step on cold caches.
  double sparse_step(Decoder& decoder, int query, std::vector<HeadReport>& reports) {
    std::vector<SequenceView> sequences;
    const int first = next_turn(0);
    for (int i = 0; i < batch_; ++i)
      sequences.push_back({caches_[size_t(first + i)].first(workload_->visible_tokens[size_t(query)]), &index(codes_, first + i).view()});
    DecodeStatus status = DecodeStatus::ok;
    const double seconds = seconds_of([&] {
      status = decoder.decode(workload_->query(query, batch_), sequences, {output_.data(), nullptr}, reports, executor_);
    });
    if (status != DecodeStatus::ok) throw std::runtime_error(status_message(status));
    return seconds;
  }
  // Mean over heads of |sparse - dense| / |dense| of the last two steps.
  double error() const {
    return bench::mean_error(batch_ * workload_->shape.num_qo_heads, workload_->shape.head_dim, output_.data(), truth_.data());
  }

 private:
  // Makes the caches cold and returns the first sequence of the next turn. ahead: how many turns after this one's.
  int next_turn(int ahead) {
    if (turns_ == 1) cold_.clean(executor_);
    turn_ = (turn_ + 1) % turns_;
    return (turn_ + ahead) % turns_ * batch_;
  }
  std::vector<float> make_output() const {
    return std::vector<float>(size_t(batch_) * size_t(workload_->shape.num_qo_heads * workload_->shape.head_dim));
  }

  std::shared_ptr<Workload> workload_;
  int batch_;
  int turns_;
  int turn_ = 0;
  ThreadExecutor executor_;
  bench::ColdCaches cold_;
  double bandwidth_;
  std::vector<KvCacheView> caches_;  // [turns][batch]
  std::vector<std::shared_ptr<void>> copies_;
  std::vector<ClusterIndex> indexes_;  // [turns][batch], empty before build()
  bool codes_ = false;                 // of the indexes
  std::vector<float> output_, truth_;
};

// The workloads by name, made when first asked for; only the last one is kept.
class Sessions {
 public:
  using Maker = std::function<Workload()>;
  void add(const std::string& name, Maker maker) { makers_[name] = std::move(maker); }
  Session& get(const std::string& name, int threads, int batch = 1, bool turns = false) {
    if (!workload_ || workload_->name != name) {
      session_.reset();
      workload_.reset();
      std::fprintf(stderr, "preparing %s ...\n", name.c_str());
      workload_ = std::make_shared<Workload>(makers_.at(name)());
      true_share_ = bench::true_share(*workload_, 0.9);
      std::fprintf(stderr, "  90 %% of the weight is in %.2f %% of the tokens\n", 100.0 * true_share_);
    }
    if (!session_ || threads_ != threads || session_->batch() != batch || session_->turns() != turns) {
      session_.reset();
      session_ = std::make_unique<Session>(workload_, threads, batch, turns);
      threads_ = threads;
    }
    return *session_;
  }
  // Share of the tokens that hold 90 % of the weight of the workload at hand.
  double true_share() const { return true_share_; }

 private:
  std::map<std::string, Maker> makers_;
  std::shared_ptr<Workload> workload_;
  double true_share_ = 0.0;
  std::unique_ptr<Session> session_;
  int threads_ = 0;
};

Sessions sessions;

void report_bytes(benchmark::State& state, const Session& session, double bytes, double seconds) {
  state.counters["bytes"] = bytes;
  state.counters["GB_per_s"] = bytes / seconds / 1e9;
  state.counters["share_of_bandwidth"] = bytes / seconds / session.bandwidth();
}

// What to decode with, and how the benchmark is called.
struct Setting {
  std::string workload;
  int threads = 1;
  int batch = 1;
  float target = 0.9f;
  int budget_percent = 0;           // of the tokens, instead of the target
  int budget_part = 0;              // one in so many tokens, instead of either
  int dense_below = -1;             // the default if negative
  bool codes = false;               // single tokens by residual codes, else whole clusters
  float target_error = 0.0f;        // if positive, instead of the target
  float candidate_coverage = 0.0f;  // as in DecodeOptions
  bool turns = false;               // data alone is cold

  std::string label() const {
    char text[32];
    if (target_error > 0.0f)
      std::snprintf(text, sizeof(text), "error_%.2f", double(target_error));
    else if (budget_part > 0)
      std::snprintf(text, sizeof(text), "budget_1_in_%d", budget_part);
    else if (budget_percent > 0)
      std::snprintf(text, sizeof(text), "budget_%d_percent", budget_percent);
    else
      std::snprintf(text, sizeof(text), "%.2f", double(target));
    return text;
  }
  // Of the benchmark's name, before the label.
  std::string prefix() const { return codes ? turns ? "codes/turns/" : "codes/" : ""; }
  Session& session() const { return sessions.get(workload, threads, batch, turns); }
  std::string suffix() const { return batch > 1 ? "/batch:" + std::to_string(batch) : ""; }
  Decoder decoder(Session& session) const {
    const Workload& input = session.workload();
    DecodeOptions options;
    options.target_ratio = target;
    options.target_error = target_error;
    options.unit = codes ? ReadUnit::tokens : ReadUnit::clusters;
    options.candidate_coverage = candidate_coverage;
    options.fixed_budget = int(int64_t(input.kv.num_tokens) * budget_percent / 100);
    if (budget_part > 0) options.fixed_budget = input.kv.num_tokens / budget_part;
    if (dense_below >= 0) options.dense_below = dense_below;
    return Decoder(input.shape, options, {batch, input.kv.num_tokens, session.index(codes).num_cluster_slots(), threads});
  }
};

// Medians of sparse and dense steps in turn, so that the ratio holds when the machine's speed drifts; means of the rest.
struct Measured {
  double sparse = 0.0, dense = 0.0;  // seconds
  double bytes = 0.0, tokens = 0.0, coded = 0.0, error = 0.0, dense_bytes = 0.0;
};

Measured measure(const Setting& setting) {
  Session& session = setting.session();
  const Workload& input = session.workload();
  Decoder decoder = setting.decoder(session);
  std::vector<HeadReport> reports(size_t(setting.batch * input.shape.num_qo_heads));
  std::vector<double> sparse, dense;
  Measured out;
  for (int step = 0; step < kSteps; ++step) {
    const int query = step % session.num_steps();
    dense.push_back(session.dense_step(query));
    sparse.push_back(session.sparse_step(decoder, query, reports));
    out.error += session.error() / kSteps;
    const int groups = setting.batch * input.shape.num_kv_heads;
    for (int group = 0; group < groups; ++group) {
      const HeadReport& report = reports[size_t(group * input.shape.group_size())];
      out.bytes += double(report.bytes_read) / kSteps;
      out.tokens += double(report.tokens_read) / kSteps / groups;
      out.coded += double(report.tokens_coded) / kSteps / groups;
    }
  }
  out.sparse = median(sparse);
  out.dense = median(dense);
  out.dense_bytes = double(session.kv_bytes(0));
  return out;
}

void report_sparse(benchmark::State& state, const Measured& measured, double bandwidth) {
  state.SetIterationTime(measured.sparse);
  state.counters["bytes"] = measured.bytes;
  state.counters["GB_per_s"] = measured.bytes / measured.sparse / 1e9;
  state.counters["share_of_bandwidth"] = measured.bytes / measured.sparse / bandwidth;
  state.counters["bytes_share"] = measured.bytes / measured.dense_bytes;
  state.counters["tokens"] = measured.tokens;
  state.counters["tokens_coded"] = measured.coded;
  state.counters["error"] = measured.error;
  state.counters["dense_ms"] = measured.dense * 1e3;
  state.counters["dense_share_of_bandwidth"] = measured.dense_bytes / measured.dense / bandwidth;
  state.counters["speedup"] = measured.dense / measured.sparse;
}

void run_dense(benchmark::State& state, const Setting& setting) {
  Session& session = setting.session();
  for (auto _ : state) {
    std::vector<double> seconds;
    for (int step = 0; step < kSteps; ++step) seconds.push_back(session.dense_step(step % session.num_steps()));
    state.SetIterationTime(median(seconds));
    report_bytes(state, session, double(session.kv_bytes(0)), median(seconds));
  }
}

void run_sparse(benchmark::State& state, const Setting& setting) {
  for (auto _ : state) {
    const Measured measured = measure(setting);
    report_sparse(state, measured, setting.session().bandwidth());
    state.counters["tokens_for_90_percent"] = sessions.true_share();
  }
}

// Layers one after the other, as a model decodes them: times and bytes add up, errors are averaged.
void run_layers(benchmark::State& state, std::vector<Setting> layers) {
  for (auto _ : state) {
    Measured sum;
    double gains = 0.0, bandwidth = 0.0;
    for (const Setting& layer : layers) {
      const Measured one = measure(layer);
      sum.sparse += one.sparse;
      sum.dense += one.dense;
      sum.bytes += one.bytes;
      sum.dense_bytes += one.dense_bytes;
      sum.tokens += one.tokens / double(layers.size());
      sum.coded += one.coded / double(layers.size());
      sum.error += one.error / double(layers.size());
      gains += one.dense / one.sparse / double(layers.size());
      bandwidth += layer.session().bandwidth() / double(layers.size());
    }
    report_sparse(state, sum, bandwidth);
    state.counters["mean_speedup"] = gains;
  }
}

// The time a step spends in one stage: mean over steps and workers, from the decoder's own clock.
void run_stage(benchmark::State& state, const Setting& setting, double StageTimes::*stage) {
  static std::map<std::string, StageTimes> known;  // a run gives all six
  const std::string key = setting.workload + setting.prefix() + setting.label() + setting.suffix() + std::to_string(setting.threads);
  if (known.count(key) == 0) {
    Session& session = setting.session();
    Decoder decoder = setting.decoder(session);
    std::vector<HeadReport> reports(size_t(setting.batch * session.workload().shape.num_qo_heads));
    decoder.record_stage_times(true);
    for (int step = 0; step < kSteps; ++step) session.sparse_step(decoder, step % session.num_steps(), reports);
    known[key] = decoder.stage_times();
  }
  for (auto _ : state) {
    state.SetIterationTime(known[key].*stage / kSteps / setting.threads);
    state.counters["share_of_step"] = known[key].*stage / known[key].total();
  }
}

// What a call costs besides its work: one token in the cache.
void run_one_token(benchmark::State& state, int threads) {
  const AttentionShape shape{32, 8, 128, 0.0f};
  const std::vector<float> row(size_t(32 * 128), 0.5f);
  const KvCacheView kv = KvCacheView::nhd(row.data(), row.data(), 1, 8, 128);
  ThreadExecutor executor(threads);
  Decoder decoder(shape, {}, {1, 32768, 0, threads});
  std::vector<float> output(row.size());
  const SequenceView sequence{kv, nullptr};
  bench::ColdCaches cold;
  for (auto _ : state) {
    std::vector<double> seconds;
    for (int step = 0; step < 4 * kSteps; ++step) {
      cold.clean(executor);
      seconds.push_back(seconds_of([&] {
        if (decoder.decode(QueryView::contiguous(row.data(), 1, 32, 128), {&sequence, 1}, {output.data(), nullptr}, {}, executor) !=
            DecodeStatus::ok)
          std::abort();
      }));
    }
    state.SetIterationTime(median(seconds));
  }
}

void run_build(benchmark::State& state, const std::string& workload, int threads) {
  Session& session = sessions.get(workload, threads);
  for (auto _ : state) state.SetIterationTime(session.build(false));
  state.counters["index_bytes"] = double(session.index(false).bytes());
  state.counters["index_share"] = double(session.index(false).bytes()) / double(session.kv_bytes(0));
}

void run_bandwidth(benchmark::State& state, int threads) {
  ThreadExecutor executor(threads);
  for (auto _ : state) {
    const double bandwidth = read_bandwidth(executor);
    state.SetIterationTime(double(size_t(512) << 20) / bandwidth);
    state.counters["GB_per_s"] = bandwidth / 1e9;
  }
}

void run_row_bandwidth(benchmark::State& state, int threads, int row_bytes) {
  ThreadExecutor executor(threads);
  for (auto _ : state) {
    const double bandwidth = row_bandwidth(executor, row_bytes);
    state.SetIterationTime(1e6 * row_bytes / bandwidth);  // of a million rows
    state.counters["GB_per_s"] = bandwidth / 1e9;
    state.counters["share_of_bandwidth"] = bandwidth / read_bandwidth(executor);
  }
}

void add_benchmark(const std::string& name, int threads, std::function<void(benchmark::State&)> run) {
  benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(), std::move(run))
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

// chosen: the setting when the benchmark runs, if it needs a look at the workload first.
void add_stages(const Setting& setting, std::function<Setting()> chosen = {}) {
  const std::pair<const char*, double StageTimes::*> stages[] = {{"score", &StageTimes::score},   {"select", &StageTimes::select},
                                                                 {"scan", &StageTimes::scan},     {"attend", &StageTimes::attend},
                                                                 {"sample", &StageTimes::sample}, {"tail", &StageTimes::tail}};
  for (const auto& [name, stage] : stages)
    if (setting.codes || stage != &StageTimes::scan)
      add_benchmark(std::string(name) + "/" + setting.workload + "/" + setting.prefix() + setting.label() + setting.suffix(),
                    setting.threads,
                    [setting, chosen, stage = stage](benchmark::State& state) { run_stage(state, chosen ? chosen() : setting, stage); });
}

void add_sparse(const Setting& setting) {
  add_benchmark("sparse/" + setting.workload + "/" + setting.prefix() + setting.label() + setting.suffix(), setting.threads,
                [setting](benchmark::State& state) { run_sparse(state, setting); });
}

// Coverage that makes about a tenth of the tokens candidates for the budget, by bisection; said on stderr.
float tenth_coverage(Setting setting) {
  Session& session = setting.session();
  const Workload& input = session.workload();
  std::vector<HeadReport> reports(size_t(setting.batch * input.shape.num_qo_heads));
  const auto coded_share = [&](float coverage) {
    setting.candidate_coverage = coverage;
    Decoder decoder = setting.decoder(session);
    session.sparse_step(decoder, 0, reports);
    double coded = 0.0;
    for (const HeadReport& report : reports) coded += double(report.tokens_coded) / double(reports.size());
    return coded / input.kv.num_tokens;
  };
  float low = 0.5f, high = 1.0f;
  for (int i = 0; i < 12; ++i) {
    const float middle = 0.5f * (low + high);
    (coded_share(middle) < 0.1 ? low : high) = middle;
  }
  std::fprintf(stderr, "  %s: coverage %.4f codes %.2f %% of the tokens\n", setting.workload.c_str(), double(low),
               100.0 * coded_share(low));
  return low;
}

// Residual codes: traces at target errors, generated caches at one budget.
void add_codes(Setting setting, bool generated) {
  setting.codes = true;
  if (generated) {
    setting.budget_percent = 1;
    for (const bool turns : {false, true}) {
      setting.turns = turns;
      const auto chosen = [setting] {
        static std::map<std::string, float> known;
        if (known.count(setting.workload) == 0) known[setting.workload] = tenth_coverage(setting);
        Setting with = setting;
        with.candidate_coverage = known[setting.workload];
        return with;
      };
      add_benchmark("sparse/" + setting.workload + "/" + setting.prefix() + setting.label(), setting.threads,
                    [chosen](benchmark::State& state) {
                      const Setting with = chosen();
                      run_sparse(state, with);
                      state.counters["candidate_coverage"] = double(with.candidate_coverage);
                    });
      add_stages(setting, chosen);
    }
    return;
  }
  for (const bool turns : {false, true}) {
    setting.turns = turns;
    for (const float error : kTargetErrors) {
      setting.target_error = error;
      add_sparse(setting);
      if (error == 0.05f) add_stages(setting);
    }
    Setting budget = setting;
    budget.target_error = 0.0f;
    budget.budget_part = 128;
    budget.candidate_coverage = 0.9f;
    add_sparse(budget);
    add_stages(budget);
  }
}

// Traces are decoded at targets; generated caches with budgets, and at one target that shows what they are like.
void add_workload(const std::string& name, const std::vector<int>& thread_counts, bool generated, Sessions::Maker maker) {
  sessions.add(name, std::move(maker));
  for (const int batch : generated ? std::vector<int>{1, 4} : std::vector<int>{1}) {
    for (const int threads : thread_counts) {
      Setting setting{name, threads, batch};
      if (batch == 1) add_benchmark("build/" + name, threads, [=](benchmark::State& state) { run_build(state, name, threads); });
      add_benchmark("dense/" + name + setting.suffix(), threads, [=](benchmark::State& state) { run_dense(state, setting); });
      for (const float target : kTargets) {
        setting.target = target;
        if (!generated || (target == 0.9f && batch == 1)) add_sparse(setting);
      }
      setting.target = 0.7f;
      setting.budget_percent = generated ? 5 : 0;
      add_stages(setting);
      for (const int percent : kBudgetPercents) {
        setting.budget_percent = percent;
        if (generated && (percent == 5 || batch == 1)) add_sparse(setting);
      }
      const bool long_cache = name.starts_with("llama8b_32k") || name.starts_with("llama8b_128k");
      if (!generated || (long_cache && batch == 1)) add_codes({name, threads}, generated);
    }
  }
}

// One KV head of a growing cache, dense and sparse. Short ones find where sparse attention begins to pay (DecodeOptions::dense_below).
void add_growth(const std::vector<int>& thread_counts) {
  for (int tokens = 512; tokens <= (1 << 20); tokens *= 2) {
    const std::string name = std::to_string(tokens);
    sessions.add("growth/" + name, [=] { return bench::clustered_workload("growth/" + name, {tokens, 1, 4, 128, true, 16, 1}); });
    for (const int threads : thread_counts) {
      Setting setting{"growth/" + name, threads};
      setting.dense_below = 0;
      const std::string prefix = tokens < 8192 ? "crossover/" : "growth/";
      add_benchmark(prefix + name + "/dense", threads, [=](benchmark::State& state) { run_dense(state, setting); });
      if (tokens >= 8192) setting.budget_percent = 5;
      add_benchmark(prefix + name + "/" + setting.label(), threads, [=](benchmark::State& state) { run_sparse(state, setting); });
    }
  }
}

std::vector<int> thread_counts() {
  if (const char* wanted = std::getenv("QUORUM_BENCH_THREADS")) return {std::max(1, std::atoi(wanted))};
  return {1, 2};
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const std::vector<int> threads = thread_counts();
  for (const int count : threads) add_benchmark("read_bandwidth", count, [=](benchmark::State& state) { run_bandwidth(state, count); });
  for (const int row_bytes : {128, 256, 512})
    for (const int count : threads)
      add_benchmark("read_rows/" + std::to_string(row_bytes), count,
                    [=](benchmark::State& state) { run_row_bandwidth(state, count, row_bytes); });
  const std::string root = QUORUM_ROOT;
  add_workload("smollm2_8k", threads, false,
               [=] { return bench::trace_workload("smollm2_8k", root + "/examples/data/smollm2_135m_kjv_8k_layer12.safetensors"); });
  const char* shared = std::getenv("QUORUM_SHARED");
  const std::string traces = shared != nullptr ? shared : root + "/../shared/traces";
  int layers = 0;
  for (const char* layer : {"05", "11", "17"}) {
    const std::string path = traces + "/gemma3_270m_kjv_32k_layer" + layer + ".safetensors", name = std::string("gemma3_32k_layer") + layer;
    if (std::filesystem::exists(path))
      add_workload(name, threads, false, [=] { return bench::trace_workload(name, path); }), ++layers;
    else
      std::fprintf(stderr, "skipped: %s needs %s\n", name.c_str(), path.c_str());
  }
  for (const int count : threads) {
    std::vector<Setting> together;
    for (const float target : kTargets) together.push_back({"", count, 1, target});
    for (const float error : kTargetErrors) {
      together.push_back({"", count});
      together.back().codes = true;
      together.back().target_error = error;
    }
    for (const Setting& one : together)
      if (layers == 3)
        add_benchmark("sparse/gemma3_32k/" + one.prefix() + one.label(), count, [=](benchmark::State& state) {
          std::vector<Setting> all(3, one);
          for (int i = 0; i < 3; ++i) all[size_t(i)].workload = std::string("gemma3_32k_layer") + std::array{"05", "11", "17"}[size_t(i)];
          run_layers(state, all);
        });
  }
  for (const int count : threads) add_benchmark("one_token", count, [=](benchmark::State& state) { run_one_token(state, count); });
  add_growth(threads);
  for (const auto& [size, tokens] : {std::pair{"8k", 8192}, {"32k", 32768}, {"128k", 131072}}) {
    for (const bool head_major : {true, false}) {
      const std::string name = std::string("llama8b_") + size + (head_major ? "_hnd" : "_nhd");
      add_workload(name, threads, true, [=, tokens = tokens] {
        return bench::clustered_workload(name, {tokens, 8, 4, 128, head_major, 16, 1});
      });
    }
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
