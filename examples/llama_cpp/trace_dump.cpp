// Records queries, keys and values of chosen layers of any GGUF model into the trace format (include/quorum/io/trace.hpp).
//   trace_dump MODEL TEXT --layers 3,12 --tokens 4096 --queries 64 --output build/llama_cpp/trace
// writes FOLDER-layerNN.safetensors for each. The first tokens are read as a prompt, every 32nd query of it is kept; the last --queries
// tokens are decoded one at a time, and their queries are what a trace replays. Not with the plug-in loaded, whose nodes are the same.
#include <cstring>
#include <iostream>
#include <set>
#include <sstream>

#include "quorum/io/write_file.hpp"

#include "attention_node.hpp"
#include "session.hpp"

namespace {

using namespace quorum_ggml;

// What one layer showed. Rows are f32 for queries, as in the cache for keys and values.
struct Recording {
  std::vector<float> prompt_queries, queries;
  std::vector<int32_t> prompt_positions, positions;
  std::vector<std::byte> keys, values;  // [tokens][num_kv_heads][head_dim], after the last token
  quorum::AttentionShape shape;
  quorum::ElementType type = quorum::ElementType::f16;
};

class Recorder {
 public:
  Recorder(std::set<int> layers, int prompt, int tokens) : layers_(std::move(layers)), prompt_(prompt), tokens_(tokens) {}

  // llama.cpp asks whether a node is wanted, and then shows it.
  static bool on_node(ggml_tensor* node, bool asks, void* self) { return static_cast<Recorder*>(self)->see(node, asks); }
  void set_position(int position) { position_ = position; }
  const std::map<int, Recording>& recordings() const { return recordings_; }

 private:
  static constexpr int kEvery = 32;

  static int layer_of(const ggml_tensor* op) {
    const ggml_tensor* keys = op->src[1];
    while (keys->view_src != nullptr) keys = keys->view_src;
    int layer = -1;
    return std::sscanf(keys->name, "cache_k_l%d", &layer) == 1 ? layer : -1;
  }
  bool see(ggml_tensor* op, bool asks) {
    if (op->op != GGML_OP_FLASH_ATTN_EXT) return !asks;
    const int layer = layer_of(op);
    if (layers_.count(layer) == 0) return !asks;
    if (!asks) record(AttentionNode(op), recordings_[layer]);
    return true;
  }
  void record(const AttentionNode& node, Recording& to) {
    to.shape = node.shape();
    const quorum::QueryView queries = node.queries(0);
    for (int row = 0; row < queries.num_rows; ++row) {
      const int position = position_ + row;
      if (position < prompt_ && position % kEvery != 0) continue;
      auto& rows = position < prompt_ ? to.prompt_queries : to.queries;
      (position < prompt_ ? to.prompt_positions : to.positions).push_back(position);
      for (int head = 0; head < to.shape.num_qo_heads; ++head) {
        const auto* from = reinterpret_cast<const float*>(queries.row(row, head));
        rows.insert(rows.end(), from, from + to.shape.head_dim);
      }
    }
    if (position_ + queries.num_rows == tokens_) keep_cache(node.cache(0), to);
  }
  void keep_cache(const quorum::KvCacheView& kv, Recording& to) const {
    to.type = kv.type;
    const int bytes = quorum::row_bytes(kv.type, to.shape.head_dim);
    for (int token = 0; token < tokens_; ++token)
      for (int head = 0; head < to.shape.num_kv_heads; ++head) {
        to.keys.insert(to.keys.end(), kv.key_row(token, head), kv.key_row(token, head) + bytes);
        to.values.insert(to.values.end(), kv.value_row(token, head), kv.value_row(token, head) + bytes);
      }
  }

  const std::set<int> layers_;
  const int prompt_, tokens_;
  int position_ = 0;
  std::map<int, Recording> recordings_;
};

// A safetensors file in memory: tensors one after the other behind their description.
class SafetensorsWriter {
 public:
  void add(const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape, const void* data, size_t bytes) {
    tensors_ << (data_.empty() ? "" : ",") << '"' << name << R"(":{"dtype":")" << dtype << R"(","shape":[)";
    for (size_t i = 0; i < shape.size(); ++i) tensors_ << (i > 0 ? "," : "") << shape[i];
    tensors_ << R"(],"data_offsets":[)" << data_.size() << ',' << data_.size() + bytes << "]}";
    data_.append(static_cast<const char*>(data), bytes);
  }
  std::string file(const std::map<std::string, std::string>& metadata) const {
    std::string header = R"({"__metadata__":{)";
    for (const auto& [key, value] : metadata) header += (header.back() == '{' ? "\"" : ",\"") + key + "\":\"" + value + '"';
    header += "}," + tensors_.str() + "}";
    header.resize((header.size() + 63) / 64 * 64, ' ');
    uint64_t size = header.size();
    std::string out(sizeof(size), '\0');
    std::memcpy(out.data(), &size, sizeof(size));
    return out + header + data_;
  }

 private:
  std::ostringstream tensors_;
  std::string data_;
};

std::string trace_file(const Recording& layer, int number, const std::string& model, const std::string& text) {
  if (layer.type == quorum::ElementType::q8_0) throw std::runtime_error("trace_dump: the cache must not be quantised");
  const quorum::AttentionShape& shape = layer.shape;
  const auto bytes = [](const auto& rows) { return rows.size() * sizeof(rows[0]); };
  const std::string type = layer.type == quorum::ElementType::f32 ? "F32" : layer.type == quorum::ElementType::f16 ? "F16" : "BF16";
  const int64_t tokens = layer.positions.back() + 1;
  SafetensorsWriter out;
  out.add("keys", type, {tokens, shape.num_kv_heads, shape.head_dim}, layer.keys.data(), layer.keys.size());
  out.add("values", type, {tokens, shape.num_kv_heads, shape.head_dim}, layer.values.data(), layer.values.size());
  out.add("queries", "F32", {int64_t(layer.positions.size()), shape.num_qo_heads, shape.head_dim}, layer.queries.data(),
          bytes(layer.queries));
  out.add("query_positions", "I32", {int64_t(layer.positions.size())}, layer.positions.data(), bytes(layer.positions));
  out.add("prompt_queries", "F32", {int64_t(layer.prompt_positions.size()), shape.num_qo_heads, shape.head_dim},
          layer.prompt_queries.data(), bytes(layer.prompt_queries));
  out.add("prompt_query_positions", "I32", {int64_t(layer.prompt_positions.size())}, layer.prompt_positions.data(),
          bytes(layer.prompt_positions));
  std::ostringstream scale;
  scale.precision(9);
  scale << shape.softmax_scale();
  const auto base = [](const std::string& path) { return path.substr(path.find_last_of('/') + 1); };
  return out.file(
      {{"sm_scale", scale.str()}, {"layer", std::to_string(number)}, {"model", base(model)}, {"text", base(text)}, {"layout", "NHD"}});
}

void run(int argc, char** argv) {
  const Arguments arguments(argc, argv, 2, {{"layers", "0"}, {"tokens", "4096"}, {"queries", "64"}, {"threads", "2"}, {"output", "trace"}});
  std::set<int> layers;
  std::istringstream list(arguments.text("layers"));
  for (std::string number; std::getline(list, number, ',');) layers.insert(std::stoi(number));
  const int tokens = arguments.number("tokens"), prompt = tokens - arguments.number("queries");
  if (prompt < 1 || prompt >= tokens) throw std::runtime_error("trace_dump: --queries must be 1 to --tokens - 1");
  Recorder recorder(layers, prompt, tokens);
  Session::Options options;
  options.context = (tokens + 255) / 256 * 256;
  options.threads = arguments.number("threads");
  options.on_node = Recorder::on_node;
  options.on_node_data = &recorder;
  Session session(arguments.file(0), options);
  const auto words = session.tokenize(read_text(arguments.file(1)).substr(0, size_t(tokens) * 16), false);
  if (int(words.size()) < tokens) throw std::runtime_error("trace_dump: the text must have --tokens tokens");
  for (int at = 0; at < tokens;) {
    const int count = at < prompt ? std::min(Session::kBatch, prompt - at) : 1;
    recorder.set_position(at);
    session.decode({&words[size_t(at)], size_t(count)}, at);
    at += count;
  }
  for (const int layer : layers) {
    const auto found = recorder.recordings().find(layer);
    if (found == recorder.recordings().end() || found->second.keys.empty())
      throw std::runtime_error("trace_dump: layer " + std::to_string(layer) + " has no attention node over all tokens");
    char name[32];
    std::snprintf(name, sizeof(name), "-layer%02d.safetensors", layer);
    const std::string content = trace_file(found->second, layer, arguments.file(0), arguments.file(1));
    quorum::io::write_file(arguments.text("output") + name, std::as_bytes(std::span(content)));
    std::cout << arguments.text("output") + name << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "trace_dump: " << error.what() << '\n';
    return 1;
  }
}
