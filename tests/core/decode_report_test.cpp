// Paths, reports and the messages of statuses.
#include "quorum/core/decode_report.hpp"

#include <doctest/doctest.h>

#include <set>
#include <string>

using namespace quorum;

TEST_CASE("every path but the two sparse ones is dense") {
  CHECK_FALSE(is_dense(DecodePath::sparse));
  CHECK_FALSE(is_dense(DecodePath::sparse_tokens));
  for (const DecodePath path :
       {DecodePath::dense_by_length, DecodePath::dense_by_target, DecodePath::dense_by_policy, DecodePath::dense_by_numerics,
        DecodePath::dense_by_cost, DecodePath::dense_by_capacity, DecodePath::dense_by_view})
    CHECK(is_dense(path));
}

TEST_CASE("messages name function, argument and rule") {
  CHECK(std::string(status_message(DecodeStatus::ok)) == "ok");
  CHECK(std::string(status_message(DecodeStatus::batch_mismatch)) == "decode: queries.num_rows must be the number of the sequences' rows");
  CHECK(std::string(status_message(DecodeStatus::too_many_sequences)) == "decode: sequences must be at most limits.max_sequences");
  CHECK(std::string(status_message(DecodeStatus::too_many_tokens)) == "decode: kv.num_tokens must be at most limits.max_tokens");
  CHECK(std::string(status_message(DecodeStatus::too_many_workers)) == "decode: executor.num_workers() must be at most limits.num_workers");
  CHECK(std::string(status_message(DecodeStatus::page_size_mismatch)) == "decode: kv.page_size must be at least 1 with pages");
  CHECK(std::string(status_message(DecodeStatus::scales_mismatch)) ==
        "decode: kv.key_scales and kv.value_scales must be null unless keys and values are fp8_e4m3");
  CHECK(std::string(status_message(DecodeStatus::head_dim_mismatch)) ==
        "decode: head_dim must be a multiple of 32 with keys, values or queries in q8_0");
  CHECK(std::string(status_message(DecodeStatus::index_mismatch)) ==
        "decode: index must have the plan's heads and head_dim and cover no more tokens than the cache");
  CHECK(std::string(status_message(DecodeStatus::codes_missing)) == "decode: index must be built with residual_codes to read tokens");
  CHECK(std::string(status_message(DecodeStatus::variance_mismatch)) ==
        "decode: index must be built with VarianceModel::diagonal to decode with it");
  CHECK(std::string(status_message(DecodeStatus::report_too_small)) == "decode: reports must have num_rows * num_qo_heads entries or none");
  CHECK(std::string(status_message(DecodeStatus::selection_too_small)) ==
        "select: out.capacity must be at least the tokens chosen for every KV head");
  CHECK(std::string(status_message(DecodeStatus::scope_mismatch)) == "select: options.scope must be group");
  CHECK(std::string(status_message(DecodeStatus::type_mismatch)) ==
        "decode: kv.type must be the plan's, and queries.type f32, f16 or bf16");
  CHECK(std::string(status_message(DecodeStatus::launch_failed)) ==
        "decode: every kernel must launch, cudaGetLastError() says why one did not");
  CHECK(std::string(status_message(DecodeStatus::too_many_rows)) == "decode: a sequence's num_rows must be 1 to limits.max_rows");
  CHECK(std::string(status_message(DecodeStatus::rows_mismatch)) == "select: a sequence's num_rows must be 1");
}

TEST_CASE("every status has its own message, other values have one too") {
  std::set<std::string> messages;
  for (int status = 0; status < 256; ++status) messages.insert(status_message(DecodeStatus(status)));
  CHECK(messages.count("decode: unknown status") == 1);
  CHECK(messages.size() == 19);  // eighteen statuses and the unknown
}

TEST_CASE("a fresh report is that of a complete reading") {
  const HeadReport report;
  CHECK(report.attained_ratio_estimate == 1.0f);
  CHECK(report.attained_ratio_lower_bound == 1.0f);
  CHECK(report.confidence == 1.0f);
  CHECK(report.error_estimate == 0.0f);
  CHECK(report.tokens_coded == 0);
}

TEST_CASE("stage times add up") {
  const StageTimes times{1.0, 2.0, 4.0, 8.0, 16.0, 32.0};
  CHECK(times.total() == 63.0);
}
