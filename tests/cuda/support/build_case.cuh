// Indexes built on the device from the cache of a HostCase, and what tests ask of them.
#pragma once

#include "quorum/cuda/host_index.cuh"
#include "tests/cuda/support/device_case.cuh"
#include "tests/cuda/support/index_reference.hpp"

namespace quorum::test {

// All kernels of a build are compiled in build_case.cu, once.
cuda::ClusterIndex build_on_device(const AttentionShape& shape, const IndexOptions& options, const KvCacheView& kv,
                                   const MetricFactorView& metric = {});
const FlatHeadView* build_on_device(const AttentionShape& shape, const IndexOptions& options, const KvCacheView& kv,
                                    const MetricFactorView& metric, const cuda::BuildMemory& memory, cudaStream_t stream);

// One sequence of a case's cache, on the device.
inline KvCacheView device_kv(const HostCase& host, const DeviceCase& device, int sequence = 0) {
  const PagedKvView here = host.kv(), there = device.batch().kv;
  KvCacheView view = here.sequence(sequence);
  view.keys = there.keys + (view.keys - here.keys);
  view.values = there.values + (view.values - here.values);
  if (view.pages != nullptr) view.pages = there.page_indices + (view.pages - here.page_indices);
  view.key_scales = there.key_scales;
  view.value_scales = there.value_scales;
  return view;
}

// The index of one sequence of a case, built on the device and copied back.
inline cuda::HostIndex built_index(const HostCase& host, const DeviceCase& device, int sequence = 0, const Factors& factors = {}) {
  const AttentionShape& shape = host.options().shape;
  const cuda::DeviceBuffer forward = upload(factors.forward), inverse = upload(factors.inverse);
  const MetricFactorView metric{forward.as<float>(), inverse.as<float>()};
  const cuda::ClusterIndex index = build_on_device(shape, host.options().index, device_kv(host, device, sequence), metric);
  return cuda::HostIndex(index.heads(), shape.num_kv_heads, shape.head_dim);
}

}  // namespace quorum::test
