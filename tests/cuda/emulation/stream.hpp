// Streams of the emulated runtime: work is done when it is enqueued, or recorded while a capture lasts.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>

namespace quorum::emulation {

// Does `work` now, or makes it a node of the graph that is being captured.
void enqueue(cudaStream_t stream, std::function<void()> work);
// True while any stream is captured: the host may then neither wait nor allocate.
bool capturing();
// The capture is spoilt: its end says so.
cudaError_t spoil_capture();

// Keeps `status` for cudaGetLastError unless it is success; returns it.
cudaError_t remember(cudaError_t status);

}  // namespace quorum::emulation
