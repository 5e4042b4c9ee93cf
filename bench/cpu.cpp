// Time of a decode step, dense and sparse, and of building an index, against the memory bandwidth measured in the same run.
//
//   bash bench/run.sh cpu [--benchmark_filter=gemma]
// A benchmark's time is the median over steps, each on cold caches. Threads 1 and 2, or what QUORUM_BENCH_THREADS says.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <regex>

#include "bench/support/cold_caches.hpp"
#include "bench/support/workload.hpp"

namespace {

using namespace quorum;
using bench::Workload;

constexpr float kTargets[] = {0.5f, 0.7f, 0.8f, 0.9f, 0.95f};
constexpr int kBudgetPercents[] = {1, 2, 5, 10};  // of the tokens; generated caches say nothing of what a target costs
constexpr int kSteps = 48;

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Bytes a second that all workers together read from memory in order: the yardstick of everything else.
double read_bandwidth(Executor& executor) {
  constexpr size_t kBytes = size_t(512) << 20;
  static bench::HugeBlock block(kBytes);
  struct Context {
    const float* data;
    std::atomic<int> sink{0};
  } context{block.as<float>(), {}};
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

// Everything that benchmarks of one workload and thread count share; one at a time is kept.
class Session {
 public:
  Session(std::shared_ptr<Workload> workload, int threads)
      : workload_(std::move(workload)),
        executor_(threads),
        bandwidth_(read_bandwidth(executor_)),
        output_(make_output()),
        truth_(make_output()) {}

  double bandwidth() const { return bandwidth_; }
  const Workload& workload() const { return *workload_; }
  Executor& executor() { return executor_; }
  int64_t kv_bytes(int query) const {
    return int64_t(workload_->visible_tokens[size_t(query)]) * workload_->shape.num_kv_heads * workload_->shape.head_dim * 4;
  }
  const ClusterIndex& index() {
    if (!index_) build();
    return *index_;
  }
  double build() {
    index_.emplace(workload_->shape, IndexOptions{});
    const QueryView* queries = workload_->prompt_queries ? &*workload_->prompt_queries : nullptr;
    return seconds_of([&] { index_->build(workload_->kv.first(workload_->indexed_tokens), queries, executor_); });
  }

  // Time of one dense step on cold caches.
  double dense_step(int query) {
    const KvCacheView kv = workload_->visible(query);
    cold_.clean(executor_);
    return seconds_of([&] { dense_attention(workload_->shape, workload_->query(query), {&kv, 1}, {truth_.data(), nullptr}, executor_); });
  }
  // Time of one sparse step on cold caches.
  double sparse_step(Decoder& decoder, int query, std::vector<HeadReport>& reports) {
    const SequenceView sequence{workload_->visible(query), &index().view()};
    cold_.clean(executor_);
    DecodeStatus status = DecodeStatus::ok;
    const double seconds = seconds_of([&] {
      status = decoder.decode(workload_->query(query), {&sequence, 1}, {output_.data(), nullptr}, reports, executor_);
    });
    if (status != DecodeStatus::ok) throw std::runtime_error(status_message(status));
    return seconds;
  }
  // Mean over heads of |sparse - dense| / |dense| of the last two steps.
  double error() const {
    const int heads = workload_->shape.num_qo_heads, d = workload_->shape.head_dim;
    double sum = 0.0;
    for (int head = 0; head < heads; ++head) {
      double difference = 0.0, norm = 0.0;
      for (int c = head * d; c < (head + 1) * d; ++c) {
        difference += std::pow(double(output_[size_t(c)]) - double(truth_[size_t(c)]), 2);
        norm += std::pow(double(truth_[size_t(c)]), 2);
      }
      sum += std::sqrt(difference / norm);
    }
    return sum / heads;
  }

 private:
  std::vector<float> make_output() const { return std::vector<float>(size_t(workload_->shape.num_qo_heads * workload_->shape.head_dim)); }

  std::shared_ptr<Workload> workload_;
  ThreadExecutor executor_;
  bench::ColdCaches cold_;
  double bandwidth_;
  std::optional<ClusterIndex> index_;
  std::vector<float> output_, truth_;
};

// The workloads by name, made when first asked for; only the last one is kept.
class Sessions {
 public:
  using Maker = std::function<Workload()>;
  void add(const std::string& name, Maker maker) { makers_[name] = std::move(maker); }
  Session& get(const std::string& name, int threads) {
    if (!workload_ || workload_->name != name) {
      session_.reset();
      workload_.reset();
      std::fprintf(stderr, "preparing %s ...\n", name.c_str());
      workload_ = std::make_shared<Workload>(makers_.at(name)());
    }
    if (!session_ || threads_ != threads || &session_->workload() != workload_.get()) {
      session_.reset();
      session_ = std::make_unique<Session>(workload_, threads);
      threads_ = threads;
    }
    return *session_;
  }

 private:
  std::map<std::string, Maker> makers_;
  std::shared_ptr<Workload> workload_;
  std::unique_ptr<Session> session_;
  int threads_ = 0;
};

Sessions sessions;

void report_bytes(benchmark::State& state, const Session& session, double bytes, double seconds) {
  state.counters["bytes"] = bytes;
  state.counters["GB_per_s"] = bytes / seconds / 1e9;
  state.counters["share_of_bandwidth"] = bytes / seconds / session.bandwidth();
}

void run_dense(benchmark::State& state, const std::string& workload, int threads) {
  Session& session = sessions.get(workload, threads);
  const int queries = int(session.workload().visible_tokens.size());
  for (auto _ : state) {
    std::vector<double> seconds;
    for (int step = 0; step < kSteps; ++step) seconds.push_back(session.dense_step(step % queries));
    state.SetIterationTime(median(seconds));
    report_bytes(state, session, double(session.kv_bytes(0)), median(seconds));
  }
}

void run_sparse(benchmark::State& state, const std::string& workload, int threads, float target, int budget_percent) {
  Session& session = sessions.get(workload, threads);
  const Workload& input = session.workload();
  DecodeOptions options;
  options.target_ratio = target;
  options.fixed_budget = int(int64_t(input.kv.num_tokens) * budget_percent / 100);
  Decoder decoder(input.shape, options, {1, input.kv.num_tokens, session.index().num_cluster_slots(), threads});
  std::vector<HeadReport> reports(size_t(input.shape.num_qo_heads));
  const int queries = int(input.visible_tokens.size());
  for (auto _ : state) {
    // Dense and sparse steps alternate, so that the ratio holds when the machine's speed drifts.
    std::vector<double> sparse_seconds, dense_seconds;
    double bytes = 0.0, tokens = 0.0, error = 0.0;
    for (int step = 0; step < kSteps; ++step) {
      dense_seconds.push_back(session.dense_step(step % queries));
      sparse_seconds.push_back(session.sparse_step(decoder, step % queries, reports));
      error += session.error() / kSteps;
      for (int head = 0; head < input.shape.num_kv_heads; ++head) {
        const HeadReport& report = reports[size_t(head * input.shape.group_size())];
        bytes += double(report.bytes_read) / kSteps;
        tokens += double(report.tokens_read) / kSteps / input.shape.num_kv_heads;
      }
    }
    state.SetIterationTime(median(sparse_seconds));
    report_bytes(state, session, bytes, median(sparse_seconds));
    state.counters["bytes_share"] = bytes / double(session.kv_bytes(0));
    state.counters["tokens"] = tokens;
    state.counters["error"] = error;
    state.counters["dense_ms"] = median(dense_seconds) * 1e3;
    state.counters["speedup"] = median(dense_seconds) / median(sparse_seconds);
  }
}

void run_build(benchmark::State& state, const std::string& workload, int threads) {
  Session& session = sessions.get(workload, threads);
  for (auto _ : state) state.SetIterationTime(session.build());
  state.counters["index_bytes"] = double(session.index().bytes());
  state.counters["index_share"] = double(session.index().bytes()) / double(session.kv_bytes(0));
}

void run_bandwidth(benchmark::State& state, int threads) {
  ThreadExecutor executor(threads);
  for (auto _ : state) {
    const double bandwidth = read_bandwidth(executor);
    state.SetIterationTime(double(size_t(512) << 20) / bandwidth);
    state.counters["GB_per_s"] = bandwidth / 1e9;
  }
}

void add_benchmark(const std::string& name, int threads, std::function<void(benchmark::State&)> run) {
  benchmark::RegisterBenchmark((name + "/threads:" + std::to_string(threads)).c_str(), std::move(run))
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMicrosecond);
}

// Traces are decoded at targets, generated caches with budgets besides.
void add_workload(const std::string& name, const std::vector<int>& thread_counts, bool generated, Sessions::Maker maker) {
  sessions.add(name, std::move(maker));
  for (const int threads : thread_counts) {
    add_benchmark("build/" + name, threads, [=](benchmark::State& state) { run_build(state, name, threads); });
    add_benchmark("dense/" + name, threads, [=](benchmark::State& state) { run_dense(state, name, threads); });
    for (const float target : kTargets) {
      char label[8];
      std::snprintf(label, sizeof(label), "%.2f", double(target));
      add_benchmark("sparse/" + name + "/" + label, threads, [=](benchmark::State& state) { run_sparse(state, name, threads, target, 0); });
    }
    for (const int percent : kBudgetPercents)
      if (generated)
        add_benchmark("sparse/" + name + "/budget_" + std::to_string(percent) + "_percent", threads,
                      [=](benchmark::State& state) { run_sparse(state, name, threads, 0.9f, percent); });
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
  const std::string root = QUORUM_ROOT;
  add_workload("smollm2_8k", threads, false,
               [=] { return bench::trace_workload("smollm2_8k", root + "/examples/data/smollm2_135m_kjv_8k_layer12.safetensors"); });
  const char* shared = std::getenv("QUORUM_SHARED");
  const std::string traces = shared != nullptr ? shared : root + "/../shared/traces";
  for (const char* layer : {"05", "11", "17"}) {
    const std::string path = traces + "/gemma3_270m_kjv_32k_layer" + layer + ".safetensors", name = std::string("gemma3_32k_layer") + layer;
    if (std::filesystem::exists(path))
      add_workload(name, threads, false, [=] { return bench::trace_workload(name, path); });
    else
      std::fprintf(stderr, "skipped: %s needs %s\n", name.c_str(), path.c_str());
  }
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
