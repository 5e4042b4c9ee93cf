// Everything that needs a CUDA toolkit; quorum.hpp is the part that does not.
#pragma once

#include "quorum/cuda/build_index.cuh"
#include "quorum/cuda/build_metric.cuh"
#include "quorum/cuda/cluster_index.cuh"
#include "quorum/cuda/decode.cuh"
#include "quorum/cuda/host_index.cuh"
