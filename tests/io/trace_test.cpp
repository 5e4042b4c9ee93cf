#include "quorum/io/trace.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <map>

#include "io_test_support.hpp"

using quorum::ElementType;
using quorum::Error;
using quorum::io::SafetensorsFile;
using quorum::io::Trace;
using namespace quorum::test;

namespace {

struct TestTensor {
  std::string dtype;
  std::string shape;
  std::string data;
};

// A trace of 3 tokens, 1 KV head, 2 query heads, head_dim 2, 2 queries, 1 prompt query; f16 holds 1.0 everywhere.
struct TestTrace {
  std::map<std::string, TestTensor> tensors;
  std::string metadata = R"("sm_scale":"0.5","model":"m","layer":"7","layout":"NHD")";

  TestTrace() {
    tensors["keys"] = {"F16", "[3,1,2]", ones(6)};
    tensors["values"] = {"F16", "[3,1,2]", ones(6)};
    tensors["queries"] = {"F16", "[2,2,2]", ones(8)};
    tensors["prompt_queries"] = {"F16", "[1,2,2]", ones(4)};
    tensors["query_positions"] = {"I32", "[2]", raw(1) + raw(2)};
  }
  static std::string ones(int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += raw(uint16_t(0x3c00));
    return out;
  }
  std::string bytes() const {
    std::string header = "{\"__metadata__\":{" + metadata + "}", data;
    for (const auto& [name, tensor] : tensors) {
      header += ",\"" + name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":" + tensor.shape + ",\"data_offsets\":[" +
                std::to_string(data.size()) + "," + std::to_string(data.size() + tensor.data.size()) + "]}";
      data += tensor.data;
    }
    return safetensors_bytes(header + "}", data);
  }
  Trace read() const { return Trace::from_file(SafetensorsFile::parse(as_bytes(bytes()), "folder/t.safetensors")); }
  std::string failure() const {
    return message_of([&] { read(); });
  }
};

std::string failure_with(const std::string& name, const TestTensor& tensor) {
  TestTrace trace;
  trace.tensors[name] = tensor;
  return trace.failure();
}

}  // namespace

TEST_CASE("trace: sizes, views and metadata of a good file") {
  Trace first = TestTrace().read();
  const Trace trace = std::move(first);
  CHECK(trace.name == "t");
  CHECK(trace.model == "m");
  CHECK(trace.layer == "7");
  CHECK(trace.sm_scale == 0.5f);
  CHECK(trace.num_tokens == 3);
  CHECK(trace.num_kv_heads == 1);
  CHECK(trace.num_qo_heads == 2);
  CHECK(trace.head_dim == 2);
  CHECK(trace.num_queries == 2);
  CHECK(trace.num_prompt_queries == 1);
  CHECK(trace.query_positions == std::vector<int32_t>{1, 2});
  const quorum::KvCacheView kv = trace.kv_cache();
  CHECK(kv.num_tokens == 3);
  CHECK(kv.type == ElementType::f16);
  CHECK(kv.key_row(2, 0) == trace.keys.data + 8);
  const quorum::QueryView queries = trace.query_view();
  CHECK(queries.num_rows == 2);
  CHECK(queries.row(1, 1) == trace.queries.data + 12);
  CHECK(trace.prompt_query_view().num_rows == 1);
}

TEST_CASE("trace: unaligned tensors are copied to aligned memory") {
  TestTrace odd;
  odd.tensors["a"] = {"U8", "[1]", "x"};  // sorts first, so everything after it lies at odd addresses
  const Trace trace = odd.read();
  CHECK(reinterpret_cast<uintptr_t>(trace.keys.data) % 2 == 0);
  uint16_t last = 0;
  std::memcpy(&last, trace.kv_cache().key_row(2, 0) + 2, 2);
  CHECK(last == 0x3c00);
}

TEST_CASE("trace: prompt queries are optional, other element types are read") {
  TestTrace plain;
  plain.tensors.erase("prompt_queries");
  CHECK(plain.read().num_prompt_queries == 0);
  TestTrace wide;
  const std::string six = raw(1.0f) + raw(2.0f) + raw(3.0f) + raw(4.0f) + raw(5.0f) + raw(6.0f);
  wide.tensors["keys"] = wide.tensors["values"] = {"F32", "[3,1,2]", six};
  wide.tensors["queries"].dtype = "BF16";
  CHECK(wide.read().keys.type == ElementType::f32);
  CHECK(wide.read().queries.type == ElementType::bf16);
}

TEST_CASE("trace: every fault names the file and the field") {
  const auto contains = [](const std::string& message, const std::string& part) {
    CAPTURE(message);
    CHECK(message.find("folder/t.safetensors: ") != std::string::npos);
    CHECK(message.find(part) != std::string::npos);
  };
  using T = TestTrace;
  contains(failure_with("keys", {"F16", "[3,2]", T::ones(6)}), "tensor 'keys', shape, must be of 3 dimensions");
  contains(failure_with("keys", {"F16", "[0,1,2]", ""}), "tensor 'keys', shape, must be of sizes 1 to 2147483647, got [0, 1, 2]");
  contains(failure_with("keys", {"I16", "[3,1,2]", T::ones(6)}), "tensor 'keys', dtype, must be F32, F16 or BF16, got I16");
  contains(failure_with("keys", {"F16", "[3,1,2]", T::ones(5) + raw(uint16_t(0x7c00))}),
           "tensor 'keys', element 5, must be finite, got inf");
  contains(failure_with("queries", {"F16", "[2,2,2]", raw(uint16_t(0xfe00)) + T::ones(7)}), "tensor 'queries', element 0, must be finite");
  contains(failure_with("values", {"F16", "[2,1,2]", T::ones(4)}),
           "tensor 'values', number of tokens, must be that of the keys (3), got 2");
  contains(failure_with("values", {"F16", "[3,2,1]", T::ones(6)}), "tensor 'values', number of heads, must be that of the keys (1), got 2");
  contains(failure_with("values", {"F16", "[3,1,1]", T::ones(3)}), "tensor 'values', head_dim, must be that of the keys (2), got 1");
  contains(failure_with("values", {"BF16", "[3,1,2]", T::ones(6)}), "tensor 'values', dtype, must be f16 like the keys, got bf16");
  contains(failure_with("queries", {"F16", "[2,2,1]", T::ones(4)}), "tensor 'queries', head_dim, must be that of the keys (2), got 1");
  contains(failure_with("prompt_queries", {"F16", "[1,1,2]", T::ones(2)}), "tensor 'prompt_queries', number of heads");
  contains(failure_with("prompt_queries", {"F16", "[1,2,1]", T::ones(2)}), "tensor 'prompt_queries', head_dim");
  contains(failure_with("query_positions", {"I64", "[1]", raw(int64_t(1))}), "tensor 'query_positions', dtype, must be I32, got I64");
  contains(failure_with("query_positions", {"I32", "[1]", raw(1)}),
           "tensor 'query_positions', shape, must be [2] like the queries, got [1]");
  contains(failure_with("query_positions", {"I32", "[2]", raw(1) + raw(3)}), "tensor 'query_positions', element 1, must be 0 to 2, got 3");
  contains(failure_with("query_positions", {"I32", "[2]", raw(-1) + raw(2)}),
           "tensor 'query_positions', element 0, must be 0 to 2, got -1");
  TestTrace heads;
  heads.tensors["keys"] = heads.tensors["values"] = {"F16", "[1,3,2]", T::ones(6)};
  contains(heads.failure(), "tensor 'queries', number of heads, must be a multiple of the keys' 3, got 2");
  TestTrace missing;
  missing.tensors.erase("queries");
  contains(missing.failure(), "tensor 'queries' must be present");
}

TEST_CASE("trace: metadata") {
  for (const char* scale : {"", "0", "-1", "nan", "inf", "0.5x", " 0.5", "abc"}) {
    TestTrace trace;
    trace.metadata = "\"sm_scale\":\"" + std::string(scale) + "\"";
    CAPTURE(scale);
    CHECK(trace.failure().find("folder/t.safetensors: '__metadata__', sm_scale, must be a positive number, got '") != std::string::npos);
  }
  TestTrace without;
  without.metadata = "";
  CHECK(without.failure().find("sm_scale, must be a positive number, got ''") != std::string::npos);
  TestTrace layout;
  layout.metadata = R"("sm_scale":"1","layout":"HND")";
  CHECK(layout.failure().find("'__metadata__', layout, must be NHD, got 'HND'") != std::string::npos);
}

TEST_CASE("trace: mutated files never do worse than an Error") {
  Mutator mutator(TestTrace().bytes(), 4);
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string mutated = mutator.next();
    try {
      accepted += Trace::from_file(SafetensorsFile::parse(as_bytes(mutated), "fuzz")).num_tokens > 0 ? 1 : 0;
    } catch (const Error&) {
    }
  }
  CHECK(accepted > 0);
}
