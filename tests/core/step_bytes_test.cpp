#include "quorum/core/step_bytes.hpp"

#include <doctest/doctest.h>

using namespace quorum;

TEST_CASE("step bytes: a dense step reads every key and value") {
  const StoredHead head{64, ElementType::f16};
  CHECK(head.row_bytes() == 128);
  CHECK(head.dense_bytes(1000) == 256000);
  CHECK(StoredHead{64, ElementType::f32}.dense_bytes(1) == 512);
  CHECK(StoredHead{64, ElementType::fp8_e4m3}.dense_bytes(10) == 2 * 64 * 10);
  CHECK(StoredHead{64, ElementType::q8_0}.dense_bytes(10) == 2 * 68 * 10);
}

TEST_CASE("step bytes: a sparse step, added up by hand") {
  StoredHead head{64, ElementType::bf16, IndexStorage::int8, VarianceModel::shared, 32};
  HeadReport report;
  report.tokens_read = 10;
  report.tokens_scored = 12;
  report.tokens_sampled = 3;
  report.clusters_used = 5;
  // rows, numbers of tokens, metric, centroids with scale, size and spread, value means, codes
  CHECK(head.sparse_bytes(report, 8, 16) == 128 * 25 + 4 * 8 + (2 * 64 * 64 + 12 * 64) + 32 * 76 + 5 * 68 + 16 * 10);
  head.storage = IndexStorage::f32;
  head.variance = VarianceModel::none;
  CHECK(head.sparse_bytes(report, 0, 0) == 128 * 25 + (2 * 64 * 64 + 12 * 64) + 32 * 260 + 5 * 256);
}
