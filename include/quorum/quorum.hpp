// Everything that needs no CUDA toolkit. docs/architecture.md says which header holds what.
#pragma once

#include "quorum/core/merge_attention.hpp"
#include "quorum/core/paged_kv_view.hpp"
#include "quorum/core/supports.hpp"
#include "quorum/cpu/cluster_index.hpp"
#include "quorum/cpu/decode.hpp"
#include "quorum/cpu/dense_attention.hpp"
#include "quorum/cpu/executor.hpp"
#include "quorum/cpu/metric_factors.hpp"
#include "quorum/cpu/sparse_attention.hpp"
#include "quorum/version.hpp"
