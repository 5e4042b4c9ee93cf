// A small strict JSON reader for file headers and reports. It reads trees of a few thousand values, not streams.
#pragma once

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "quorum/core/error.hpp"

namespace quorum::io {

// A parsed value. Numbers keep their text, so that integers of any size lose nothing.
struct JsonValue {
  enum class Kind : uint8_t { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  std::string text;               // string: decoded; number: as written
  std::vector<std::string> keys;  // object: in the order of the file, each once
  std::vector<JsonValue> items;   // array: elements; object: values, parallel to keys

  // Value of a key, nullptr if this is no object or has no such key.
  const JsonValue* find(std::string_view key) const {
    const auto it = std::find(keys.begin(), keys.end(), key);
    return it == keys.end() ? nullptr : &items[size_t(it - keys.begin())];
  }
  // True and `value` written if this is a number without fraction or exponent that fits.
  bool as_integer(int64_t& value) const {
    if (kind != Kind::number) return false;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  }
};

constexpr const char* json_kind_name(JsonValue::Kind kind) {
  constexpr const char* kNames[] = {"null", "a boolean", "a number", "a string", "an array", "an object"};
  return kNames[int(kind)];
}

// Bounds on what a hostile text can cost: recursion and memory (a value takes about 100 bytes).
struct JsonLimits {
  int max_depth = 32;
  int64_t max_values = int64_t(1) << 20;
};

namespace detail {

class JsonParser {
 public:
  JsonParser(std::string_view text, const std::string& source, const JsonLimits& limits) : text_(text), source_(source), limits_(limits) {}

  JsonValue parse_document() {
    JsonValue value = parse_value(1);
    skip_space();
    if (position_ != text_.size()) fail("the end of the text");
    return value;
  }

 private:
  JsonValue parse_value(int depth) {
    if (depth > limits_.max_depth) fail("nested at most " + std::to_string(limits_.max_depth) + " deep");
    if (++num_values_ > limits_.max_values) fail("within " + std::to_string(limits_.max_values) + " values");
    skip_space();
    JsonValue value;
    switch (peek()) {
      case '{':
        parse_object(value, depth);
        break;
      case '[':
        parse_array(value, depth);
        break;
      case '"':
        value.kind = JsonValue::Kind::string;
        value.text = parse_string();
        break;
      case 't':
      case 'f':
        value.kind = JsonValue::Kind::boolean;
        value.boolean = peek() == 't';
        expect_word(value.boolean ? "true" : "false");
        break;
      case 'n':
        expect_word("null");
        break;
      default:
        value.kind = JsonValue::Kind::number;
        value.text = parse_number();
    }
    return value;
  }

  void parse_object(JsonValue& value, int depth) {
    value.kind = JsonValue::Kind::object;
    ++position_;
    skip_space();
    if (accept('}')) return;
    do {
      skip_space();
      if (peek() != '"') fail("a key in double quotes");
      value.keys.push_back(parse_string());
      skip_space();
      if (!accept(':')) fail("':' after the key '" + value.keys.back() + "'");
      value.items.push_back(parse_value(depth + 1));
      skip_space();
    } while (accept(','));
    if (!accept('}')) fail("',' or '}'");
    refuse_duplicates(value.keys);
  }

  void parse_array(JsonValue& value, int depth) {
    value.kind = JsonValue::Kind::array;
    ++position_;
    skip_space();
    if (accept(']')) return;
    do {
      value.items.push_back(parse_value(depth + 1));
      skip_space();
    } while (accept(','));
    if (!accept(']')) fail("',' or ']'");
  }

  std::string parse_string() {
    std::string out;
    ++position_;
    for (;;) {
      const char c = peek();
      if (position_ == text_.size() || static_cast<unsigned char>(c) < 0x20) fail("a printable character or '\"' in a string");
      ++position_;
      if (c == '"') return out;
      if (c == '\\') {
        parse_escape(out);
      } else {
        out += c;
      }
    }
  }

  void parse_escape(std::string& out) {
    constexpr std::string_view kEscapes = "\"\\/bfnrtu", kMeanings = "\"\\/\b\f\n\r\t";
    const size_t which = position_ < text_.size() ? kEscapes.find(text_[position_]) : std::string_view::npos;
    if (which == std::string_view::npos) fail("one of \" \\ / b f n r t u after '\\'");
    ++position_;
    if (which < kMeanings.size()) {
      out += kMeanings[which];
      return;
    }
    uint32_t code = parse_hex4();
    if (code >= 0xd800 && code < 0xdc00) {  // first half of a surrogate pair
      if (!accept('\\') || !accept('u')) fail("the second half of a surrogate pair");
      const uint32_t low = parse_hex4();
      if (low < 0xdc00 || low > 0xdfff) fail("the second half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xdc00 && code < 0xe000) {
      fail("preceded by the first half of a surrogate pair");
    }
    append_utf8(out, code);
  }

  uint32_t parse_hex4() {
    uint32_t code = 0;
    const std::string_view digits = text_.substr(position_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (error != std::errc() || digits.size() != 4 || end != digits.data() + 4) fail("four hexadecimal digits");
    position_ += 4;
    return code;
  }

  static void append_utf8(std::string& out, uint32_t code) {
    const int extra = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr uint32_t kLead[] = {0x00, 0xc0, 0xe0, 0xf0};
    out += char(kLead[extra] | (code >> (6 * extra)));
    for (int i = extra - 1; i >= 0; --i) out += char(0x80 | ((code >> (6 * i)) & 0x3f));
  }

  std::string parse_number() {
    const size_t begin = position_;
    accept('-');
    if (!is_digit()) fail("a value");
    if (!accept('0')) skip_digits();
    if (accept('.')) {
      if (!is_digit()) fail("a digit after '.'");
      skip_digits();
    }
    if (accept('e') || accept('E')) {
      if (!accept('+')) accept('-');
      if (!is_digit()) fail("a digit in the exponent");
      skip_digits();
    }
    return std::string(text_.substr(begin, position_ - begin));
  }

  void refuse_duplicates(const std::vector<std::string>& keys) const {
    std::vector<std::string_view> sorted(keys.begin(), keys.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twin = std::adjacent_find(sorted.begin(), sorted.end());
    if (twin != sorted.end()) fail("an object with distinct keys (twice: '" + std::string(*twin) + "')");
  }

  char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }
  bool accept(char c) {
    if (position_ >= text_.size() || text_[position_] != c) return false;
    ++position_;
    return true;
  }
  void expect_word(std::string_view word) {
    if (text_.substr(position_, word.size()) != word) fail("a value");
    position_ += word.size();
  }
  bool is_digit() const { return peek() >= '0' && peek() <= '9'; }
  void skip_digits() {
    while (is_digit()) ++position_;
  }
  void skip_space() {
    while (position_ < text_.size() && std::string_view(" \t\n\r").find(text_[position_]) != std::string_view::npos) ++position_;
  }

  [[noreturn]] void fail(const std::string& rule) const {
    char got[16] = "the end";
    if (position_ < text_.size()) {
      const unsigned byte = static_cast<unsigned char>(text_[position_]);
      std::snprintf(got, sizeof got, std::isprint(int(byte)) ? "'%c'" : "byte 0x%02x", byte);
    }
    throw_error(ErrorCode::invalid_file, "parse_json", source_ + ", byte " + std::to_string(position_) + ",", rule, got);
  }

  std::string_view text_;
  const std::string& source_;
  JsonLimits limits_;
  size_t position_ = 0;
  int64_t num_values_ = 0;
};

}  // namespace detail

// Parses one JSON text (RFC 8259) and nothing after it but white space.
//
// Stricter than the standard asks: an object's keys must differ, and half surrogate pairs are refused. Other bytes of strings are passed
// through as they are, so UTF-8 stays UTF-8.
// Errors: Error(invalid_file) naming `source`, the byte and what should stand there.
// Memory: owned by the result, at most limits.max_values values. Cost: linear, recursion at most limits.max_depth.
inline JsonValue parse_json(std::string_view text, const std::string& source, const JsonLimits& limits = {}) {
  return detail::JsonParser(text, source, limits).parse_document();
}

}  // namespace quorum::io
