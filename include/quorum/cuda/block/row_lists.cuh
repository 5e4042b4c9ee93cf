// What a choice comes to, written down by each block for its own clusters: tokens to attend, clusters that lend their value means, drawn
// tokens (algorithm.md eq. 8).
#pragma once

#include "quorum/cuda/block/draw_strata.cuh"
#include "quorum/cuda/block/row_clusters.cuh"

namespace quorum::cuda {

template <int kHeads>
struct RowLists : RowClusters<kHeads> {
  using Base = RowClusters<kHeads>;
  using Base::bucket, Base::first, Base::group, Base::head, Base::lane, Base::last, Base::log_weights, Base::p, Base::plan, Base::row,
      Base::s, Base::share, Base::size, Base::team, Base::warp, Base::rest_share;

  // Tokens of the clusters chosen in this round, by cluster id, behind those of the list; and the tail's clusters.
  __device__ __forceinline__ void write_lists(int tail_bucket) const {
    constexpr int kTokenBits = 22, kPieceBits = 21;
    constexpr unsigned long long kTokenMask = (1ull << kTokenBits) - 1, kPieceMask = (1ull << kPieceBits) - 1;
    const int begin = plan.num_listed;
    unsigned long long own = 0, of_block = 0, total = 0;  // tokens, pieces, clusters of the tail
#pragma unroll 1
    for (int cluster = first; cluster < last; ++cluster) {
      if (bucket[cluster] == kListedNow) own += (static_cast<unsigned long long>(pieces_of(cluster)) << kTokenBits) + size[cluster];
      if (int(bucket[cluster]) <= tail_bucket) own += 1ull << (kTokenBits + kPieceBits);
    }
    const unsigned long long in_block = block_exclusive_sum<kSelectThreads>(own, of_block, s.warp_sums);
    const unsigned long long start = in_block + team.exclusive_sum(of_block, total, s.lists_of_block);
    const int num_pieces = int(of_block >> kTokenBits & kPieceMask);
    int32_t* list = p.workspace.tokens + int64_t(row) * p.max_tokens + begin;
    int32_t* tail = p.workspace.tail_clusters + int64_t(row) * p.max_slots;
#pragma unroll 1
    for (int part = 0; part == 0 || part < num_pieces; part += kListedAtOnce) {
      int at = int(in_block >> kTokenBits & kPieceMask) - part, at_tail = int(start >> (kTokenBits + kPieceBits));
      uint32_t place = uint32_t(start & kTokenMask);
#pragma unroll 1
      for (int cluster = first; cluster < last; ++cluster) {
        if (part == 0 && int(bucket[cluster]) <= tail_bucket) tail[at_tail++] = cluster;
        if (bucket[cluster] != kListedNow) continue;
        const int count = size[cluster];
#pragma unroll 1
        for (int offset = 0; offset < count; offset += kWarpSize, ++at)
          if (at >= 0 && at < kListedAtOnce) s.listed[at] = {cluster, offset, place + uint32_t(offset), min(kWarpSize, count - offset)};
        place += uint32_t(count);
      }
      __syncthreads();
      expand(list, min(kListedAtOnce, num_pieces - part));
      __syncthreads();
    }
    if (team.leads()) {
      plan.first_listed = p.round == 0 ? 0 : begin;
      plan.num_listed = begin + int(total & kTokenMask);
      plan.num_tail = int(total >> (kTokenBits + kPieceBits));
    }
  }
  __device__ __forceinline__ int pieces_of(int cluster) const { return (size[cluster] + kWarpSize - 1) / kWarpSize; }

  // Copies the tokens of `count` pieces: a warp a piece, several on their way together. Clusters differ in size, pieces hardly.
  __device__ __forceinline__ void expand(int32_t* list, int count) const {
    constexpr int kTogether = 8;
    for (int i = int(threadIdx.x); i < count; i += kSelectThreads) s.listed[i].first += head.clusters.cluster_indptr[s.listed[i].cluster];
    __syncthreads();
#pragma unroll 1
    for (int i = warp(); i < count; i += kTogether * kSelectWarps) {
      int32_t token[kTogether];
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        const ListedPiece piece = s.listed[min(i + j * kSelectWarps, count - 1)];
        token[j] = head.clusters.cluster_tokens[piece.first + min(lane(), piece.count - 1)];
      }
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        if (i + j * kSelectWarps >= count) break;
        const ListedPiece piece = s.listed[i + j * kSelectWarps];
        if (lane() < piece.count) list[piece.place + lane()] = token[j];
      }
    }
  }

  __device__ __forceinline__ bool is_unread(int cluster) const { return bucket[cluster] < kListedNow; }
  // Shares of the rest of all unread clusters, the largest over the heads, to `rest_share`; returns the sum over all blocks. As bf16:
  // they only shape the sample, which is unbiased whatever they are.
  __device__ __forceinline__ float share_rest() const {
    float own = 0.0f;
    this->for_each_weight([&](int cluster, int count, const float(&weight)[kHeads]) {
      if (!is_unread(cluster)) return;
      float largest = 0.0f;
#pragma unroll
      for (int g = 0; g < kHeads; ++g)
        if (g < group) largest = fmaxf(largest, share(weight[g], count, g) * s.inverse_rest[g]);
      const uint32_t bits = __float_as_uint(largest) & 0xffff0000u;
      rest_share[cluster] = uint16_t(bits >> 16);
      own += __uint_as_float(bits);
    });
    own = warp_sum(own);
    if (lane() == 0) s.rest_sum[warp()] = own;
    __syncthreads();
    float of_block = 0.0f, sum = 0.0f;
    for (int w = 0; w < kSelectWarps; ++w) of_block += s.rest_sum[w];
    team.exclusive_sum(of_block, sum, s.rest_of_block);
    return sum;
  }

  // Draws one token for each stratum of the rest's distribution, a mixture of estimated weight and size.
  __device__ __forceinline__ void draw_tokens() const {
    const float unread = float(head.num_indexed) - float(s.chosen[group]);
    const DrawSteps steps(draw_rule(double(share_rest()), double(unread)));
    const auto steps_of = [&](int cluster) {
      const float of_rest = __uint_as_float(uint32_t(rest_share[cluster]) << 16);
      return is_unread(cluster) ? steps.of(of_rest, float(size[cluster])) : 0ull;
    };
    const SamplePoints points =
        SamplePoints::of(p.options.seed, p.kv_head_of(row) * p.heads_per_row, plan.num_tokens, plan.num_sampled, p.num_draws);
    const auto take = [&](int stratum, int cluster, float probability, float) {
      const int count = size[cluster], token = head.clusters.cluster_indptr[cluster] + points.token_of(stratum, count);
      p.workspace.draws[int64_t(row) * p.num_draws + stratum] = {head.clusters.cluster_tokens[token],
                                                                 float(count) / (probability * float(p.num_draws))};
    };
    const int num_draws = draw_strata<kSelectThreads>(*this, points, s.draws, steps_of, take);
    if (team.leads()) {
      plan.num_draws = num_draws;
      plan.num_sampled += num_draws;
    }
  }
};

}  // namespace quorum::cuda
