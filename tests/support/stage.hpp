// One KV head's task of a batch with scratch memory of its own, so that the stages of decoding can be called one by one.
#pragma once

#include <vector>

#include "quorum/cpu/decode.hpp"
#include "tests/support/decode_batch.hpp"

namespace quorum::test {

class Stage {
 public:
  // Scratch memory starts full of NaN. The batch must outlive the stage.
  Stage(const Batch& batch, int sequence, int kv_head, int num_workers = 1)
      : batch_(batch), sequence_(batch.sequences()[size_t(sequence)]), executor_(num_workers), workers_(size_t(num_workers)) {
    item_ = sequence * batch.shape().num_kv_heads + kv_head;
    const cpu::ScratchLimits limits{
        batch.shape().group_size(),     batch.shape().head_dim, sequence_.kv.num_tokens, head(kv_head).num_cluster_slots(), 256,
        sequence_.index->residual_codes};
    lay_out(cpu::Arena(), limits);
    block_.assign(size_t(bytes_), std::byte(0xff));
    lay_out(cpu::Arena(block_.data()), limits);
  }

  // Runs work(task) on every worker of one team.
  template <class Work>
  void run(Work&& work) {
    struct Call {
      Stage* stage;
      std::remove_reference_t<Work>* work;
    } call{this, &work};
    executor_.run(
        [](void* raw, int worker, int num_workers) {
          const Call& self = *static_cast<const Call*>(raw);
          self.stage->run_worker(*self.work, worker, num_workers);
        },
        &call);
  }

  const ClusterIndexView& index() const { return *sequence_.index; }
  const ClusterHeadView& head() const { return head(item_ % batch_.shape().num_kv_heads); }
  const cpu::HeadScratch& shared() const { return shared_; }
  const cpu::WorkerScratch& worker(int i) const { return workers_[size_t(i)]; }
  int sequence() const { return item_ / batch_.shape().num_kv_heads; }
  int kv_head() const { return item_ % batch_.shape().num_kv_heads; }

  // Scores of all tokens for a query head of the group, by the reference.
  std::vector<double> exact_scores(int head_of_group) const {
    return batch_.scores(sequence(), kv_head() * batch_.shape().group_size() + head_of_group);
  }

 private:
  const ClusterHeadView& head(int kv_head) const { return sequence_.index->heads[kv_head]; }
  template <class Work>
  void run_worker(Work& work, int worker, int num_workers) {
    cpu::HeadTask task =
        cpu::group_task(batch_.shape(), batch_.query_view(), sequence_.kv, item_, {&barrier_, worker, num_workers}, workers_.data());
    task.shared = &shared_;
    work(task);
  }
  void lay_out(cpu::Arena arena, const cpu::ScratchLimits& limits) {
    for (auto& worker : workers_) cpu::lay_out(arena, limits, worker);
    cpu::lay_out(arena, limits, shared_);
    bytes_ = arena.used();
  }

  const Batch& batch_;
  SequenceView sequence_;
  int item_ = 0;
  ThreadExecutor executor_;
  cpu::Barrier barrier_;
  std::vector<cpu::WorkerScratch> workers_;
  cpu::HeadScratch shared_;
  cpu::AlignedVector<std::byte> block_;
  int64_t bytes_ = 0;
};

// Scores, weighs and orders all clusters of a task. Returns false if a query, key or estimate is not finite.
inline bool order_clusters(const cpu::HeadTask& task, const ClusterIndexView& index, const ClusterHeadView& head, VarianceModel model,
                           cpu::ReadState& state) {
  cpu::ClusterWeights weights;
  const bool finite = cpu::weigh_clusters(task, index, head, model, false, state, weights);
  if (finite) cpu::order_clusters(task, head, weights, state);
  return finite;
}

}  // namespace quorum::test
