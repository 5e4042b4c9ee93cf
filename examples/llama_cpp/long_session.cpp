// A long life of a cache: text is appended, taken back, cut out of the middle (the keys behind it are rotated), forked and continued, saved
// and restored, in an order that a seed decides. Stock or plug-in is a matter of GGML_BACKEND_PATH; both do the same.
//   long_session MODEL TEXT --save FILE       stores the logits of the last token of each turn
//   long_session MODEL TEXT --compare FILE    prints the divergence from what is stored
// --cache split keeps the two sequences in caches of their own.
#include <iostream>
#include <random>

#include "logits_file.hpp"
#include "session.hpp"

namespace {

using namespace quorum_ggml;

class LongSession {
 public:
  LongSession(Session& session, std::vector<llama_token> tokens, int context, unsigned seed)
      : session_(session), tokens_(std::move(tokens)), most_(context / 2 - 128), random_(seed) {}

  // The logits of the last token after one more turn.
  std::span<const float> turn() {
    if (length_ > most_) take_back(length_ / 2);
    switch (number(0, 6)) {
      case 0:
        take_back(number(1, std::min(64, length_ / 4)));
        break;
      case 1:
        cut_out();
        break;
      case 2:
        fork();
        break;
      case 3:
        keep_state();
        break;
      case 4:
        restore_state();
        break;
      default:
        break;
    }
    return append(number(0, 3) == 0 ? number(20, 200) : number(1, 6));
  }

  std::span<const float> append(int count) {
    const int step = number(0, 1) == 0 ? 1 : count;  // token by token, or as a batch
    std::span<const float> logits;
    for (int done = 0; done < count; done += step) {
      const int part = std::min(step, count - done);
      if (next_ + size_t(part) > tokens_.size()) next_ = 0;
      logits = session_.decode({&tokens_[next_], size_t(part)}, length_);
      next_ += size_t(part);
      length_ += part;
    }
    return logits;
  }

 private:
  int number(int least, int most) { return least + int(random_() % unsigned(most - least + 1)); }

  void take_back(int count) {
    llama_memory_seq_rm(session_.memory(), 0, length_ - count, -1);
    length_ -= count;
  }
  // As a chat does whose context is full.
  void cut_out() {
    if (!llama_memory_can_shift(session_.memory()) || length_ < 256) return;
    const int begin = number(8, length_ / 2), end = begin + number(1, 40);
    llama_memory_seq_rm(session_.memory(), 0, begin, end);
    llama_memory_seq_add(session_.memory(), 0, end, -1, begin - end);
    length_ -= end - begin;
  }
  // Another continuation of the same text, in a sequence of its own that ends again.
  void fork() {
    llama_memory_seq_cp(session_.memory(), 0, 1, -1, -1);
    for (int i = 0; i < 4; ++i) session_.decode({&tokens_[tokens_.size() / 2 + size_t(number(0, 999))], 1}, length_ + i, 1);
    llama_memory_seq_rm(session_.memory(), 1, -1, -1);
  }
  void keep_state() {
    state_.resize(llama_state_seq_get_size(session_.context(), 0));
    llama_state_seq_get_data(session_.context(), state_.data(), state_.size(), 0);
    state_length_ = length_;
  }
  void restore_state() {
    if (state_.empty()) return;
    if (llama_state_seq_set_data(session_.context(), state_.data(), state_.size(), 0) == 0) throw std::runtime_error("no state restored");
    length_ = state_length_;
  }

  Session& session_;
  std::vector<llama_token> tokens_;
  const int most_;
  std::mt19937 random_;
  size_t next_ = 0;
  int length_ = 0, state_length_ = 0;
  std::vector<uint8_t> state_;
};

void run(int argc, char** argv) {
  const Arguments arguments(argc, argv, 2,
                            {{"context", "4096"},
                             {"turns", "500"},
                             {"prompt", "1200"},
                             {"seed", "1"},
                             {"threads", "2"},
                             {"flash", "on"},
                             {"cache", "unified"},
                             {"save", ""},
                             {"compare", ""}});
  LogitsFile logits(arguments.text("save"), arguments.text("compare"));
  Session::Options options;
  options.unified = arguments.text("cache") != "split";
  options.context = arguments.number("context") * (options.unified ? 1 : 2);
  options.threads = arguments.number("threads");
  options.flash = arguments.text("flash") == "on";
  options.sequences = 2;
  Session session(arguments.file(0), options);
  LongSession life(session, session.tokenize(read_text(arguments.file(1)), false), arguments.number("context"),
                   unsigned(arguments.number("seed")));
  life.append(arguments.number("prompt"));
  for (int turn = 0; turn < arguments.number("turns"); ++turn) logits.add(life.turn(), -1);
  std::cout << logits.summary() << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "long_session: " << error.what() << '\n';
    return 1;
  }
}
