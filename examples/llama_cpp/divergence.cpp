// How far the logits of one run are from another's, token by token: llama-perplexity evaluates whole batches, which is prefill, while the
// plug-in is sparse where single tokens are decoded. Stock or plug-in is a matter of GGML_BACKEND_PATH.
//   divergence MODEL TEXT --save FILE       reads the prompt, then decodes the text's own tokens one at a time; stores the logits
//   divergence MODEL TEXT --compare FILE    the same; prints the divergence from what is stored
#include <chrono>
#include <iostream>

#include "logits_file.hpp"
#include "session.hpp"

namespace {

using namespace quorum_ggml;

void run(int argc, char** argv) {
  const Arguments arguments(argc, argv, 2,
                            {{"context", "8192"}, {"positions", "1024"}, {"threads", "2"}, {"flash", "on"}, {"save", ""}, {"compare", ""}});
  LogitsFile logits(arguments.text("save"), arguments.text("compare"));
  Session::Options options;
  options.context = arguments.number("context");
  options.threads = arguments.number("threads");
  options.flash = arguments.text("flash") == "on";
  Session session(arguments.file(0), options);
  const auto tokens = session.tokenize(read_text(arguments.file(1)), false);
  const int positions = arguments.number("positions"), prompt = options.context - positions;
  if (prompt < 1 || int(tokens.size()) <= options.context) throw std::runtime_error("divergence: the text must be longer than the context");
  session.decode({tokens.data(), size_t(prompt)}, 0);
  const auto begin = std::chrono::steady_clock::now();
  for (int t = prompt; t < options.context; ++t) logits.add(session.decode({&tokens[size_t(t)], 1}, t), tokens[size_t(t) + 1]);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::cout << logits.summary() << '\n';
  std::cerr << "divergence: " << positions << " positions in " << seconds << " s\n";
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "divergence: " << error.what() << '\n';
    return 1;
  }
}
