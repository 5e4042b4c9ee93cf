// The operator library `quorum`: schemas, CPU kernels and the two classes. No Python is included: torch.ops.load_library loads it.
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "examples/torch/csrc/cluster_index.hpp"
#include "examples/torch/csrc/decoder.hpp"
#include "quorum/core/merge_attention.hpp"
#include "quorum/cpu/sparse_attention.hpp"

namespace quorum::torch_adapter {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// What a report tensor says of each query head, in this order.
struct ReportColumn {
  const char* name;
  double (*of)(const HeadReport&);
};
constexpr ReportColumn kColumns[] = {
    {"path", [](const HeadReport& r) { return double(r.path); }},
    {"tokens_read", [](const HeadReport& r) { return double(r.tokens_read); }},
    {"tokens_sampled", [](const HeadReport& r) { return double(r.tokens_sampled); }},
    {"bytes_read", [](const HeadReport& r) { return double(r.bytes_read); }},
    {"bytes_dense", [](const HeadReport& r) { return double(r.bytes_dense); }},
    {"attained_ratio_estimate", [](const HeadReport& r) { return double(r.attained_ratio_estimate); }},
    {"attained_ratio_lower_bound", [](const HeadReport& r) { return double(r.attained_ratio_lower_bound); }},
    {"error_estimate", [](const HeadReport& r) { return double(r.error_estimate); }},
};

std::vector<std::string> report_columns() {
  std::vector<std::string> names;
  for (const ReportColumn& column : kColumns) names.emplace_back(column.name);
  return names;
}

// The tensors of a call, checked against each other.
struct Call {
  const char* function;
  QueryTensor query;
  KvTensors kv;
  BatchNumbers begins, ends;
  MaskTensor mask;
  bool causal;

  Call(const char* name, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const OptionalTensor& first,
       const OptionalTensor& last, const OptionalTensor& visible, bool is_causal)
      : function(name),
        query(q, name),
        kv(k, v, name),
        begins(first, query.batch(), 0, name, "begins"),
        ends(last, query.batch(), kv.num_tokens(), name, "ends"),
        mask(visible, query.batch(), query.num_rows(), kv.num_tokens(), name),
        causal(is_causal) {
    check(kv.batch() == query.batch(), function, "key.size(0)", "the query's batch", kv.batch());
    check(kv.head_dim() == query.head_dim(), function, "key.size(3)", "the query's head_dim", kv.head_dim());
    const bool groups = kv.num_kv_heads() > 0 && query.num_qo_heads() % kv.num_kv_heads() == 0;
    check(groups, function, "query.size(1)", "a multiple of the number of KV heads", query.num_qo_heads());
  }

  AttentionShape shape(double sm_scale, double logit_softcap) const {
    return {query.num_qo_heads(), kv.num_kv_heads(), query.head_dim(), float(sm_scale), float(logit_softcap)};
  }

  // A view for each entry of the batch, with its mask's bits in step.mask_words.
  void fill(Step& step, const BatchNumbers& handles) const {
    int64_t words = 0;
    for (int b = 0; b < query.batch(); ++b) {
      const int64_t begin = begins[b], end = ends[b];
      check(begin >= 0 && begin <= end && end <= kv.num_tokens(), function, "begins and ends", "0 <= begin <= end <= tokens", end);
      step.indexes.push_back(find_index(handles[b], function));
      SequenceView sequence{kv.sequence(b, int(begin), int(end)), step.indexes.back() ? &step.indexes.back()->view() : nullptr};
      sequence.num_rows = query.num_rows();
      sequence.causal = causal;
      sequence.mask_stride = mask.row_stride == 0 ? 0 : mask_words(end - begin);
      words += mask_words(end - begin) * (mask.row_stride == 0 ? 1 : query.num_rows());
      step.sequences.push_back(sequence);
    }
    if (mask.data != nullptr) pack_masks(step, words);
  }

 private:
  void pack_masks(Step& step, int64_t words) const {
    if (int64_t(step.mask_words.size()) < words) step.mask_words.resize(size_t(words));
    uint64_t* next = step.mask_words.data();
    for (int b = 0; b < query.batch(); ++b) {
      SequenceView& sequence = step.sequences[size_t(b)];
      sequence.mask = next;
      for (int r = 0; r < (sequence.mask_stride == 0 ? 1 : query.num_rows()); ++r) {
        pack_bits(mask.row(b, r) + begins[b], sequence.kv.num_tokens, next);
        next += mask_words(sequence.kv.num_tokens);
      }
    }
  }
};

// Outputs [batch][row][qo_head][head_dim] of the query's type and lse [batch][row][qo_head].
struct Outputs {
  at::Tensor output, lse;

  explicit Outputs(const Call& call)
      : output(at::empty({call.query.batch(), call.query.num_rows(), call.query.num_qo_heads(), call.query.head_dim()}, at::kFloat)),
        lse(at::empty({call.query.batch(), call.query.num_rows(), call.query.num_qo_heads()}, at::kFloat)) {}
  AttentionOutput view() { return {output.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>()}; }
  at::Tensor output_as(const at::Tensor& query) const { return output.to(query.scalar_type()); }
};

at::Tensor report_tensor(const Call& call, std::span<const HeadReport> reports) {
  at::Tensor out =
      at::empty({call.query.batch(), call.query.num_rows(), call.query.num_qo_heads(), int64_t(std::size(kColumns))}, at::kDouble);
  double* to = out.mutable_data_ptr<double>();
  for (const HeadReport& report : reports)
    for (const ReportColumn& column : kColumns) *to++ = column.of(report);
  return out;
}

void check_shape(const Call& call, const AttentionShape& shape) {
  check(call.query.num_qo_heads() == shape.num_qo_heads, call.function, "query.size(1)", "the decoder's num_qo_heads",
        call.query.num_qo_heads());
  check(call.kv.num_kv_heads() == shape.num_kv_heads, call.function, "key.size(1)", "the decoder's num_kv_heads", call.kv.num_kv_heads());
  check(call.query.head_dim() == shape.head_dim, call.function, "query.size(3)", "the decoder's head_dim", call.query.head_dim());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> decode(int64_t decoder, const at::Tensor& query, const at::Tensor& key,
                                                      const at::Tensor& value, const OptionalTensor& indexes, const OptionalTensor& begins,
                                                      const OptionalTensor& ends, const OptionalTensor& mask, bool causal) {
  const Call call("decode", query, key, value, begins, ends, mask, causal);
  DecoderHolder& holder = find_decoder(decoder, call.function);
  check_shape(call, holder.shape());
  const BatchNumbers handles(indexes, call.query.batch(), 0, call.function, "indexes");
  Outputs outputs(call);
  at::Tensor report;
  holder.run([&](Step& step) { call.fill(step, handles); },
             [&](Decoder& plan, Step& step, Executor& executor) {
               step.queries = call.query.view();
               step.reports.resize(size_t(step.queries.num_rows) * size_t(holder.shape().num_qo_heads));
               const DecodeStatus status = plan.decode(step.queries, step.sequences, outputs.view(), step.reports, executor);
               TORCH_CHECK_VALUE(status == DecodeStatus::ok, status_message(status));
               holder.count(step.reports);
               report = report_tensor(call, step.reports);
             });
  return {outputs.output_as(query), outputs.lse, report};
}

std::tuple<at::Tensor, at::Tensor> select(int64_t decoder, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                          int64_t capacity, const OptionalTensor& indexes, const OptionalTensor& begins,
                                          const OptionalTensor& ends, const OptionalTensor& mask) {
  const Call call("select", query, key, value, begins, ends, mask, true);
  DecoderHolder& holder = find_decoder(decoder, call.function);
  check_shape(call, holder.shape());
  check(capacity >= 0 && capacity <= kMaxCount, call.function, "capacity", "0 to 2^30", capacity);
  const BatchNumbers handles(indexes, call.query.batch(), 0, call.function, "indexes");
  at::Tensor tokens = at::full({call.kv.batch(), call.kv.num_kv_heads(), capacity}, -1, at::kInt);
  at::Tensor counts = at::zeros({call.kv.batch(), call.kv.num_kv_heads()}, at::kInt);
  holder.run([&](Step& step) { call.fill(step, handles); },
             [&](Decoder& plan, Step& step, Executor& executor) {
               step.queries = call.query.view();
               const SelectionOutput out{tokens.mutable_data_ptr<int32_t>(), counts.mutable_data_ptr<int32_t>(), capacity};
               const DecodeStatus status = plan.select(step.queries, step.sequences, out, {}, executor);
               const bool done = status == DecodeStatus::ok || status == DecodeStatus::selection_too_small;
               TORCH_CHECK_VALUE(done, status_message(status));
             });
  return {tokens, counts};
}

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double sm_scale,
                                             double logit_softcap, const OptionalTensor& begins, const OptionalTensor& ends,
                                             const OptionalTensor& mask, bool causal) {
  const Call call("attention", query, key, value, begins, ends, mask, causal);
  Outputs outputs(call);
  Step step;
  call.fill(step, BatchNumbers({}, call.query.batch(), 0, call.function, "indexes"));
  OpenMpExecutor executor(num_workers());
  translate_errors(
      [&] { dense_attention(call.shape(sm_scale, logit_softcap), call.query.view(), step.sequences, outputs.view(), executor); });
  return {outputs.output_as(query), outputs.lse};
}

std::tuple<at::Tensor, at::Tensor> attend_selection(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                                    const at::Tensor& tokens, const at::Tensor& counts, double sm_scale) {
  const Call call("attend_selection", query, key, value, {}, {}, {}, true);
  check(call.query.num_rows() == 1, call.function, "query.size(2)", "1", call.query.num_rows());
  const auto fits = [&](const at::Tensor& t, int dims) {
    return t.dim() == dims && t.size(0) == call.kv.batch() && t.size(1) == call.kv.num_kv_heads() && t.scalar_type() == at::kInt &&
           t.is_cpu();
  };
  check(fits(tokens, 3), call.function, "tokens", "int32 [batch, kv_head, capacity]", tokens.sizes());
  check(fits(counts, 2), call.function, "counts", "int32 [batch, kv_head]", counts.sizes());
  const at::Tensor rows = tokens.contiguous(), lengths = counts.contiguous();
  const int64_t capacity = rows.size(2);
  for (int64_t r = 0; r < lengths.numel(); ++r) {
    const int32_t length = lengths.const_data_ptr<int32_t>()[r];
    check(length >= 0 && length <= capacity, call.function, "counts", "0 to the capacity of tokens", length);
    for (int64_t i = 0; i < length; ++i) {
      const int32_t token = rows.const_data_ptr<int32_t>()[r * capacity + i];
      check(token >= 0 && token < call.kv.num_tokens(), call.function, "tokens", "rows of the cache within the count", token);
    }
  }
  Outputs outputs(call);
  std::vector<KvCacheView> caches;
  for (int b = 0; b < call.kv.batch(); ++b) caches.push_back(call.kv.sequence(b, 0, call.kv.num_tokens()));
  const SelectionView selection{rows.const_data_ptr<int32_t>(), nullptr, lengths.const_data_ptr<int32_t>(), capacity, call.kv.batch(),
                                call.kv.num_kv_heads()};
  OpenMpExecutor executor(num_workers());
  translate_errors([&] { sparse_attention(call.shape(sm_scale, 0.0), call.query.view(), caches, selection, outputs.view(), executor); });
  return {outputs.output_as(query), outputs.lse};
}

std::tuple<at::Tensor, at::Tensor> merge(const at::Tensor& output_a, const at::Tensor& lse_a, const at::Tensor& output_b,
                                         const at::Tensor& lse_b) {
  check(output_a.dim() >= 1 && output_a.sizes() == output_b.sizes(), "merge", "output_b", "of the shape of output_a", output_b.sizes());
  const auto rows = output_a.sizes().slice(0, size_t(output_a.dim() - 1));
  check(lse_a.sizes() == rows && lse_b.sizes() == rows, "merge", "lse_a and lse_b", "output_a's shape without head_dim", lse_b.sizes());
  const auto floats = [](const at::Tensor& t) { return t.to(at::kFloat).contiguous(); };
  const at::Tensor out_a = floats(output_a), out_b = floats(output_b), a = floats(lse_a), b = floats(lse_b);
  at::Tensor output = at::empty_like(out_a), lse = at::empty_like(a);
  merge_attention(out_a.const_data_ptr<float>(), a.const_data_ptr<float>(), out_b.const_data_ptr<float>(), b.const_data_ptr<float>(),
                  a.numel(), int(output_a.size(-1)), output.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>());
  return {output.to(output_a.scalar_type()), lse};
}

// For each batch entry and row: the first visible token, one beyond the last, and how many there are; three zeros without any.
at::Tensor mask_ranges(const at::Tensor& mask) {
  check(mask.dim() == 4, "mask_ranges", "mask", "[batch, 1, row, token]", mask.sizes());
  const int batch = int(mask.size(0)), num_rows = int(mask.size(2)), num_tokens = int(mask.size(3));
  const MaskTensor rows(mask, batch, num_rows, num_tokens, "mask_ranges");
  at::Tensor out = at::zeros({batch, num_rows, 3}, at::kLong);
  int64_t* to = out.mutable_data_ptr<int64_t>();
  for (int b = 0; b < batch; ++b)
    for (int r = 0; r < num_rows; ++r, to += 3) {
      const bool* row = rows.row(b, r);
      const auto* bytes = reinterpret_cast<const uint8_t*>(row);
      const void* first = std::memchr(row, 1, size_t(num_tokens));
      if (first == nullptr) continue;
      int64_t end = num_tokens, count = 0;
      while (bytes[end - 1] == 0) --end;
      for (int64_t t = 0; t < end; ++t) count += bytes[t];
      to[0] = static_cast<const uint8_t*>(first) - bytes;
      to[1] = end;
      to[2] = count;
    }
  return out;
}

// Appends to the indexes what their caches hold beyond them.
void append(const at::Tensor& key, const at::Tensor& value, const std::vector<c10::intrusive_ptr<IndexHolder>>& indexes,
            const OptionalTensor& begins, const OptionalTensor& ends) {
  const KvTensors kv(key, value, "append");
  check(int(indexes.size()) == kv.batch(), "append", "indexes", "one for each entry of the batch", indexes.size());
  const BatchNumbers first(begins, kv.batch(), 0, "append", "begins"), last(ends, kv.batch(), kv.num_tokens(), "append", "ends");
  for (int b = 0; b < kv.batch(); ++b) {
    check(first[b] >= 0 && first[b] <= last[b] && last[b] <= kv.num_tokens(), "append", "begins and ends", "0 <= begin <= end <= tokens",
          last[b]);
    indexes[size_t(b)]->append(key[b].slice(1, first[b], last[b]), value[b].slice(1, first[b], last[b]));
  }
}

}  // namespace

TORCH_LIBRARY(quorum, m) {
  m.class_<IndexHolder>("ClusterIndex")
      .def(torch::init<int64_t, int64_t, int64_t, double, const OptionDict&>())
      .def("build", &IndexHolder::build)
      .def("append", &IndexHolder::append)
      .def("truncate", &IndexHolder::truncate)
      .def("erase", &IndexHolder::erase)
      .def("overwrite", &IndexHolder::overwrite)
      .def("invalidate", &IndexHolder::invalidate)
      .def("fork", &IndexHolder::fork)
      .def("save", &IndexHolder::save)
      .def("load", &IndexHolder::load)
      .def("num_tokens", &IndexHolder::num_tokens)
      .def("num_live_tokens", &IndexHolder::num_live_tokens)
      .def("bytes", &IndexHolder::bytes)
      .def("handle", &IndexHolder::handle);
  m.class_<DecoderHolder>("Decoder")
      .def(torch::init<int64_t, int64_t, int64_t, double, double, const OptionDict&>())
      .def("handle", &DecoderHolder::handle)
      .def("statistics", &DecoderHolder::statistics)
      .def("reset_statistics", &DecoderHolder::reset_statistics);
  m.def("report_columns() -> str[]", [] { return report_columns(); });
  m.def("total_index_bytes(__torch__.torch.classes.quorum.ClusterIndex[] indexes) -> int", &total_index_bytes);
  m.def(
      "append(Tensor key, Tensor value, __torch__.torch.classes.quorum.ClusterIndex[] indexes, Tensor? begins=None, Tensor? ends=None) -> "
      "()");
  m.def(
      "decode(int decoder, Tensor query, Tensor key, Tensor value, Tensor? indexes=None, Tensor? begins=None, Tensor? ends=None, "
      "Tensor? mask=None, bool causal=True) -> (Tensor output, Tensor lse, Tensor report)");
  m.def(
      "select(int decoder, Tensor query, Tensor key, Tensor value, SymInt capacity, Tensor? indexes=None, Tensor? begins=None, "
      "Tensor? ends=None, Tensor? mask=None) -> (Tensor tokens, Tensor counts)");
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, float sm_scale=0.0, float logit_softcap=0.0, Tensor? begins=None, "
      "Tensor? ends=None, Tensor? mask=None, bool causal=True) -> (Tensor output, Tensor lse)");
  m.def(
      "attend_selection(Tensor query, Tensor key, Tensor value, Tensor tokens, Tensor counts, float sm_scale=0.0) -> (Tensor output, "
      "Tensor lse)");
  m.def("merge(Tensor output_a, Tensor lse_a, Tensor output_b, Tensor lse_b) -> (Tensor output, Tensor lse)");
  m.def("mask_ranges(Tensor mask) -> Tensor");
}

TORCH_LIBRARY_IMPL(quorum, CPU, m) {
  m.impl("append", &append);
  m.impl("decode", &decode);
  m.impl("select", &select);
  m.impl("attention", &attention);
  m.impl("attend_selection", &attend_selection);
  m.impl("merge", &merge);
  m.impl("mask_ranges", &mask_ranges);
}

}  // namespace quorum::torch_adapter
