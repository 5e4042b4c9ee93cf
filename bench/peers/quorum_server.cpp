// Quorum's side of comparisons with peers that live in another process. Reads commands from standard input, answers each with one JSON
// object on a line.
//
//   load SIZE FOLDER        prepares llama8b_SIZE and writes keys.f16, values.f16 [kv_head][token][dim], queries.f32, dense.f32
//   steps THREADS COUNT     so many dense and sparse steps (whole clusters, ours.hpp) in turn: times in microseconds, the sparse error
//   kmeans SEGMENTS THREADS clusters that many segments of the loaded keys of KV head 0, a segment a task: time
//   inertia SEGMENTS        what these clusterings are worth
//   peak THREADS            multiply-adds a second in registers, f32
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>

#include "bench/peers/json_line.hpp"
#include "bench/peers/ours.hpp"

namespace {

using namespace quorum;

void write_file(const std::string& path, const void* data, size_t bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(data), std::streamsize(bytes));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

// Sum of squared distances to the means of the clusters: what k-means makes small.
double inertia_of(const cpu::RowMatrix& rows, const std::vector<int>& assignment, int clusters) {
  Eigen::MatrixXd sums = Eigen::MatrixXd::Zero(clusters, rows.cols());
  std::vector<int> counts(static_cast<size_t>(clusters), 0);
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    sums.row(assignment[size_t(i)]) += rows.row(i).cast<double>();
    ++counts[size_t(assignment[size_t(i)])];
  }
  double total = 0.0;
  for (Eigen::Index i = 0; i < rows.rows(); ++i) {
    const int cluster = assignment[size_t(i)];
    total += (rows.row(i).cast<double>() - sums.row(cluster) / counts[size_t(cluster)]).squaredNorm();
  }
  return total;
}

// Multiply-adds in registers alone, enough independent chains to hide their latency.
double multiply_adds_per_second(int threads) {
  constexpr int kChains = 16, kRounds = 1 << 22;
  struct Context {
    std::atomic<float> sink{0.0f};
  } context;
  ThreadExecutor executor(threads);
  std::vector<double> seconds;
  for (int repeat = 0; repeat < 9; ++repeat)
    seconds.push_back(bench::seconds_of([&] {
      executor.run(
          [](void* raw, int, int) {
            simd::Vector sums[kChains];
            for (int i = 0; i < kChains; ++i) sums[i] = simd::Vector(float(i));
            const simd::Vector factor(0.999f), term(0.001f);
            for (int round = 0; round < kRounds; ++round)
              for (simd::Vector& sum : sums) sum = simd::multiply_add(sum, factor, term);
            float total = 0.0f;
            for (const simd::Vector& sum : sums) total += simd::reduce_add(sum);
            static_cast<Context*>(raw)->sink.store(total);
          },
          &context);
    }));
  return double(kChains) * kRounds * simd::kVectorSize * threads / bench::median(seconds);
}

class Server {
 public:
  std::string answer(const std::string& command) {
    std::istringstream words(command);
    std::string verb, size, folder;
    int first = 0, second = 0;
    words >> verb;
    if (verb == "load" && words >> size >> folder) return load(size, folder);
    if (verb == "steps" && words >> first >> second) return steps(first, second);
    if (verb == "kmeans" && words >> first >> second) return kmeans(first, second);
    if (verb == "inertia" && words >> first) return inertia(first);
    if (verb == "peak" && words >> first) return bench::JsonLine().add("multiply_adds_per_s", multiply_adds_per_second(first)).str();
    throw std::runtime_error("unknown command: " + command);
  }

 private:
  std::string load(const std::string& size, const std::string& folder) {
    ours_.reset();
    index_.reset();
    workload_.reset();
    workload_ = bench::llama8b_workload(size, true);
    const AttentionShape& shape = workload_->shape;
    const size_t bytes = size_t(workload_->kv.num_tokens) * size_t(shape.num_kv_heads) * size_t(shape.head_dim) * 2;
    write_file(folder + "/keys.f16", workload_->kv.keys, bytes);
    write_file(folder + "/values.f16", workload_->kv.values, bytes);
    const size_t row = size_t(shape.num_qo_heads) * size_t(shape.head_dim), queries = workload_->visible_tokens.size();
    write_file(folder + "/queries.f32", workload_->queries.data, queries * row * sizeof(float));
    std::vector<float> dense(queries * row);
    SerialExecutor serial;
    for (size_t i = 0; i < queries; ++i) {
      const KvCacheView kv = workload_->visible(int(i));
      dense_attention(shape, workload_->query(int(i)), {&kv, 1}, {dense.data() + i * row, nullptr}, serial);
    }
    write_file(folder + "/dense.f32", dense.data(), dense.size() * sizeof(float));
    return bench::JsonLine()
        .add("tokens", double(workload_->kv.num_tokens))
        .add("queries", double(queries))
        .add("qo_heads", double(shape.num_qo_heads))
        .add("kv_heads", double(shape.num_kv_heads))
        .add("head_dim", double(shape.head_dim))
        .str();
  }

  const bench::Workload& workload() const {
    if (!workload_) throw std::runtime_error("nothing is loaded");
    return *workload_;
  }

  std::string steps(int threads, int count) {
    if (!index_) index_ = bench::build_index(workload());
    if (!ours_ || threads_ != threads) {
      ours_.reset();
      ours_ = std::make_unique<bench::Ours>(workload(), *index_, threads);
      threads_ = threads;
      ours_->dense_step(0);  // once in vain: caches of code, tables of pages
      ours_->sparse_step(0);
    }
    std::vector<double> dense, sparse;
    double error = 0.0;
    for (int i = 0; i < count; ++i) {
      const int query = next_++ % ours_->num_queries();
      dense.push_back(ours_->dense_step(query) * 1e6);
      sparse.push_back(ours_->sparse_step(query) * 1e6);
      error += ours_->sparse_error() / count;
    }
    return bench::JsonLine().add("dense_us", dense).add("sparse_us", sparse).add("sparse_error", error).str();
  }

  std::vector<cpu::RowMatrix> segments(int count) const {
    const int rows = kIndex.segment_tokens, d = workload().shape.head_dim;
    if (count < 1 || int64_t(count) * rows > workload().kv.num_tokens) throw std::runtime_error("no such segments");
    std::vector<cpu::RowMatrix> keys(size_t(count), cpu::RowMatrix(rows, d));
    const auto* from = reinterpret_cast<const f16*>(workload().kv.keys);  // KV head 0 comes first
    for (int segment = 0; segment < count; ++segment)
      for (int i = 0; i < rows * d; ++i) keys[size_t(segment)].data()[i] = to_float(from[int64_t(segment) * rows * d + i]);
    return keys;
  }

  std::string kmeans(int count, int threads) {
    const std::vector<cpu::RowMatrix> keys = segments(count);
    std::vector<std::vector<int>> assignments(keys.size());
    ThreadExecutor executor(threads);
    const double seconds =
        bench::seconds_of([&] { for_each_task(executor, count, [&](int i) { assignments[size_t(i)] = cluster(keys[size_t(i)]); }); });
    return bench::JsonLine().add("us", seconds * 1e6).str();
  }

  static std::vector<int> cluster(const cpu::RowMatrix& keys) {
    return cpu::kmeans(keys.data(), int(keys.rows()), int(keys.cols()), kClusters, kIndex.iterations);
  }

  std::string inertia(int count) {
    double total = 0.0;
    for (const cpu::RowMatrix& keys : segments(count)) total += inertia_of(keys, cluster(keys), kClusters);
    return bench::JsonLine()
        .add("inertia", total)
        .add("rows", double(kIndex.segment_tokens))
        .add("clusters", double(kClusters))
        .add("iterations", double(kIndex.iterations))
        .str();
  }

  static constexpr IndexOptions kIndex = bench::whole_clusters();
  static constexpr int kClusters = kIndex.segment_tokens / kIndex.cluster_size;

  std::optional<bench::Workload> workload_;
  std::optional<ClusterIndex> index_;
  std::unique_ptr<bench::Ours> ours_;
  int threads_ = 0;
  int next_ = 0;
};

}  // namespace

int main() {
  Eigen::setNbThreads(1);  // an executor's workers are the threads that count; OpenMP's would come on top
  Server server;
  for (std::string command; std::getline(std::cin, command);) {
    try {
      std::cout << server.answer(command) << std::endl;
    } catch (const std::exception& problem) {
      std::cerr << "peer_quorum: " << problem.what() << "\n";
      return 1;
    }
  }
  return 0;
}
