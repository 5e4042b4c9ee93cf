#include "tests/cuda/emulation/stream.hpp"

#include <chrono>
#include <utility>
#include <vector>

#include "tests/cuda/emulation/runtime.hpp"

using Nodes = std::vector<std::function<void()>>;

// The runtime's handles point to these types, which it leaves open.
struct CUstream_st {
  CUgraph_st* graph = nullptr;  // what is recorded, while this stream is captured
};
struct CUgraph_st {
  Nodes nodes;
};
struct CUgraphExec_st {
  Nodes nodes;
};
struct CUevent_st {
  std::chrono::steady_clock::time_point time;
};

namespace quorum::emulation {
namespace {

int captures = 0;
bool spoilt = false;
cudaError_t last_error = cudaSuccess;

cudaError_t wait_for_device() {
  ++counts().waits;
  return capturing() ? spoil_capture() : cudaSuccess;
}

}  // namespace

Counts& counts() {
  static Counts result;
  return result;
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
  if (stream != nullptr && stream->graph != nullptr) {
    stream->graph->nodes.push_back(std::move(work));
  } else {
    work();
  }
}

bool capturing() { return captures > 0; }

cudaError_t spoil_capture() {
  spoilt = true;
  return remember(cudaErrorStreamCaptureUnsupported);
}

cudaError_t remember(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

}  // namespace quorum::emulation

namespace emulation = quorum::emulation;

extern "C" {

cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return emulation::last_error; }

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = new CUstream_st;
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) { return cudaStreamCreate(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return emulation::wait_for_device(); }
cudaError_t cudaDeviceSynchronize() { return emulation::wait_for_device(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }

// An event that another stream recorded: what it stands for is done, or recorded before, since all streams share one order here. A stream
// that waits for a captured one is captured with it.
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  *event = new CUevent_st;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return cudaEventCreate(event); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
  event->time = std::chrono::steady_clock::now();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return emulation::wait_for_device(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (stream == nullptr || stream->graph != nullptr) return emulation::remember(cudaErrorIllegalState);
  stream->graph = new CUgraph_st;
  ++emulation::captures;
  emulation::spoilt = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (stream == nullptr || stream->graph == nullptr) return emulation::remember(cudaErrorIllegalState);
  *graph = std::exchange(stream->graph, nullptr);
  --emulation::captures;
  if (!emulation::spoilt) return cudaSuccess;
  delete std::exchange(*graph, nullptr);
  return emulation::remember(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream != nullptr && stream->graph != nullptr ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

// Only the number of nodes; there are no handles of single nodes here.
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes != nullptr) return emulation::remember(cudaErrorNotSupported);
  *count = graph->nodes.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& node : executable->nodes) emulation::enqueue(stream, node);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

}  // extern "C"
