// parse_json: what it accepts is within its limits, survives being written and read again, and no beginning of it is accepted too.
#include "quorum/io/json.hpp"

#include <algorithm>

#include "tests/fuzz/mutate.hpp"

using namespace quorum;
using fuzz::expect;
using io::JsonValue;

namespace {

constexpr io::JsonLimits kTight{3, 12};

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    constexpr char kDigits[] = "0123456789abcdef";
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      out += std::string("\\u00") + kDigits[byte >> 4] + kDigits[byte & 15];
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + '"';
}

std::string written(const JsonValue& value) {
  switch (value.kind) {
    case JsonValue::Kind::null:
      return "null";
    case JsonValue::Kind::boolean:
      return value.boolean ? "true" : "false";
    case JsonValue::Kind::number:
      return value.text;
    case JsonValue::Kind::string:
      return quoted(value.text);
    default:
      break;
  }
  const bool is_object = value.kind == JsonValue::Kind::object;
  std::string out(1, is_object ? '{' : '[');
  for (size_t i = 0; i < value.items.size(); ++i) {
    if (i > 0) out += ',';
    if (is_object) out += quoted(value.keys[i]) + ':';
    out += written(value.items[i]);
  }
  return out + (is_object ? '}' : ']');
}

bool same(const JsonValue& a, const JsonValue& b) {
  return a.kind == b.kind && a.boolean == b.boolean && a.text == b.text && a.keys == b.keys &&
         std::equal(a.items.begin(), a.items.end(), b.items.begin(), b.items.end(), same);
}

// Checks one value and those below it; returns how many there are.
int64_t check(const JsonValue& value, int depth, const io::JsonLimits& limits) {
  expect(depth <= limits.max_depth, "no deeper than max_depth");
  expect(value.keys.size() == (value.kind == JsonValue::Kind::object ? value.items.size() : 0), "a key for each value of an object");
  int64_t integer = 0;
  if (value.as_integer(integer)) expect(value.text == std::to_string(integer) || value.text == "-0", "integers are what was written");
  for (size_t i = 0; i < value.keys.size(); ++i) expect(value.find(value.keys[i]) == &value.items[i], "distinct keys, each found");
  int64_t count = 1;
  for (const JsonValue& item : value.items) count += check(item, depth + 1, limits);
  expect(count <= limits.max_values, "no more values than max_values");
  return count;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);  // no byte follows it, not even a zero
  JsonValue value, again;
  if (!fuzz::accepts([&] { value = io::parse_json(text, fuzz::kInputName); })) return 0;
  ++fuzz::num_accepted;
  check(value, 1, {});
  expect(fuzz::accepts([&] { again = io::parse_json(written(value), fuzz::kInputName); }), "what is written again is accepted");
  expect(same(value, again), "and is the same");
  if (fuzz::accepts([&] { again = io::parse_json(text, fuzz::kInputName, kTight); })) {
    check(again, 1, kTight);
    expect(same(value, again), "limits change no value");
  }
  if (value.kind == JsonValue::Kind::object || value.kind == JsonValue::Kind::array) {
    const size_t end = text.find_last_not_of(" \t\n\r"), cut = quorum::mix_bits(size) % (end + 1);
    expect(!fuzz::accepts([&] { io::parse_json(text.substr(0, cut), fuzz::kInputName); }), "no beginning is accepted");
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  fuzz::Draw draw(seed);
  if (draw.one_in(4)) return LLVMFuzzerMutate(data, size, max_size);
  std::string text(reinterpret_cast<const char*>(data), size);
  fuzz::mutate_json(text, draw);
  return fuzz::put(text, data, max_size);
}
