// A question about a fact that stands early in a long text; greedy, so that stock and plug-in can be compared word by word.
//   chat MODEL TEXT --context N
#include <algorithm>
#include <iostream>

#include "session.hpp"

namespace {

using namespace quorum_ggml;

void run(int argc, char** argv) {
  const Arguments arguments(argc, argv, 2,
                            {{"context", "8192"},
                             {"threads", "2"},
                             {"tokens", "40"},
                             {"fact", "The keeper of the lighthouse at Cape Farewell is called Horatio Blackwood."},
                             {"question", "What is the name of the keeper of the lighthouse at Cape Farewell?"}});
  Session::Options options;
  options.context = arguments.number("context");
  options.threads = arguments.number("threads");
  Session session(arguments.file(0), options);
  const int answer_tokens = arguments.number("tokens");

  const auto words = session.tokenize(read_text(arguments.file(1)).substr(0, size_t(options.context) * 6), false);
  const auto opening = session.tokenize("<|im_start|>user\nRead this text.\n", true);
  const auto fact = session.tokenize(arguments.text("fact") + "\n", false);
  const auto closing = session.tokenize("\n" + arguments.text("question") + "<|im_end|>\n<|im_start|>assistant\n", true);
  std::vector<llama_token> prompt = opening;
  const size_t room = size_t(options.context - answer_tokens) - opening.size() - fact.size() - closing.size(), early = room / 10;
  if (words.size() < room) throw std::runtime_error("chat: the text must be longer than the context");
  prompt.insert(prompt.end(), words.begin(), words.begin() + std::ptrdiff_t(early));
  prompt.insert(prompt.end(), fact.begin(), fact.end());
  prompt.insert(prompt.end(), words.begin() + std::ptrdiff_t(early), words.begin() + std::ptrdiff_t(room));
  prompt.insert(prompt.end(), closing.begin(), closing.end());

  std::span<const float> logits = session.decode(prompt, 0);
  for (int i = 0; i < answer_tokens; ++i) {
    const auto token = llama_token(std::max_element(logits.begin(), logits.end()) - logits.begin());
    if (llama_vocab_is_eog(session.vocab(), token)) break;
    std::cout << session.piece(token);
    if (i + 1 < answer_tokens) logits = session.decode({&token, 1}, int(prompt.size()) + i);
  }
  std::cout << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "chat: " << error.what() << '\n';
    return 1;
  }
}
