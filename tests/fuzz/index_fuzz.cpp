// Loading an index: whatever is accepted can be decoded from, and is saved again as the same bytes.
#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"
#include "tests/fuzz/mutate.hpp"
#include "tests/support/random.hpp"

using namespace quorum;
using fuzz::expect;

namespace {

constexpr AttentionShape kShape{2, 2, 8, 0.0f};
constexpr int kMaxTokens = 4096;  // decoded from at most

// A cache of zeros: a row for any token.
KvCacheView cache(int num_tokens) {
  static const std::vector<float> rows(size_t(kMaxTokens) * 16, 0.0f);
  return KvCacheView::nhd(rows.data(), rows.data(), num_tokens, 2, 8);
}

void decode(const ClusterIndex& index) {
  if (index.num_tokens() > kMaxTokens) return;
  SerialExecutor executor;
  const std::vector<float> query(16, 0.5f);
  std::vector<float> output(16);
  for (const ReadUnit unit : {ReadUnit::automatic, ReadUnit::clusters}) {
    DecodeOptions options;
    options.dense_below = 0;
    options.unit = unit;
    options.certificate.enabled = true;
    options.variance = index.options().variance;
    Decoder decoder(kShape, options, {1, kMaxTokens, kMaxTokens, 1});
    const SequenceView sequence{cache(index.num_tokens()), &index.view()};
    expect(decoder.decode(QueryView::contiguous(query.data(), 1, 2, 8), {&sequence, 1}, {output.data(), nullptr}, {}, executor) ==
               DecodeStatus::ok,
           "an index that was accepted fits a decoder");
  }
}

std::vector<std::byte> some_index(fuzz::Draw& draw) {
  IndexOptions options;
  options.cluster_size = 1 + int(draw.below(6));
  options.segment_tokens = 32;
  options.iterations = 2;
  options.num_sink_tokens = int(draw.below(3));
  options.window_tokens = int(draw.below(3));
  options.recluster_every = 8;
  options.residual_codes = !draw.one_in(3);
  options.storage = draw.one_in(4) ? IndexStorage::f32 : IndexStorage::int8;
  options.variance = VarianceModel(draw.below(3));
  const int num_tokens = int(draw.below(60));
  const auto rows = test::gaussian_floats(int64_t(num_tokens) * 16 + 1, draw.bits());
  ClusterIndex index(kShape, options);
  SerialExecutor executor;
  index.build(KvCacheView::nhd(rows.data(), rows.data(), num_tokens, 2, 8), executor);
  if (num_tokens > 10 && draw.one_in(2)) index.erase(3, 7);
  return index.save();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = fuzz::input_bytes(data, size);
  fuzz::accepts(
      [&] {
        const ClusterIndex index = ClusterIndex::load(kShape, bytes);
        ++fuzz::num_accepted;
        const auto saved = index.save();
        // A reserved number and the padding of arrays need not be kept.
        expect(saved.size() == bytes.size(), "what was loaded is saved as as many bytes");
        decode(index);
      },
      "ClusterIndex::load");
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  fuzz::Draw draw(seed);
  std::string text(reinterpret_cast<const char*>(data), size);
  if (size < sizeof(cpu::IndexHeader) || draw.one_in(20)) {
    const auto bytes = some_index(draw);
    text.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  if (draw.one_in(3)) {
    fuzz::mutate_bytes(text);
  } else if (text.size() > sizeof(cpu::IndexHeader) + 8) {
    // One word of the body, where most fields are one.
    const size_t words = (text.size() - sizeof(cpu::IndexHeader)) / 4, at = sizeof(cpu::IndexHeader) + 4 * draw.below(words);
    const uint32_t values[] = {0, 1, 2, 0xffffffff, 0x7fffffff, 0x80000000, 0x7fc00000, uint32_t(draw.bits())};
    std::memcpy(text.data() + at, &values[draw.below(8)], 4);
  }
  if (text.size() >= sizeof(cpu::IndexHeader) && !draw.one_in(10)) {
    cpu::IndexHeader header;
    std::memcpy(&header, text.data(), sizeof(header));
    header.total_bytes = text.size();
    header.checksum = cpu::checksum_of(std::as_bytes(std::span(text)).subspan(sizeof(header)));
    std::memcpy(text.data(), &header, sizeof(header));
  }
  return fuzz::put(text, data, max_size);
}
