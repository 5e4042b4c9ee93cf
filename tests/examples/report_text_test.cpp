#include "../../examples/decode_trace/report_text.hpp"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "quorum/core/error.hpp"
#include "report_samples.hpp"

using namespace decode_trace;

TEST_CASE("report text: numbers") {
  CHECK(percent(0.0461) == "4.6 %");
  CHECK(percent(0.00461) == "0.46 %");
  CHECK(percent(0.0) == "0 %");
  CHECK(percent(1.0) == "100 %");
  CHECK(percent(0.9996) == "100 %");
  CHECK(percent(0.999) == "99.9 %");
  CHECK(percent(kMissing) == "-");
  CHECK(percent_short(0.9) == "90 %");
  CHECK(grouped(999) == "999");
  CHECK(grouped(1000) == "1,000");
  CHECK(grouped(-1234567) == "-1,234,567");
  CHECK(counted(1, "head", "heads") == "1 head");
  CHECK(milliseconds(0.2134) == "0.213");
  CHECK(milliseconds(1.517) == "1.52");
  CHECK(milliseconds(248.4) == "248");
  CHECK(bytes_text(999) == "999 bytes");
  CHECK(bytes_text(402653) == "403 kB");
  CHECK(bytes_text(6291456) == "6.3 MB");
  CHECK(bytes_text(2500000000) == "2.5 GB");
  CHECK(target_text(0.9) == "0.90");
  CHECK(target_text(0.995) == "0.995");
  CHECK(factor_text(speed_up(3.4, 1.0)) == "3.4");
  CHECK(factor_text(speed_up(1.0, 0.0)) == "-");
  CHECK(fixed(std::numeric_limits<double>::max(), 1).size() == 311);
}

TEST_CASE("report text: escaping") {
  CHECK(escape_html("<a href='x'>\"&\n") == "&lt;a href=&#39;x&#39;&gt;&quot;&amp; ");
  CHECK(quote_json("a\"\\\n\x01é") == "\"a\\\"\\\\\\u000a\\u0001é\"");
  CHECK(to_utf8("é€😀") == "é€😀");
  CHECK(to_utf8("\xff\xc3") == "\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(count(to_utf8("\xed\xa0\x80\xc0\xaf"), "\xEF\xBF\xBD") == 5);  // a surrogate, an overlong form
  CHECK(printable("a\x1b[31m\x7f") == "a [31m ");
}

TEST_CASE("report text: files are made with their folder, refusals name the file") {
  const auto folder = std::filesystem::temp_directory_path() / "quorum_report_test";
  std::filesystem::remove_all(folder);
  write_file((folder / "deep").string(), "a.txt", "text");
  std::ostringstream read;
  read << std::ifstream(folder / "deep" / "a.txt").rdbuf();
  CHECK(read.str() == "text");
  std::string message;
  try {
    write_file((folder / "deep" / "a.txt").string(), "b.txt", "text");  // a file is no folder
  } catch (const quorum::Error& error) {
    CHECK(error.code() == quorum::ErrorCode::io_failure);
    message = error.what();
  }
  CHECK(message == "decode_trace: " + (folder / "deep" / "a.txt" / "b.txt").string() + " must be writable, got a refused write");
  std::filesystem::remove_all(folder);
}
