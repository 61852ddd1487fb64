// Attention that depends on the distance of query and key: a bias for each distance, and a window beyond which a query
// sees no key. Places rise within a sample, so what a query sees is a span of keys.
#pragma once

#include <algorithm>
#include <limits>

#include "gemm.h"
#include "kernels.h"

namespace mp::MP_ISA {

// Rows begin..end - 1 of a sample.
struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// The rows whose place is at most `distance` from `place`, given those for an earlier place, or {0, 0}.
inline Span within(const int32_t* places, int64_t rows, int64_t place, int64_t distance, Span before) {
  while (before.begin < rows && places[before.begin] < place - distance) ++before.begin;
  while (before.end < rows && places[before.end] <= place + distance) ++before.end;
  return before;
}

// What a query sees: keys `seen`, of which those in `near` are no farther than the reach of the bias.
struct Sight {
  int64_t place;
  Span seen, near;
};

// One head of one sample.
class Vicinity {
 public:
  Vicinity(const AttentionShape& shape, int64_t sample, int64_t head)
      : reach_(shape.places.reach),
        window_(shape.places.window),
        query_count_(shape.cu_seqlens_q[sample + 1] - shape.cu_seqlens_q[sample]),
        key_count_(shape.cu_seqlens_k[sample + 1] - shape.cu_seqlens_k[sample]) {
    if (!shape.places.matter()) return;
    queries_ = shape.places.queries + shape.cu_seqlens_q[sample];
    keys_ = shape.places.keys + shape.cu_seqlens_k[sample];
    if (shape.places.bias) bias_ = shape.places.bias + head * shape.places.distances();
  }

  // Whether scores depend on places at all.
  bool matters() const { return queries_; }

  // Sets what the queries from `first` on see, given that of the query before or {}, and returns a block of keys that
  // has all of these. It begins with a panel. Where places do not matter, it has all keys, and sights are not set.
  Span look(int64_t first, int64_t rows, Sight before, Sight* sights) const {
    if (!matters()) return {0, key_count_};
    for (int64_t r = 0; r < rows; before = sights[r++]) {
      const int64_t place = queries_[first + r];
      sights[r] = {place, window_ < 0 ? Span{0, key_count_} : within(keys_, key_count_, place, window_, before.seen),
                   bias_ ? within(keys_, key_count_, place, reach_, before.near) : Span{0, 0}};
    }
    return {sights[0].seen.begin / kPanel * kPanel, sights[rows - 1].seen.end};
  }

  // Adds the bias to a row of scores with the keys of `block`, and takes out the keys that its query does not see.
  void adjust(const Sight& sight, Span block, float* __restrict row) const {
    const int64_t first = block.begin;
    if (bias_) {
      const Span near = near_and_seen(sight);
      const float *bias = bias_, before = bias[0], after = bias[2 * reach_];
      const int64_t zero = reach_ - sight.place;
      for (int64_t j = sight.seen.begin; j < near.begin; ++j) row[j - first] += before;
      for (int64_t j = near.begin; j < near.end; ++j) row[j - first] += bias[keys_[j] + zero];
      for (int64_t j = near.end; j < sight.seen.end; ++j) row[j - first] += after;
    }
    std::fill(row, row + sight.seen.begin - first, -std::numeric_limits<float>::infinity());
    std::fill(row + sight.seen.end - first, row + block.size(), -std::numeric_limits<float>::infinity());
  }

  // Adds a row of score gradients to those of the bias by distance.
  void add_bias_gradient(const Sight& sight, Span block, const float* row, float* by_distance) const {
    const Span near = near_and_seen(sight);
    const int64_t first = block.begin, zero = reach_ - sight.place;
    by_distance[0] += sum(row + sight.seen.begin - first, near.begin - sight.seen.begin);
    for (int64_t j = near.begin; j < near.end; ++j) by_distance[keys_[j] + zero] += row[j - first];
    by_distance[2 * reach_] += sum(row + near.end - first, sight.seen.end - near.end);
  }

  // out[j] = x[j] / queries that see key j, and 0 where there are none.
  void divide_by_viewers(const float* x, float* out) const {
    Span viewers{0, window_ < 0 ? query_count_ : 0};
    float share = 1.0f / static_cast<float>(viewers.size());
    for (int64_t j = 0; j < key_count_; ++j) {
      if (window_ >= 0) {
        viewers = within(queries_, query_count_, keys_[j], window_, viewers);
        share = 1.0f / static_cast<float>(viewers.size());
      }
      out[j] = viewers.size() ? share * x[j] : 0.0f;
    }
  }

 private:
  static Span near_and_seen(const Sight& s) {
    return {std::clamp(s.near.begin, s.seen.begin, s.seen.end), std::clamp(s.near.end, s.seen.begin, s.seen.end)};
  }
  static float sum(const float* x, int64_t n) {
    Vec sums = {};
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) sums += load(x + i);
    float total = horizontal_sum(sums);
    for (; i < n; ++i) total += x[i];
    return total;
  }

  int64_t reach_, window_, query_count_, key_count_;
  const int32_t *queries_ = nullptr, *keys_ = nullptr;
  const float* bias_ = nullptr;  // [2 * reach + 1]
};

// sums[bucket] = sum of by_distance over the distances of each bucket.
inline void add_by_bucket(const Places& places, const float* by_distance, float* sums) {
  std::fill(sums, sums + places.buckets, 0.0f);
  for (int64_t d = 0; d < places.distances(); ++d) sums[places.bucket_of[d]] += by_distance[d];
}

}  // namespace mp::MP_ISA
