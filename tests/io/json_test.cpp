#include "quorum/io/json.hpp"

#include <doctest/doctest.h>

#include "io_test_support.hpp"

using quorum::Error;
using quorum::io::JsonLimits;
using quorum::io::JsonValue;
using quorum::io::parse_json;
using quorum::test::message_of;
using Kind = JsonValue::Kind;

namespace {

std::string failure(std::string_view text, const JsonLimits& limits = {}) {
  return message_of([&] { parse_json(text, "file.json", limits); });
}

}  // namespace

TEST_CASE("json: values of every kind") {
  const JsonValue root = parse_json(R"( {"a": [1, -2.5e3, true, false, null], "b": {}, "c": "x", "d": []} )", "file.json");
  REQUIRE(root.kind == Kind::object);
  REQUIRE(root.keys == std::vector<std::string>{"a", "b", "c", "d"});
  const JsonValue& a = *root.find("a");
  REQUIRE(a.items.size() == 5);
  CHECK(a.items[0].text == "1");
  CHECK(a.items[1].text == "-2.5e3");
  CHECK(a.items[2].boolean);
  CHECK(!a.items[3].boolean);
  CHECK(a.items[4].kind == Kind::null);
  CHECK(root.find("b")->kind == Kind::object);
  CHECK(root.find("c")->text == "x");
  CHECK(root.find("d")->items.empty());
  CHECK(root.find("e") == nullptr);
}

TEST_CASE("json: integers are exact and nothing else passes as one") {
  const auto integer = [](const char* text, int64_t& value) { return parse_json(text, "file.json").as_integer(value); };
  int64_t value = 0;
  CHECK(integer("9223372036854775807", value));
  CHECK(value == INT64_MAX);
  CHECK(integer("-9223372036854775808", value));
  CHECK(value == INT64_MIN);
  CHECK(!integer("9223372036854775808", value));
  CHECK(!integer("1.0", value));
  CHECK(!integer("1e3", value));
  CHECK(!integer("\"1\"", value));
}

TEST_CASE("json: escapes decode to UTF-8, other bytes pass through") {
  CHECK(parse_json(R"("\"\\\/\b\f\n\r\t")", "f").text == "\"\\/\b\f\n\r\t");
  CHECK(parse_json(R"("A\u00e9\u20ac\ud83d\ude00")", "f").text == "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(parse_json("\"\xc3\xa9\"", "f").text == "\xc3\xa9");
  CHECK(parse_json(R"("\u0000")", "f").text == std::string(1, '\0'));
}

TEST_CASE("json: every fault names the source, the byte and the rule") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "byte 0, must be a value, got the end"},
      {"{", "a key in double quotes"},
      {"{a:1}", "byte 1, must be a key in double quotes, got 'a'"},
      {R"({"a" 1})", "':' after the key 'a'"},
      {R"({"a":1 "b":2})", "',' or '}'"},
      {R"({"a":1,})", "a key in double quotes"},
      {"[1,]", "a value"},
      {"[1 2]", "',' or ']'"},
      {R"({"a":1,"a":2})", "distinct keys (twice: 'a')"},
      {"1 2", "the end of the text"},
      {"01", "the end of the text"},
      {"-", "a value"},
      {"+1", "a value"},
      {"NaN", "a value"},
      {"1.", "a digit after '.'"},
      {"1e+", "a digit in the exponent"},
      {"tru", "a value"},
      {"nul", "a value"},
      {"\"a", "a printable character"},
      {"\"a\n\"", "byte 2, must be a printable character or '\"' in a string, got byte 0x0a"},
      {R"("\x")", "after '\\'"},
      {R"("\)", "after '\\'"},
      {R"("\u12")", "four hexadecimal digits"},
      {R"("\u+123")", "four hexadecimal digits"},
      {R"("\ud800")", "second half of a surrogate pair"},
      {R"("\ud800\u0041")", "second half of a surrogate pair"},
      {R"("\udc00")", "first half of a surrogate pair"},
  };
  for (const auto& entry : cases) {  // no structured binding: clang 14 cannot capture one
    const std::string &text = entry.first, &rule = entry.second;
    CAPTURE(text);
    const std::string message = failure(text);
    CHECK(message.find("parse_json: file.json, byte ") == 0);
    CHECK_MESSAGE(message.find(rule) != std::string::npos, message);
  }
}

TEST_CASE("json: depth and number of values are bounded") {
  CHECK(failure(std::string(32, '[') + std::string(32, ']')).empty());
  CHECK(failure(std::string(33, '[') + std::string(33, ']')).find("nested at most 32 deep") != std::string::npos);
  CHECK(failure(std::string(1 << 20, '[')).find("nested at most 32 deep") != std::string::npos);
  std::string nested;
  for (int i = 0; i < 1000; ++i) nested += "{\"a\":";
  CHECK(failure(nested).find("nested at most 32 deep") != std::string::npos);
  CHECK(failure("[1,2,3]", {32, 4}).empty());
  CHECK(failure("[1,2,3,4]", {32, 4}).find("within 4 values") != std::string::npos);
}

TEST_CASE("json: mutated texts never do worse than an Error") {
  const std::string text = R"({"a":[1,-2.5e3,true,null,{"b":"x\u00e9\n"}],"c":{"d":"e","f":[[],{}]}})";
  quorum::test::Mutator mutator(text, 1);
  for (int i = 0; i < 20000; ++i) {
    const std::string mutated = mutator.next();
    try {
      parse_json(mutated, "fuzz");
    } catch (const Error&) {
    }
  }
}
