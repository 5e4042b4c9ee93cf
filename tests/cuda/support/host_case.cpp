#include "tests/cuda/support/host_case.hpp"

#include <cstring>
#include <numeric>
#include <random>

#include "quorum/io/trace.hpp"
#include "quorum/quorum.hpp"
#include "tests/reference/attention_reference.hpp"

namespace quorum::test {

namespace {

void store(std::byte* at, ElementType type, float x) {
  const auto put = [at](auto element) { std::memcpy(at, &element, sizeof(element)); };
  switch (type) {
    case ElementType::f32:
      return put(x);
    case ElementType::f16:
      return put(from_float<f16>(x));
    case ElementType::fp8_e4m3:
      return put(from_float<fp8_e4m3>(x));
    default:
      return put(from_float<bf16>(x));
  }
}
template <class T>
float load_as(const std::byte* at) {
  T element;
  std::memcpy(&element, at, sizeof(element));
  return to_float(element);
}
float load(const std::byte* at, ElementType type) {
  switch (type) {
    case ElementType::f32:
      return load_as<float>(at);
    case ElementType::f16:
      return load_as<f16>(at);
    case ElementType::fp8_e4m3:
      return load_as<fp8_e4m3>(at);
    default:
      return load_as<bf16>(at);
  }
}

// What queries are rounded to when they meet keys.
ElementType operand_type(ElementType keys) { return keys == ElementType::fp8_e4m3 ? ElementType::f16 : keys; }

}  // namespace

struct HostCase::Content {
  CaseOptions options;
  PagedKvView kv;
  std::vector<std::byte> keys, values, queries;
  std::vector<int32_t> page_indices, page_indptr, num_tokens;
  std::vector<float> key_scales, value_scales;  // [num_kv_heads] with fp8_e4m3
  std::vector<std::vector<std::byte>> linear;   // [sequence], keys then values as NHD: what the CPU backend reads
  std::vector<ClusterIndex> index;
  std::vector<ClusterIndexView> views;

  int num_sequences() const { return int(num_tokens.size()); }
  int64_t row_bytes() const { return int64_t(options.shape.head_dim) * element_bytes(options.type); }
  KvCacheView sequence_kv(int s) const {
    const int64_t row = row_bytes(), plane = row * options.shape.num_kv_heads * num_tokens[size_t(s)];
    const std::byte* base = linear[size_t(s)].data();
    const int64_t token = row * options.shape.num_kv_heads;
    KvCacheView view{base, base + plane, options.type, num_tokens[size_t(s)], token, row, token, row};
    view.key_scales = kv.key_scales;
    view.value_scales = kv.value_scales;
    return view;
  }
  // Overwrites an element of a row in both copies.
  void set(bool value, int s, int token, int kv_head, int coordinate, float x) {
    const float scale = value ? kv.value_scale(kv_head) : kv.key_scale(kv_head);
    for (std::byte* row : {row_of(value, s, token, kv_head), linear_row(value, s, token, kv_head)})
      store(row + coordinate * element_bytes(options.type), options.type, x / scale);
  }
  std::byte* row_of(bool value, int s, int token, int kv_head) {
    const std::byte* row = value ? kv.value_row(kv.place(s, token), kv_head) : kv.key_row(kv.place(s, token), kv_head);
    return const_cast<std::byte*>(row);
  }
  std::byte* linear_row(bool value, int s, int token, int kv_head) {
    const KvCacheView view = sequence_kv(s);
    return const_cast<std::byte*>(value ? view.value_row(token, kv_head) : view.key_row(token, kv_head));
  }
};

namespace {

float largest_element(const io::Trace& trace, bool value, int kv_head) {
  const KvCacheView kv = trace.kv_cache();
  float largest = 0.0f;
  for (int t = 0; t < kv.num_tokens; ++t)
    for (int i = 0; i < trace.head_dim; ++i) {
      const std::byte* row = value ? kv.value_row(t, kv_head) : kv.key_row(t, kv_head);
      largest = std::max(largest, std::fabs(load(row + i * element_bytes(kv.type), kv.type)));
    }
  return largest;
}

struct Pages {
  int64_t count = 0;
  int per_sequence = 0;
};

// Pages in a shuffled order, so that neither form can be taken for the other.
Pages deal_pages(const CaseOptions& o, std::vector<int32_t>& indices, std::vector<int32_t>& indptr, std::mt19937_64& random) {
  Pages pages;
  std::vector<int> needed;
  for (const int n : o.num_tokens) needed.push_back((n + o.page_size - 1) / o.page_size);
  for (const int n : needed) {
    pages.count += n;
    pages.per_sequence = std::max(pages.per_sequence, n);
  }
  std::vector<int32_t> shuffled(size_t(pages.count) + 3);
  std::iota(shuffled.begin(), shuffled.end(), 0);
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  pages.count += 3;
  indptr.assign(1, 0);
  size_t next = 0;
  for (const int n : needed) {
    const int room = o.layout == CacheLayout::paged_table ? pages.per_sequence : n;
    for (int i = 0; i < room; ++i) indices.push_back(i < n ? shuffled[next++] : -1);
    indptr.push_back(int32_t(indices.size()));
  }
  return pages;
}

}  // namespace

HostCase::HostCase(const CaseOptions& options) : content_(std::make_unique<Content>()) {
  Content& c = *content_;
  c.options = options;
  std::unique_ptr<io::Trace> trace;
  if (!options.trace.empty()) {
    trace = std::make_unique<io::Trace>(io::Trace::open(options.trace));
    c.options.shape = {trace->num_qo_heads, trace->num_kv_heads, trace->head_dim, trace->sm_scale};
    if (c.options.type != ElementType::fp8_e4m3) c.options.type = trace->keys.type;
    c.options.query_type = trace->queries.type;
  }
  if (!c.options.sink_logits.empty()) c.options.shape.sink_logits = c.options.sink_logits.data();
  const CaseOptions& o = c.options;
  c.num_tokens.assign(o.num_tokens.begin(), o.num_tokens.end());
  std::mt19937_64 random(o.seed);
  std::normal_distribution<float> normal;
  const int heads = o.shape.num_kv_heads, d = o.shape.head_dim, most = *std::max_element(o.num_tokens.begin(), o.num_tokens.end());
  const int64_t row = c.row_bytes();
  PagedKvView& kv = c.kv;
  kv.type = o.type;
  int64_t pages = c.num_sequences(), page_tokens = most + 5;
  if (o.layout == CacheLayout::paged_table || o.layout == CacheLayout::paged_indptr) {
    const Pages dealt = deal_pages(o, c.page_indices, c.page_indptr, random);
    pages = dealt.count;
    page_tokens = kv.page_size = o.page_size;
    kv.pages_per_sequence = dealt.per_sequence;
  }
  const bool token_major = o.layout == CacheLayout::nhd || o.layout == CacheLayout::paged_indptr;
  kv.key_page_stride = kv.value_page_stride = page_tokens * heads * row;
  kv.key_token_stride = kv.value_token_stride = token_major ? heads * row : row;
  kv.key_head_stride = kv.value_head_stride = token_major ? row : page_tokens * row;
  // What no token lies in is NaN: bytes of ones are in every type.
  c.keys.assign(size_t(pages * page_tokens * heads * row), std::byte{0xff});
  c.values = c.keys;
  kv.keys = c.keys.data();
  kv.values = c.values.data();
  kv.num_tokens = c.num_tokens.data();
  if (!c.page_indices.empty()) kv.page_indices = c.page_indices.data();
  if (o.layout == CacheLayout::paged_indptr) kv.page_indptr = c.page_indptr.data();
  if (o.type == ElementType::fp8_e4m3) {  // other ones for every head; few elements are too large
    constexpr float kLargest = 448.0f;
    for (int h = 0; h < heads; ++h) {
      c.key_scales.push_back((trace != nullptr ? largest_element(*trace, false, h) : o.spread * 9.0f / float(h + 1)) / kLargest);
      c.value_scales.push_back((trace != nullptr ? largest_element(*trace, true, h) : 4.5f * float(h + 1)) / kLargest);
    }
    kv.key_scales = c.key_scales.data();
    kv.value_scales = c.value_scales.data();
  }
  for (int s = 0; s < c.num_sequences(); ++s) {
    const int n = o.num_tokens[size_t(s)], topics = std::max(1, n / 24);
    c.linear.emplace_back(size_t(2 * row * heads * n));
    if (trace != nullptr) {
      for (int h = 0; h < heads; ++h)
        for (int t = 0; t < n; ++t)
          for (const bool value : {false, true}) {
            const std::byte* from = value ? trace->kv_cache().value_row(t, h) : trace->kv_cache().key_row(t, h);
            const int element = element_bytes(trace->keys.type);
            for (int i = 0; i < d; ++i) c.set(value, s, t, h, i, load(from + i * element, trace->keys.type));
          }
      continue;
    }
    for (int h = 0; h < heads; ++h) {
      std::vector<float> key_topic(size_t(topics) * size_t(d)), value_topic(key_topic.size());
      for (float& x : key_topic) x = o.spread * 1.6f * normal(random);
      for (float& x : value_topic) x = normal(random);
      for (int t = 0; t < n; ++t) {
        const size_t topic = size_t(random() % uint64_t(topics)) * size_t(d);
        for (int i = 0; i < d; ++i) {
          c.set(false, s, t, h, i, key_topic[topic + size_t(i)] + o.spread * 0.6f * normal(random));
          c.set(true, s, t, h, i, value_topic[topic + size_t(i)] + 0.5f * normal(random));
        }
      }
    }
  }
  // Rounded as the GPU does when they meet keys.
  const int query_element = element_bytes(o.query_type);
  const int64_t num_queries = int64_t(c.num_sequences()) * o.num_rows * o.shape.num_qo_heads * d;
  c.queries.resize(size_t(num_queries * query_element));
  for (int64_t i = 0; i < num_queries; ++i) {
    std::byte rounded[4];
    store(rounded, operand_type(o.type), normal(random));
    store(c.queries.data() + i * query_element, o.query_type, load(rounded, operand_type(o.type)));
  }
  QueryView prompt;
  if (trace != nullptr) {
    const int64_t bytes = o.shape.num_qo_heads * int64_t(d) * query_element;
    for (int s = 0; s < c.num_sequences(); ++s)
      std::memcpy(c.queries.data() + s * bytes, trace->queries.data + (trace->num_queries - 1) * bytes, size_t(bytes));
    prompt = trace->prompt_query_view();
  }
  SerialExecutor executor;
  for (int s = 0; s < c.num_sequences(); ++s) {
    c.index.emplace_back(o.shape, o.index);
    if (trace != nullptr)
      c.index.back().build(c.sequence_kv(s), &prompt, executor);
    else
      c.index.back().build(c.sequence_kv(s), executor);
    if (o.erased.second > o.erased.first) c.index.back().erase(o.erased.first, o.erased.second);
  }
}
HostCase::~HostCase() = default;

const CaseOptions& HostCase::options() const { return content_->options; }
int HostCase::num_sequences() const { return content_->num_sequences(); }
const PagedKvView& HostCase::kv() const { return content_->kv; }
const std::vector<std::byte>& HostCase::keys() const { return content_->keys; }
const std::vector<std::byte>& HostCase::values() const { return content_->values; }
const std::vector<int32_t>& HostCase::page_indices() const { return content_->page_indices; }
const std::vector<int32_t>& HostCase::page_indptr() const { return content_->page_indptr; }
const std::vector<int32_t>& HostCase::num_tokens() const { return content_->num_tokens; }
const std::vector<std::byte>& HostCase::query_bytes() const { return content_->queries; }
const std::vector<float>& HostCase::key_scales() const { return content_->key_scales; }
const std::vector<float>& HostCase::value_scales() const { return content_->value_scales; }
const ClusterIndexView& HostCase::index(int sequence) const { return content_->index[size_t(sequence)].view(); }

QueryView HostCase::queries() const {
  const CaseOptions& o = content_->options;
  const int64_t row = int64_t(o.shape.head_dim) * element_bytes(o.query_type);
  return {content_->queries.data(), o.query_type, num_sequences() * o.num_rows, row * o.shape.num_qo_heads, row};
}

int HostCase::max_cluster_slots() const {
  int most = kClusterBlock;
  for (const ClusterIndex& index : content_->index) most = std::max(most, index.num_cluster_slots());
  return most;
}

void HostCase::poison(bool value, int sequence, int token, int kv_head, int coordinate, float with) {
  content_->set(value, sequence, token, kv_head, coordinate, with);
}

namespace {

DecodeLimits limits_of(const HostCase& host) {
  DecodeLimits limits;
  limits.max_sequences = host.num_sequences();
  for (const int n : host.num_tokens()) limits.max_tokens = std::max(limits.max_tokens, n);
  limits.max_clusters = host.max_cluster_slots();
  limits.max_rows = host.options().num_rows;
  return limits;
}

CaseResult empty_result(const HostCase& host) {
  const size_t heads = size_t(host.num_sequences() * host.options().num_rows) * size_t(host.options().shape.num_qo_heads);
  return {std::vector<float>(heads * size_t(host.options().shape.head_dim)), std::vector<float>(heads), std::vector<HeadReport>(heads)};
}

CaseResult decode_on_cpu(const HostCase& host, const DecodeOptions& options, const std::vector<SequenceView>& sequences) {
  CaseResult result = empty_result(host);
  Decoder decoder(host.options().shape, options, limits_of(host));
  SerialExecutor executor;
  const DecodeStatus status =
      decoder.decode(host.queries(), sequences, {result.output.data(), result.lse.data()}, result.reports, executor);
  if (status != DecodeStatus::ok) throw Error(ErrorCode::invalid_argument, status_message(status));
  return result;
}

}  // namespace

CaseResult HostCase::cpu_decode(const DecodeOptions& options) const {
  const Content& c = *content_;
  std::vector<SequenceView> sequences;
  for (int s = 0; s < num_sequences(); ++s)
    sequences.push_back({c.sequence_kv(s), &c.index[size_t(s)].view(), nullptr, 0, c.options.num_rows, c.options.causal});
  return decode_on_cpu(*this, options, sequences);
}
CaseResult HostCase::cpu_decode(const DecodeOptions& options, const ClusterIndexView& index) const {
  const Content& c = *content_;
  return decode_on_cpu(*this, options, {{c.sequence_kv(0), &index, nullptr, 0, c.options.num_rows, c.options.causal}});
}

std::vector<std::vector<int32_t>> HostCase::cpu_select(const DecodeOptions& options) const {
  const Content& c = *content_;
  std::vector<SequenceView> sequences;
  for (int s = 0; s < num_sequences(); ++s)
    sequences.push_back({c.sequence_kv(s), &c.index[size_t(s)].view(), nullptr, 0, c.options.num_rows, c.options.causal});
  const DecodeLimits limits = limits_of(*this);
  const size_t rows = size_t(num_sequences()) * size_t(c.options.shape.num_kv_heads);
  std::vector<int32_t> tokens(rows * size_t(limits.max_tokens)), counts(rows);
  Decoder decoder(c.options.shape, options, limits);
  SerialExecutor executor;
  const DecodeStatus status = decoder.select(queries(), sequences, {tokens.data(), counts.data(), limits.max_tokens}, {}, executor);
  if (status != DecodeStatus::ok) throw Error(ErrorCode::invalid_argument, status_message(status));
  std::vector<std::vector<int32_t>> lists;
  for (size_t r = 0; r < rows; ++r) {
    const auto begin = tokens.begin() + std::ptrdiff_t(r * size_t(limits.max_tokens));
    lists.emplace_back(begin, begin + counts[r]);
  }
  return lists;
}

namespace {

reference::Matrix matrix(const KvCacheView& kv, bool value, int kv_head, int d) {
  reference::Matrix rows(kv.num_tokens, d);
  const double scale = double(value ? kv.value_scale(kv_head) : kv.key_scale(kv_head));
  for (int t = 0; t < kv.num_tokens; ++t)
    for (int i = 0; i < d; ++i)
      rows.row(t)[i] =
          scale * double(load((value ? kv.value_row(t, kv_head) : kv.key_row(t, kv_head)) + i * element_bytes(kv.type), kv.type));
  return rows;
}

}  // namespace

CaseResult HostCase::reference(const std::vector<std::vector<int32_t>>& tokens) const {
  namespace reference = ::reference;
  const Content& c = *content_;
  const AttentionShape& shape = c.options.shape;
  const int group = shape.group_size(), d = shape.head_dim, num_rows = c.options.num_rows;
  CaseResult result = empty_result(*this);
  for (int s = 0; s < num_sequences(); ++s)
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      const KvCacheView kv = c.sequence_kv(s);
      const reference::Matrix keys = matrix(kv, false, h, d), values = matrix(kv, true, h, d);
      std::vector<bool> mask(size_t(kv.num_tokens), tokens.empty());
      if (!tokens.empty())
        for (const int32_t token : tokens[size_t(s * shape.num_kv_heads + h)]) mask[size_t(token)] = true;
      for (int i = c.options.erased.first; i < c.options.erased.second; ++i) mask[size_t(i)] = false;
      for (int i = 0; i < num_rows * group; ++i) {
        const int row = i / group, qo_head = h * group + i % group;
        std::vector<double> query(static_cast<size_t>(d));
        for (int x = 0; x < d; ++x)
          query[size_t(x)] =
              double(load(queries().row(s * num_rows + row, qo_head) + x * element_bytes(c.options.query_type), c.options.query_type));
        reference::Layer layer{double(shape.softmax_scale()), double(shape.logit_softcap)};
        if (shape.sink_logits != nullptr) layer.sink = double(shape.sink_logits[qo_head]);
        const auto seen = reference::visible_tokens(kv.num_tokens, num_rows, row, c.options.causal, shape.sliding_window, mask);
        const auto out = reference::attention(query.data(), keys, values, layer, seen);
        const size_t at = size_t((s * num_rows + row) * shape.num_qo_heads + qo_head);
        for (int x = 0; x < d; ++x) result.output[at * size_t(d) + size_t(x)] = float(out.output[size_t(x)]);
        result.lse[at] = float(out.lse);
      }
    }
  return result;
}

std::vector<double> HostCase::attained(const std::vector<std::vector<int32_t>>& tokens) const {
  const CaseResult read = reference(tokens), all = reference();
  std::vector<double> ratios;
  for (size_t i = 0; i < all.lse.size(); ++i) ratios.push_back(std::exp(double(read.lse[i]) - double(all.lse[i])));
  return ratios;
}

}  // namespace quorum::test
