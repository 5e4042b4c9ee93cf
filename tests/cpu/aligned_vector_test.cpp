// Arrays on cache lines.
#include "quorum/cpu/aligned_vector.hpp"

#include <doctest/doctest.h>

#include "quorum/core/element.hpp"

using namespace quorum;
using cpu::AlignedVector;

TEST_CASE_TEMPLATE("elements start on a cache line at every size", T, uint8_t, int32_t, float, double, f16) {
  for (const size_t size : {1, 2, 15, 16, 17, 63, 64, 65, 1000}) {
    const AlignedVector<T> v(size);
    CHECK(reinterpret_cast<uintptr_t>(v.data()) % cpu::kCacheLine == 0);
    CHECK(cpu::content_bytes(v) == int64_t(size * sizeof(T)));
  }
}

TEST_CASE("it stays aligned when it grows, is copied and moved") {
  AlignedVector<float> v;
  CHECK(cpu::content_bytes(v) == 0);
  for (int i = 0; i < 1000; ++i) {
    v.push_back(float(i));
    REQUIRE(reinterpret_cast<uintptr_t>(v.data()) % cpu::kCacheLine == 0);
  }
  const AlignedVector<float> copy = v;
  CHECK(copy == v);
  CHECK(copy.data() != v.data());
  CHECK(reinterpret_cast<uintptr_t>(copy.data()) % cpu::kCacheLine == 0);
  const float* elements = v.data();
  const AlignedVector<float> moved = std::move(v);
  CHECK(moved.data() == elements);
}

TEST_CASE("elements are zero at first") {
  const AlignedVector<int32_t> v(100);
  CHECK(v == AlignedVector<int32_t>(100, 0));
}

TEST_CASE("large arrays start on a huge page, and advice touches nothing") {
  const AlignedVector<float> large(kHugePage / 4), small(kHugePage / 4 - 1);
  CHECK(reinterpret_cast<uintptr_t>(large.data()) % kHugePage == 0);
  CHECK(reinterpret_cast<uintptr_t>(small.data()) % cpu::kCacheLine == 0);
  AlignedVector<uint8_t> bytes(3 * kHugePage, 7);
  for (const size_t offset : {size_t(0), size_t(1), kHugePage - 1}) advise_huge_pages(bytes.data() + offset, bytes.size() - offset);
  advise_huge_pages(bytes.data() + 1, 100);  // holds no whole page
  advise_huge_pages(nullptr, 0);
  CHECK(bytes == AlignedVector<uint8_t>(3 * kHugePage, 7));
}
