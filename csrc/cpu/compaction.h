// Compaction of a packed ragged batch: which rows are kept, and where the samples then begin. Token pruning and sample
// exits are the same pass with different flags.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

namespace mp {

// Buffers of the results: index [total], cu_seqlens [batch + 1], samples [batch], and extents, which say how much of
// the others is filled.
struct Compaction {
  int64_t* index;
  int32_t* cu_seqlens;
  int64_t* samples;
  int64_t* extents;  // [4]: rows kept, samples kept, longest sample kept, first row of NaN importance or -1

  void begin() {
    cu_seqlens[0] = 0;
    extents[0] = extents[1] = extents[2] = 0;
    extents[3] = -1;
  }
  void keep(int64_t row) { index[extents[0]++] = row; }
  void end_sample(int64_t sample) {
    const int64_t length = extents[0] - cu_seqlens[extents[1]];
    extents[2] = std::max(extents[2], length);
    samples[extents[1]] = sample;
    cu_seqlens[++extents[1]] = static_cast<int32_t>(extents[0]);
  }
  void note_nan(int64_t row) {
    if (extents[3] < 0) extents[3] = row;
  }
};

// In samples that stay (stays null: all), keeps row j iff importance[j] >= threshold or it is the first of its sample.
inline void prune_tokens(const float* importance, const int32_t* cu_seqlens, int64_t batch, const bool* stays,
                         float threshold, Compaction out) {
  out.begin();
  for (int64_t b = 0; b < batch; ++b) {
    if (stays && !stays[b]) continue;
    for (int64_t row = cu_seqlens[b]; row < cu_seqlens[b + 1]; ++row) {
      if (std::isnan(importance[row])) out.note_nan(row);
      if (importance[row] >= threshold || row == cu_seqlens[b]) out.keep(row);
    }
    out.end_sample(b);
  }
}

// In each sample b that stays, keeps the k[b] most important rows, always the first; ties go to the lower position.
inline void top_k_tokens(const float* importance, const int32_t* cu_seqlens, int64_t batch, const bool* stays,
                         const int64_t* k, Compaction out) {
  out.begin();
  std::vector<int64_t> order;
  for (int64_t b = 0; b < batch; ++b) {
    if (stays && !stays[b]) continue;
    const int64_t first = cu_seqlens[b], length = cu_seqlens[b + 1] - first;
    const int64_t kept = std::min(k[b], length);
    for (int64_t row = first; row < first + length; ++row)
      if (std::isnan(importance[row])) out.note_nan(row);
    if (kept == length || out.extents[3] >= 0) {
      for (int64_t row = first; row < first + length; ++row) out.keep(row);
    } else {
      order.resize(static_cast<size_t>(length));
      std::iota(order.begin(), order.end(), first);
      std::nth_element(order.begin() + 1, order.begin() + kept, order.end(), [&](int64_t a, int64_t c) {
        return importance[a] > importance[c] || (importance[a] == importance[c] && a < c);
      });
      std::sort(order.begin(), order.begin() + kept);
      for (int64_t i = 0; i < kept; ++i) out.keep(order[static_cast<size_t>(i)]);
    }
    out.end_sample(b);
  }
}

// Keeps all rows of the samples that stay.
inline void select_samples(const int32_t* cu_seqlens, int64_t batch, const bool* stays, Compaction out) {
  out.begin();
  for (int64_t b = 0; b < batch; ++b) {
    if (!stays[b]) continue;
    for (int64_t row = cu_seqlens[b]; row < cu_seqlens[b + 1]; ++row) out.keep(row);
    out.end_sample(b);
  }
}

}  // namespace mp
