// What an index costs while it lives: appending beside decoding, forks, rows taken away, saving; and what appended clusters are worth.
//
//   bash bench/run.sh life [--benchmark_filter=append]
// Times are ratios to the median decode step of the same run wherever a counter says so. Two threads, or what QUORUM_BENCH_THREADS says.
#include <benchmark/benchmark.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "bench/support/cold_caches.hpp"
#include "bench/support/measure.hpp"
#include "bench/support/workload.hpp"

namespace {

using namespace quorum;
using bench::median;
using bench::seconds_of;
using bench::Workload;

constexpr int kPrompt = 32768, kAppended = 10000;

int num_threads() {
  const char* text = std::getenv("QUORUM_BENCH_THREADS");
  return text == nullptr ? 2 : std::atoi(text);
}
ThreadExecutor& executor() {
  static ThreadExecutor executor(num_threads());
  return executor;
}

// 8 KV heads of 128 dimensions, 32 query heads, a prompt of 32768 tokens and 10000 that are appended.
const Workload& workload() {
  static const Workload workload = bench::clustered_workload("llama8b", {.num_tokens = kPrompt + kAppended});
  return workload;
}
const ClusterIndex& prompt_index() {
  static const ClusterIndex index = [] {
    ClusterIndex built(workload().shape, IndexOptions{});
    built.build(workload().kv.first(kPrompt), executor());
    return built;
  }();
  return index;
}

DecodeOptions step_options() {
  DecodeOptions options;
  options.target_error = 0.05f;
  return options;
}

// Decoding with one decoder for caches of any length of the workload.
class Steps {
 public:
  explicit Steps(const Workload& workload)
      : workload_(workload),
        decoder_(workload.shape, step_options(), {1, workload.kv.num_tokens, 8192, num_threads()}),
        output_(size_t(workload.shape.num_qo_heads * workload.shape.head_dim)) {}
  void decode(const ClusterIndex& index, int num_tokens, int query) {
    const SequenceView sequence{workload_.kv.first(num_tokens), &index.view()};
    if (decoder_.decode(workload_.query(query), {&sequence, 1}, {output_.data(), nullptr}, {}, executor()) != DecodeStatus::ok)
      std::abort();
  }

 private:
  const Workload& workload_;
  Decoder decoder_;
  std::vector<float> output_;
};

double median_step(const ClusterIndex& index, int num_tokens) {
  Steps steps(workload());
  bench::ColdCaches cold;
  std::vector<double> seconds;
  for (int i = 0; i < 64; ++i) {
    cold.clean(executor());
    seconds.push_back(seconds_of([&] { steps.decode(index, num_tokens, i % 16); }));
  }
  return median(seconds);
}

// A token appended before every step; the longest of them all, and what appending adds to the mean one.
void run_append(benchmark::State& state, int pieces) {
  IndexOptions options;
  options.pieces_per_append = pieces;
  ClusterIndex index(workload().shape, options);
  index.build(workload().kv.first(kPrompt), executor());
  for (auto _ : state) {
    Steps steps(workload());
    bench::ColdCaches cold;
    std::vector<double> appends, decodes, both;
    for (int n = kPrompt + 1; n <= kPrompt + kAppended; ++n) {
      cold.clean(executor());
      appends.push_back(seconds_of([&] { index.append(workload().kv.first(n), executor()); }));
      decodes.push_back(seconds_of([&] { steps.decode(index, n, n % 16); }));
      both.push_back(appends.back() + decodes.back());
    }
    const double step = median(decodes);
    double mean = 0.0;
    for (const double seconds : appends) mean += seconds / double(appends.size());
    for (auto* seconds : {&appends, &decodes, &both}) std::sort(seconds->begin(), seconds->end());
    state.SetIterationTime(mean);
    state.counters["step_us"] = step * 1e6;
    state.counters["mean_append_of_step"] = mean / step;
    state.counters["longest_append_us"] = appends.back() * 1e6;
    state.counters["longest_append_of_step"] = appends.back() / step;
    state.counters["longest_decode_of_step"] = decodes.back() / step;  // queries need different numbers of tokens
    state.counters["longest_of_step"] = both.back() / step;
  }
}

// One change of a fork of the prompt's index, on cold caches.
template <class Change>
void run_change(benchmark::State& state, Change&& change) {
  const double step = median_step(prompt_index(), kPrompt);
  bench::ColdCaches cold;
  for (auto _ : state) {
    std::vector<double> seconds;
    int64_t own_bytes = 0;
    for (int i = 0; i < 32; ++i) {
      ClusterIndex index = prompt_index();
      cold.clean(executor());
      seconds.push_back(seconds_of([&] { change(index); }));
      const ClusterIndex* const both[] = {&prompt_index(), &index};
      own_bytes = ClusterIndex::total_bytes(both) - prompt_index().bytes();
    }
    state.SetIterationTime(median(seconds));
    state.counters["of_step"] = median(seconds) / step;
    state.counters["own_bytes"] = double(own_bytes);
    state.counters["index_bytes"] = double(prompt_index().bytes());
  }
}

// Bytes at 5 % mean error of the last recorded queries, by log-log interpolation between target errors.
double bytes_at_error(const Workload& trace, const ClusterIndex& index) {
  std::vector<std::pair<double, double>> points;  // log error, log share of dense bytes
  const int heads = trace.shape.num_qo_heads, d = trace.shape.head_dim;
  std::vector<float> output(size_t(heads * d)), dense(output.size());
  for (const float target : {0.2f, 0.1f, 0.07f, 0.05f, 0.03f, 0.02f}) {
    DecodeOptions options = step_options();
    options.target_error = target;
    options.dense_below = 0;
    Decoder decoder(trace.shape, options, {1, trace.kv.num_tokens, 0, num_threads()});
    std::vector<HeadReport> reports(static_cast<size_t>(heads));
    double error = 0.0, read = 0.0, of = 0.0;
    const int queries = int(trace.visible_tokens.size());
    for (int q = 0; q < queries; ++q) {
      const SequenceView sequence{trace.visible(q), &index.view()};
      if (decoder.decode(trace.query(q), {&sequence, 1}, {output.data(), nullptr}, reports, executor()) != DecodeStatus::ok) std::abort();
      dense_attention(trace.shape, trace.query(q), {&sequence.kv, 1}, {dense.data(), nullptr}, executor());
      error += bench::mean_error(heads, d, output.data(), dense.data()) / queries;
      for (const HeadReport& report : reports) {
        read += double(report.bytes_read);
        of += double(report.bytes_dense);
      }
    }
    points.emplace_back(std::log(error), std::log(read / of));
  }
  for (size_t i = 1; i < points.size(); ++i) {
    const auto [e0, b0] = points[i - 1];
    const auto [e1, b1] = points[i];
    const double at = std::log(0.05);
    if (e0 >= at && e1 <= at) return std::exp(b0 + (b1 - b0) * (at - e0) / (e1 - e0));
  }
  return 0.0;
}

// A trace of which only the first tokens are built and the others appended one by one, against all built at once.
void run_appended_accuracy(benchmark::State& state, const std::string& path) {
  constexpr int kFirst = 256;
  const Workload trace = bench::trace_workload("trace", path);
  const int end = trace.indexed_tokens;
  const auto built = [&](int first) {
    ClusterIndex index(trace.shape, IndexOptions{});
    index.build(trace.kv.first(first), trace.prompt_queries ? &*trace.prompt_queries : nullptr, executor());
    return index;
  };
  const auto bytes_appended_after = [&](int first) {
    ClusterIndex index = built(first);
    for (int n = first + 1; n <= end; ++n) index.append(trace.kv.first(n), executor());
    return bytes_at_error(trace, index);
  };
  for (auto _ : state) {
    const double at_once = bytes_at_error(trace, built(end));
    double appended = 0.0;
    state.SetIterationTime(seconds_of([&] { appended = bytes_appended_after(kFirst); }));
    state.counters["appended"] = double(end - kFirst);
    state.counters["bytes_at_once"] = at_once;
    state.counters["bytes_appended"] = appended / at_once;
    state.counters["bytes_half_appended"] = bytes_appended_after(end / 2) / at_once;
    state.counters["bytes_8000_appended"] = bytes_appended_after(std::max(kFirst, end - 8000)) / at_once;
  }
}

// What it costs to cluster few tokens together.
void run_segment_size(benchmark::State& state, const std::string& path, int segment_tokens) {
  const Workload trace = bench::trace_workload("trace", path);
  IndexOptions options;
  options.segment_tokens = segment_tokens;
  for (auto _ : state) {
    ClusterIndex index(trace.shape, options);
    const QueryView* prompt = trace.prompt_queries ? &*trace.prompt_queries : nullptr;
    state.SetIterationTime(seconds_of([&] { index.build(trace.kv.first(trace.indexed_tokens), prompt, executor()); }));
    state.counters["bytes_at_5_percent"] = bytes_at_error(trace, index);
  }
}

template <class Run>
void add(const std::string& name, Run run) {
  benchmark::RegisterBenchmark(name.c_str(), run)->UseManualTime()->Iterations(1)->Unit(benchmark::kMicrosecond);
}

}  // namespace

int main(int argc, char** argv) {
  for (const int pieces : {0, 2, 8}) add("append/pieces:" + std::to_string(pieces), [=](benchmark::State& s) { run_append(s, pieces); });
  add("fork", [](benchmark::State& s) {
    run_change(s, [](const ClusterIndex& index) {
      const ClusterIndex fork = index;
      benchmark::DoNotOptimize(fork.view());
    });
  });
  add("truncate/8_waiting", [](benchmark::State& s) {
    const ClusterIndex longer = [] {
      ClusterIndex index = prompt_index();
      index.append(workload().kv.first(kPrompt + 8), executor());
      return index;
    }();
    run_change(s, [&](ClusterIndex& index) {
      index = longer;
      index.truncate(kPrompt);
    });
  });
  add("erase/1_clustered", [](benchmark::State& s) { run_change(s, [](ClusterIndex& index) { index.erase(20000, 20001); }); });
  add("erase/4096", [](benchmark::State& s) { run_change(s, [](ClusterIndex& index) { index.erase(4, 4100); }); });
  add("overwrite/1_clustered", [](benchmark::State& s) { run_change(s, [](ClusterIndex& index) { index.overwrite(20000, 20001); }); });
  add("invalidate_and_rebuild/4096", [](benchmark::State& s) {
    run_change(s, [](ClusterIndex& index) {
      index.invalidate(8192, 12288);
      index.append(workload().kv.first(kPrompt), executor());
    });
  });
  add("save", [](benchmark::State& s) { run_change(s, [](ClusterIndex& index) { benchmark::DoNotOptimize(index.save()); }); });
  add("load", [](benchmark::State& s) {
    const auto bytes = prompt_index().save();
    run_change(s, [&](ClusterIndex& index) { index = ClusterIndex::load(workload().shape, bytes); });
  });
  const char* shared = std::getenv("QUORUM_SHARED");
  for (const std::string folder : {shared == nullptr ? "" : shared, QUORUM_ROOT "/../shared/traces", QUORUM_ROOT "/examples/data"}) {
    if (folder.empty() || !std::filesystem::is_directory(folder)) continue;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() != ".safetensors") continue;
      const std::string path = entry.path().string(), name = entry.path().stem().string();
      add("appended/" + name, [path](benchmark::State& s) { run_appended_accuracy(s, path); });
      for (const int n : {256, 512, 1024, 2048, 4096, 8192})
        add("segment/" + name + "/tokens:" + std::to_string(n), [=](benchmark::State& s) { run_segment_size(s, path, n); });
    }
    break;
  }
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
