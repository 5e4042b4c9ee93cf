// An index as bytes: written in one go, read with every field checked, so that no bytes whatever lead a decoder astray.
#pragma once

#include <bit>
#include <cmath>

#include "quorum/cpu/byte_stream.hpp"
#include "quorum/cpu/query_metric.hpp"
#include "quorum/cpu/segment.hpp"
#include "quorum/cpu/token_ledger.hpp"

namespace quorum::cpu {

// What an index consists of.
struct IndexParts {
  AttentionShape shape;
  IndexOptions options;
  std::shared_ptr<const Metrics> metrics;
  std::vector<std::shared_ptr<const Segment>> segments;
  TokenLedger ledger;
};

static_assert(std::endian::native == std::endian::little, "saved indexes are little-endian");

// First bytes of a saved index; docs/layouts.md has the rest.
inline constexpr char kIndexMagic[8] = {'Q', 'U', 'O', 'R', 'U', 'M', 'I', 'X'};
inline constexpr uint32_t kIndexVersion = 1;
struct IndexHeader {
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint64_t total_bytes;  // of everything
  uint64_t checksum;     // of what follows the header
};

// Calls f(member, its name) for all options: reading and writing go through the same list.
template <class Options, class F>
void for_each_index_option(Options& o, F&& f) {
  f(o.cluster_size, "options.cluster_size");
  f(o.segment_tokens, "options.segment_tokens");
  f(o.iterations, "options.iterations");
  f(o.num_sink_tokens, "options.num_sink_tokens");
  f(o.window_tokens, "options.window_tokens");
  f(o.recluster_every, "options.recluster_every");
  f(o.merge_tokens, "options.merge_tokens");
  f(o.pieces_per_append, "options.pieces_per_append");
  f(o.metric_shrinkage, "options.metric_shrinkage");
  f(o.seed, "options.seed");
}

inline void write_head(const HeadSegment& head, int head_dim, ByteWriter& out) {
  SegmentView view = head.view();
  out.put(int32_t{head.num_clusters});
  out.put(int32_t{head.non_finite});
  for (const float moment : {head.moments.spread, head.moments.mean_square, head.moments.code_scale, 0.0f}) out.put(moment);
  HeadSegment::for_each_array(
      head, view, [&](const auto&, auto pointer, int64_t count) { out.put_array(pointer, pointer == nullptr ? 0 : count); },
      SegmentSizes::of(view, head_dim));
}

// Cost: a copy of the index. Memory: the result.
inline std::vector<std::byte> write_index(const IndexParts& index) {
  ByteWriter out;
  out.bytes().resize(sizeof(IndexHeader));
  for (const int32_t x : {index.shape.num_qo_heads, index.shape.num_kv_heads, index.shape.head_dim}) out.put(x);
  for_each_index_option(index.options, [&](auto value, const char*) { out.put(value); });
  for (const bool x : {index.options.storage == IndexStorage::f32, index.options.residual_codes, index.metrics != nullptr})
    out.put(uint8_t{x});
  out.put(uint8_t(index.options.variance));
  const AlwaysRead always = index.ledger.always();
  out.put(int32_t{index.ledger.num_tokens()});
  out.put(int32_t{index.ledger.num_sinks()});
  out.put_array(always.listed, always.num_listed);
  out.put_array(index.ledger.live(), index.ledger.live() == nullptr ? 0 : ceil_div(always.num_known, 64));
  if (index.metrics != nullptr)
    for (const QueryMetric& metric : *index.metrics) {
      out.put_array(metric.forward.data(), metric.forward.size());
      out.put_array(metric.inverse.data(), int64_t(metric.inverse.size()));
      for (const auto* array : {&metric.signs, &metric.eigenvalues, &metric.mean_key}) out.put_array(array->data(), int64_t(array->size()));
    }
  out.put(int64_t(index.segments.size()));
  for (const auto& segment : index.segments)
    for (const HeadSegment& head : segment->heads) write_head(head, index.shape.head_dim, out);
  out.bytes().resize(size_t(round_up(int64_t(out.bytes().size()), 8)));
  IndexHeader header{{}, kIndexVersion, sizeof(IndexHeader), out.bytes().size(), 0};
  std::memcpy(header.magic, kIndexMagic, sizeof(kIndexMagic));
  header.checksum = checksum_of(std::span(out.bytes()).subspan(sizeof(header)));
  std::memcpy(out.bytes().data(), &header, sizeof(header));
  return std::move(out.bytes());
}

// The header's promises.
inline void check_header(std::span<const std::byte> bytes) {
  IndexHeader header;
  require_index(bytes.size() >= sizeof(header), "the bytes", "at least a header of 32", int64_t(bytes.size()));
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (std::memcmp(header.magic, kIndexMagic, sizeof(kIndexMagic)) != 0) refuse_index("the first 8 bytes", "QUORUMIX", "others");
  require_index(header.version == kIndexVersion, "version", "1", header.version);
  require_index(header.header_bytes == sizeof(header), "header_bytes", "32", header.header_bytes);
  require_index(header.total_bytes == bytes.size(), "total_bytes", "the number of bytes", int64_t(header.total_bytes));
  if (header.checksum != checksum_of(bytes.subspan(sizeof(header)))) refuse_index("checksum", "that of the bytes", "another");
}

template <class Array>
void require_finite(const Array& values, const char* field) {
  for (const auto value : values)
    if (!std::isfinite(to_float(value))) refuse_index(field, "finite", "NaN or infinity");
}

inline void read_metric(const AttentionShape& shape, ByteReader& in, QueryMetric& metric) {
  const int64_t d = shape.head_dim, padded = padded_dim(shape.head_dim);
  AlignedVector<float> forward;
  const auto get = [&](auto& array, int64_t count, const char* field) {
    in.get_array(array, count, field);
    require_index(int64_t(array.size()) == count, field, "of the shape's length", int64_t(array.size()));
    require_finite(array, field);
  };
  get(forward, d * d, "metric.forward");
  get(metric.inverse, padded * d, "metric.inverse");
  get(metric.signs, d, "metric.signs");
  get(metric.eigenvalues, padded, "metric.eigenvalues");
  get(metric.mean_key, padded, "metric.mean_key");
  metric.forward = Eigen::Map<const RowMatrix>(forward.data(), d, d);
}

// Lists of a segment's tokens by cluster: sizes, row starts and code blocks agree.
inline void check_lists(const HeadSegment& head, int num_tokens) {
  const size_t slots = head.size.size();
  require_index(head.cluster_indptr.front() == 0, "cluster_indptr[0]", "0", head.cluster_indptr.front());
  for (size_t j = 0; j < slots; ++j) {
    const int64_t size = int64_t{head.cluster_indptr[j + 1]} - head.cluster_indptr[j];
    require_index(size >= 0 && float(size) == head.size[j] && (size == 0 || int(j) < head.num_clusters), "cluster_indptr",
                  "in steps of the clusters' sizes", size);
    if (!head.code_indptr.empty())
      require_index(head.code_indptr[0] == 0 && int64_t{head.code_indptr[j + 1]} - head.code_indptr[j] == num_code_blocks(int(size)),
                    "code_indptr", "in steps of the clusters' blocks of codes", head.code_indptr[j + 1]);
  }
  require_index(head.cluster_indptr[slots] == int64_t(head.cluster_tokens.size()), "cluster_tokens", "as many as the clusters hold",
                int64_t(head.cluster_tokens.size()));
  for (const int32_t token : head.cluster_tokens)
    require_index(token >= 0 && token < num_tokens, "cluster_tokens", "0 to the number of tokens", token);
}

// Which arrays an index has follows from its options; how long they are, from the clusters and lists read before.
inline void read_head(const IndexParts& index, ByteReader& in, HeadSegment& head) {
  head.num_clusters = in.get<int32_t>("num_clusters");
  require_index(head.num_clusters >= 1 && head.num_clusters <= kMaxCount / kMaxHeadDim, "num_clusters", "1 to 2^21", head.num_clusters);
  const auto non_finite = in.get<int32_t>("non_finite");
  require_index(non_finite == 0 || non_finite == 1, "non_finite", "0 or 1", non_finite);
  head.non_finite = non_finite == 1;
  for (float* moment : {&head.moments.spread, &head.moments.mean_square, &head.moments.code_scale}) *moment = in.get<float>("moments");
  in.get<float>("moments");
  const std::initializer_list<float> moments = {head.moments.spread, head.moments.mean_square, head.moments.code_scale};
  require_finite(moments, "moments");
  SegmentView pointers;
  HeadSegment::for_each_array(head, pointers, [&](auto& array, auto&, int64_t) { in.get_array(array, kMaxCount, "segment"); });
  const int64_t slots = round_up(head.num_clusters, kClusterBlock);
  const bool codes = index.options.residual_codes;
  require_index(int64_t(head.size.size()) == slots, "size", "of a length of whole blocks", int64_t(head.size.size()));
  require_index(int64_t(head.cluster_indptr.size()) == slots + 1, "cluster_indptr", "a block longer by one",
                int64_t(head.cluster_indptr.size()));
  require_index(int64_t(head.code_indptr.size()) == (codes ? slots + 1 : 0), "code_indptr", "as the options say",
                int64_t(head.code_indptr.size()));
  check_lists(head, index.ledger.num_tokens());
  const SegmentSizes sizes{head.num_clusters, slots, int64_t(head.cluster_tokens.size()), codes ? head.code_indptr.back() : 0,
                           index.shape.head_dim};
  const bool f32 = index.options.storage == IndexStorage::f32, diagonal = index.options.variance == VarianceModel::diagonal;
  const auto present = [&](const void* array) {
    if (array == &head.centroids || array == &head.centroid_scale || array == &head.value_means || array == &head.value_mean_scale)
      return !f32;
    if (array == &head.centroids_f32 || array == &head.value_means_f32) return f32;
    if (array == &head.residual_variance || array == &head.variance_scale) return diagonal;
    return codes || (array != &head.codes && array != &head.code_scale && array != &head.code_indptr);
  };
  HeadSegment::for_each_array(
      head, pointers,
      [&](auto& array, auto&, int64_t count) {
        require_index(int64_t(array.size()) == (present(&array) ? count : 0), "segment", "made of arrays of the lengths that its lists say",
                      int64_t(array.size()));
        if constexpr (!std::is_integral_v<typename std::remove_reference_t<decltype(array)>::value_type>) require_finite(array, "segment");
      },
      sizes);
}

// Reads one segment and counts its tokens: +1 for KV head h at owner[token] == h, so that every head holds the same, each once.
inline std::shared_ptr<Segment> read_segment(const IndexParts& index, ByteReader& in, std::vector<int32_t>& owner) {
  auto segment = std::make_shared<Segment>();
  segment->heads.resize(size_t(index.shape.num_kv_heads));
  for (size_t h = 0; h < segment->heads.size(); ++h) {
    HeadSegment& head = segment->heads[h];
    read_head(index, in, head);
    require_index(head.num_clusters == segment->heads[0].num_clusters, "num_clusters", "the same for all KV heads", head.num_clusters);
    require_index(head.cluster_tokens.size() == segment->heads[0].cluster_tokens.size() && !head.cluster_tokens.empty(), "cluster_tokens",
                  "as many for every KV head, at least 1", int64_t(head.cluster_tokens.size()));
    for (const int32_t token : head.cluster_tokens) {
      require_index(owner[size_t(token)] == int32_t(h), "cluster_tokens", "the same for all KV heads, each once", token);
      ++owner[size_t(token)];
    }
  }
  segment->set_tokens(segment->heads[0].cluster_tokens);
  return segment;
}

inline void read_ledger(ByteReader& in, IndexParts& index) {
  const auto num_tokens = in.get<int32_t>("num_tokens"), num_sinks = in.get<int32_t>("num_sinks");
  require_index(num_tokens >= 0 && num_tokens <= kMaxCount, "num_tokens", "0 to 2^30", num_tokens);
  std::vector<int32_t> listed;
  std::vector<uint64_t> live;
  in.get_array(listed, num_tokens, "listed tokens");
  in.get_array(live, ceil_div(num_tokens, 64), "live tokens");
  require_index(num_sinks >= 0 && num_sinks <= std::min(int(listed.size()), index.options.num_sink_tokens), "num_sinks",
                "at most the listed tokens and options.num_sink_tokens", num_sinks);
  require_index(live.empty() ? num_tokens <= in.size() / int64_t(sizeof(int32_t)) : int64_t(live.size()) == ceil_div(num_tokens, 64),
                "live tokens", "a bit a token, or none with every token in a list", num_tokens);
  if (num_tokens % 64 != 0 && !live.empty())
    require_index(live.back() >> (num_tokens % 64) == 0, "live tokens", "0 beyond the last token", int64_t(live.back()));
  for (const int32_t token : listed) require_index(token >= 0 && token < num_tokens, "listed tokens", "0 to the number of tokens", token);
  index.ledger = TokenLedger(index.options.num_sink_tokens);
  index.ledger.restore(num_tokens, num_sinks, std::move(listed), std::move(live));
}

// Reads an index and checks all of it: lengths, lists, that every live token is in one place.
//
// Errors: Error(invalid_file) naming field, rule and value. Cost: a copy.
inline IndexParts read_index(const AttentionShape& shape, std::span<const std::byte> bytes) {
  check_header(bytes);
  ByteReader in(bytes.subspan(sizeof(IndexHeader)));
  IndexParts index;
  index.shape = shape;
  for (const int have : {shape.num_qo_heads, shape.num_kv_heads, shape.head_dim}) {
    const auto stored = in.get<int32_t>("shape");
    require_index(stored == have, "shape", "that of the saved index", have);
  }
  for_each_index_option(index.options, [&]<class T>(T& value, const char* name) { value = in.get<T>(name); });
  uint8_t flags[4];
  for (uint8_t& flag : flags) flag = in.get<uint8_t>("options");
  require_index(flags[0] <= 1 && flags[1] <= 1 && flags[2] <= 1 && flags[3] <= uint8_t(VarianceModel::diagonal), "options.storage",
                "one that is known", flags[0]);
  index.options.storage = flags[0] == 1 ? IndexStorage::f32 : IndexStorage::int8;
  index.options.residual_codes = flags[1] == 1;
  index.options.variance = VarianceModel(flags[3]);
  try {
    validate(index.options, "ClusterIndex::load");
  } catch (const Error& error) {
    throw Error(ErrorCode::invalid_file, error.what());
  }
  read_ledger(in, index);
  if (flags[2] == 1) {
    auto metrics = std::make_shared<Metrics>(size_t(shape.num_kv_heads));
    for (QueryMetric& metric : *metrics) read_metric(shape, in, metric);
    index.metrics = std::move(metrics);
  }
  const int num_tokens = index.ledger.num_tokens();
  const auto num_segments = in.get<int64_t>("num_segments");
  require_index(num_segments >= 0 && num_segments <= (index.metrics == nullptr ? 0 : num_tokens), "num_segments",
                "at most the number of tokens, and 0 without a query metric", num_segments);
  std::vector<int32_t> owner(static_cast<size_t>(num_tokens), 0);
  for (int64_t s = 0; s < num_segments; ++s) index.segments.push_back(read_segment(index, in, owner));
  const AlwaysRead always = index.ledger.always();
  for (int i = 0; i < always.num_listed; ++i) {
    require_index(owner[size_t(always.token(i))] == 0, "listed tokens", "in no cluster, each once", always.token(i));
    owner[size_t(always.token(i))] = shape.num_kv_heads;
  }
  for (int t = 0; t < num_tokens; ++t)
    require_index(owner[size_t(t)] == (index.ledger.lives(t) ? shape.num_kv_heads : 0), "live tokens", "those of lists and clusters", t);
  require_index(in.at_end(), "the bytes", "no more than the index takes", int64_t(bytes.size()));
  return index;
}

}  // namespace quorum::cpu
