// Attention of one head of one sample with the column sums of its probabilities, forward and backward.
// Keys and values are packed into panels once, and queries pass over them in blocks. A block holds its whole rows of
// scores, over the keys that any of its queries sees, so the softmax is the plain one and any length works. Everything
// is computed in float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "gemm.h"
#include "kernels.h"
#include "places.h"

namespace mp::MP_ISA {

constexpr int64_t kQueryBlock = 4 * kTileRows;

// Hands out consecutive pieces of one scratch buffer. With a null base it only counts, to find the buffer's size.
class Arena {
 public:
  explicit Arena(float* base) : base_(base) {}
  float* take(int64_t floats) {
    float* piece = base_ + used_;
    used_ += round_up(floats, 64 / sizeof(float));
    return piece;
  }
  size_t used() const { return static_cast<size_t>(used_); }

 private:
  float* base_;
  int64_t used_ = 0;
};

template <typename T>
inline T* at(const Heads& x, int64_t token, int64_t head) {
  return static_cast<T*>(x.data) + token * x.token_stride + head * x.head_stride;
}

// out[0, width) = factor * row, out[width, padded_width) = 0.
template <typename T>
inline void read_row(const T* row, int64_t width, int64_t padded_width, float factor, float* out) {
  for (int64_t i = 0; i < width; ++i) out[i] = factor * to_float(row[i]);
  std::fill(out + width, out + padded_width, 0.0f);
}

template <typename T>
inline void write_row(const float* row, int64_t width, float factor, T* out) {
  for (int64_t i = 0; i < width; ++i) out[i] = from_float<T>(factor * row[i]);
}

// Packs x [tokens, head_dim] as the transposed right factor: [tokens / kPanel][head_dim][kPanel], zero for tokens that
// the last panel lacks. stage: scratch of kPanel * round_up(head_dim, kWidth) floats.
template <typename T>
inline void pack_tokens_transposed(const T* x, int64_t token_stride, int64_t tokens, int64_t head_dim, float* stage,
                                   float* panels) {
  const int64_t padded = round_up(head_dim, kWidth);
  for (int64_t first = 0; first < tokens; first += kPanel, panels += head_dim * kPanel) {
    const T* block = x + first * token_stride;
    const int64_t rows = std::min<int64_t>(kPanel, tokens - first);
    if constexpr (sizeof(T) == sizeof(float)) {
      if (rows == kPanel && padded == head_dim) {
        pack_transposed(block, token_stride, kPanel, padded, head_dim, panels);
        continue;
      }
    }
    for (int64_t r = 0; r < rows; ++r) read_row(block + r * token_stride, head_dim, padded, 1.0f, stage + r * padded);
    std::fill(stage + rows * padded, stage + kPanel * padded, 0.0f);
    pack_transposed(stage, padded, kPanel, padded, head_dim, panels);
  }
}

// Packs x [tokens, head_dim] as the right factor: [head_dim / kPanel][tokens][kPanel].
// stage: scratch of round_up(head_dim, kPanel) floats.
template <typename T>
inline void pack_tokens(const T* x, int64_t token_stride, int64_t tokens, int64_t head_dim, float* stage,
                        float* panels) {
  const int64_t padded = round_up(head_dim, kPanel);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (padded == head_dim) return pack_panels(x, token_stride, tokens, padded, panels);
  }
  for (int64_t token = 0; token < tokens; ++token) {
    read_row(x + token * token_stride, head_dim, padded, 1.0f, stage);
    for (int64_t column = 0; column < padded; column += kWidth)
      store(panels + (column / kPanel * tokens + token) * kPanel + column % kPanel, load(stage + column));
  }
}

// Replaces the scores in row[0, keys) by exp(score - max) and the rest of row[0, padded) by 0. Returns the sum and sets
// max_score.
inline float exponentiate(float* row, int64_t keys, int64_t padded, float& max_score) {
  std::fill(row + keys, row + padded, -std::numeric_limits<float>::infinity());
  Vec best = load(row);
  for (int64_t j = kWidth; j < padded; j += kWidth) best = max(best, load(row + j));
  max_score = horizontal_max(best);
  Vec sum = {};
  for (int64_t j = 0; j < padded; j += kWidth) {
    const Vec e = exp(load(row + j) - max_score);
    store(row + j, e);
    sum += e;
  }
  return horizontal_sum(sum);
}

// The same for the keys of `block` that the query sees, with the bias of their distances. Returns the inverse of the
// sum, and sets the log-sum-exp; both are 0 where it sees none.
inline float exponentiate_seen(const Vicinity& vicinity, const Sight& sight, Span block, int64_t padded, float* row,
                               float& logsumexp) {
  if (vicinity.matters()) {
    if (sight.seen.size() == 0) {
      std::fill(row, row + padded, 0.0f);
      return logsumexp = 0.0f;
    }
    vicinity.adjust(sight, block, row);
  }
  float max_score;
  const float sum = exponentiate(row, block.size(), padded, max_score);
  logsumexp = max_score + std::log(sum);
  return 1.0f / sum;
}

struct ForwardScratch {
  float *queries, *keys, *values, *scores, *out, *column_sums, *stage;
  size_t used;
  ForwardScratch(float* base, int64_t keys_padded, int64_t head_dim) {
    Arena arena(base);
    const int64_t padded_dim = round_up(head_dim, kPanel);
    queries = arena.take(kQueryBlock * head_dim);
    keys = arena.take(keys_padded * head_dim);
    values = arena.take(keys_padded * padded_dim);
    scores = arena.take(kQueryBlock * keys_padded);
    out = arena.take(kQueryBlock * padded_dim);
    column_sums = arena.take(keys_padded);
    stage = arena.take(kPanel * padded_dim);
    used = arena.used();
  }
};

// A single query, with values read in place. Its sums are those that it would have among other queries, bit by bit: a
// sample's decision must not depend on whether the whole layer was computed for its companions.
template <typename T>
inline void attend_one_query(const AttentionForward& f, const Vicinity& vicinity, int64_t query, int64_t key_begin,
                             int64_t keys, int64_t head, const ForwardScratch& s) {
  const int64_t dim = f.shape.head_dim;
  Sight sight;
  const Span block = vicinity.look(0, 1, {}, &sight);
  const int64_t seen = block.size(), padded = round_up(seen, kPanel), first = key_begin + block.begin;
  read_row(at<T>(f.q, query, head), dim, dim, f.shape.scale, s.queries);
  pack_tokens_transposed(at<T>(f.k, first, head), f.k.token_stride, seen, dim, s.stage, s.keys);
  multiply(1, padded, dim, {s.queries, dim, 1}, s.keys, dim, s.scores, padded, false);
  float& logsumexp = f.logsumexp[head * f.shape.total_q + query];
  const float inverse = exponentiate_seen(vicinity, sight, block, padded, s.scores, logsumexp);
  std::fill(s.out, s.out + dim, 0.0f);
  for (int64_t j = 0; j < seen; ++j) {
    const T* value = at<T>(f.v, first + j, head);
    const float weight = s.scores[j];
    for (int64_t d = 0; d < dim; ++d) s.out[d] += weight * to_float(value[d]);
  }
  write_row(s.out, dim, inverse, at<T>(f.out, query, head));
  if (f.column_means) {
    float* means = f.column_means + head * f.shape.total_k + key_begin;
    std::fill(means, means + block.begin, 0.0f);
    write_row(s.scores, seen, inverse, means + block.begin);
    std::fill(means + block.end, means + keys, 0.0f);
  }
}

template <typename T>
inline void attend(const AttentionForward& f, int64_t sample, int64_t head, float* scratch) {
  const AttentionShape& shape = f.shape;
  const int64_t q_begin = shape.cu_seqlens_q[sample], queries = shape.cu_seqlens_q[sample + 1] - q_begin;
  const int64_t k_begin = shape.cu_seqlens_k[sample], keys = shape.cu_seqlens_k[sample + 1] - k_begin;
  const int64_t dim = shape.head_dim, padded_dim = round_up(dim, kPanel), padded_keys = round_up(keys, kPanel);
  const ForwardScratch s(scratch, padded_keys, dim);
  const Vicinity vicinity(shape, sample, head);
  if (queries == 1) return attend_one_query<T>(f, vicinity, q_begin, k_begin, keys, head, s);

  pack_tokens_transposed(at<T>(f.k, k_begin, head), f.k.token_stride, keys, dim, s.stage, s.keys);
  pack_tokens(at<T>(f.v, k_begin, head), f.v.token_stride, keys, dim, s.stage, s.values);
  std::fill(s.column_sums, s.column_sums + padded_keys, 0.0f);
  Sight sights[kQueryBlock] = {};
  for (int64_t first = 0; first < queries; first += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, queries - first);
    const Span block = vicinity.look(first, rows, sights[kQueryBlock - 1], sights);
    const int64_t padded = round_up(block.size(), kPanel);
    for (int64_t r = 0; r < rows; ++r)
      read_row(at<T>(f.q, q_begin + first + r, head), dim, dim, shape.scale, s.queries + r * dim);
    multiply(rows, padded, dim, {s.queries, dim, 1}, s.keys + block.begin * dim, dim, s.scores, padded, false);
    float inverse[kQueryBlock];
    for (int64_t r = 0; r < rows; ++r)
      inverse[r] = exponentiate_seen(vicinity, sights[r], block, padded, s.scores + r * padded,
                                     f.logsumexp[head * shape.total_q + q_begin + first + r]);
    if (f.column_means)
      for (int64_t j = 0; j < padded; j += kWidth) {
        Vec sum = load(s.column_sums + block.begin + j);
        for (int64_t r = 0; r < rows; ++r) sum += load(s.scores + r * padded + j) * inverse[r];
        store(s.column_sums + block.begin + j, sum);
      }
    multiply(rows, padded_dim, block.size(), {s.scores, padded, 1}, s.values + block.begin * kPanel, keys, s.out,
             padded_dim, false);
    for (int64_t r = 0; r < rows; ++r)
      write_row(s.out + r * padded_dim, dim, inverse[r], at<T>(f.out, q_begin + first + r, head));
  }
  if (f.column_means) vicinity.divide_by_viewers(s.column_sums, f.column_means + head * shape.total_k + k_begin);
}

struct BackwardScratch {
  float *queries, *query_panels, *out_grads, *out_grad_panels, *keys, *keys_transposed, *values_transposed;
  float *probabilities, *score_grads, *q_grad, *k_grad, *v_grad, *column_grad, *bias_grad, *stage;
  size_t used;
  BackwardScratch(float* base, int64_t keys_padded, int64_t head_dim, int64_t distances) {
    Arena arena(base);
    const int64_t padded_dim = round_up(head_dim, kPanel);
    queries = arena.take(kQueryBlock * padded_dim);
    query_panels = arena.take(kQueryBlock * padded_dim);
    out_grads = arena.take(kQueryBlock * padded_dim);
    out_grad_panels = arena.take(kQueryBlock * padded_dim);
    keys = arena.take(keys_padded * padded_dim);
    keys_transposed = arena.take(keys_padded * head_dim);
    values_transposed = arena.take(keys_padded * head_dim);
    probabilities = arena.take(kQueryBlock * keys_padded);
    score_grads = arena.take(kQueryBlock * keys_padded);
    q_grad = arena.take(kQueryBlock * padded_dim);
    k_grad = arena.take(keys_padded * padded_dim);
    v_grad = arena.take(keys_padded * padded_dim);
    column_grad = arena.take(keys_padded);
    bias_grad = arena.take(distances);
    stage = arena.take(kPanel * padded_dim);
    used = arena.used();
  }
};

// For one query: turns p, its scores, into its probabilities, and grad, its dO . V, into its score gradients
// dS = P o (dP - D), with dP_j = dO . V_j + G_j and D = sum_j P_j dP_j.
inline void differentiate_softmax(const Vicinity& vicinity, const Sight& sight, Span block, int64_t padded,
                                  float logsumexp, const float* column_grad, float* p, float* grad) {
  if (vicinity.matters()) {
    if (sight.seen.size() == 0) {
      std::fill(p, p + padded, 0.0f);
      std::fill(grad, grad + padded, 0.0f);
      return;
    }
    vicinity.adjust(sight, block, p);
  }
  std::fill(p + block.size(), p + padded, -std::numeric_limits<float>::infinity());
  Vec sum = {}, weighted = {};
  for (int64_t j = 0; j < padded; j += kWidth) {
    const Vec e = exp(load(p + j) - logsumexp), dp = load(grad + j) + load(column_grad + j);
    store(p + j, e);
    store(grad + j, dp);
    sum += e;
    weighted += e * dp;
  }
  // The sum is 1 but for the rounding of logsumexp, which large scores magnify.
  const float inverse = 1.0f / horizontal_sum(sum), mean = horizontal_sum(weighted) * inverse;
  for (int64_t j = 0; j < padded; j += kWidth) {
    const Vec probability = load(p + j) * inverse;
    store(p + j, probability);
    store(grad + j, probability * (load(grad + j) - mean));
  }
}

// dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO, and the bias of a bucket gets the sum of its dS.
template <typename T>
inline void attend_backward(const AttentionBackward& b, int64_t sample, int64_t head, float* scratch) {
  const AttentionShape& shape = b.shape;
  const int64_t q_begin = shape.cu_seqlens_q[sample], queries = shape.cu_seqlens_q[sample + 1] - q_begin;
  const int64_t k_begin = shape.cu_seqlens_k[sample], keys = shape.cu_seqlens_k[sample + 1] - k_begin;
  const int64_t dim = shape.head_dim, padded_dim = round_up(dim, kPanel), padded_keys = round_up(keys, kPanel);
  const int64_t distances = shape.places.distances();
  const BackwardScratch s(scratch, padded_keys, dim, distances);
  const Vicinity vicinity(shape, sample, head);

  pack_tokens_transposed(at<T>(b.k, k_begin, head), b.k.token_stride, keys, dim, s.stage, s.keys_transposed);
  pack_tokens_transposed(at<T>(b.v, k_begin, head), b.v.token_stride, keys, dim, s.stage, s.values_transposed);
  pack_tokens(at<T>(b.k, k_begin, head), b.k.token_stride, keys, dim, s.stage, s.keys);
  std::fill(s.k_grad, s.k_grad + keys * padded_dim, 0.0f);
  std::fill(s.v_grad, s.v_grad + keys * padded_dim, 0.0f);
  std::fill(s.column_grad, s.column_grad + padded_keys, 0.0f);
  std::fill(s.bias_grad, s.bias_grad + distances, 0.0f);
  if (b.importance_grad) vicinity.divide_by_viewers(b.importance_grad + head * shape.total_k + k_begin, s.column_grad);

  Sight sights[kQueryBlock] = {};
  for (int64_t first = 0; first < queries; first += kQueryBlock) {
    const int64_t rows = std::min(kQueryBlock, queries - first), token = q_begin + first;
    const Span block = vicinity.look(first, rows, sights[kQueryBlock - 1], sights);
    const int64_t seen = block.size(), padded = round_up(seen, kPanel);
    for (int64_t r = 0; r < rows; ++r) {
      read_row(at<T>(b.q, token + r, head), dim, padded_dim, shape.scale, s.queries + r * padded_dim);
      read_row(at<T>(b.out_grad, token + r, head), dim, padded_dim, 1.0f, s.out_grads + r * padded_dim);
    }
    pack_panels(s.queries, padded_dim, rows, padded_dim, s.query_panels);
    pack_panels(s.out_grads, padded_dim, rows, padded_dim, s.out_grad_panels);
    multiply(rows, padded, dim, {s.queries, padded_dim, 1}, s.keys_transposed + block.begin * dim, dim, s.probabilities,
             padded, false);
    multiply(rows, padded, dim, {s.out_grads, padded_dim, 1}, s.values_transposed + block.begin * dim, dim,
             s.score_grads, padded, false);
    for (int64_t r = 0; r < rows; ++r) {
      float* grad = s.score_grads + r * padded;
      differentiate_softmax(vicinity, sights[r], block, padded, b.logsumexp[head * shape.total_q + token + r],
                            s.column_grad + block.begin, s.probabilities + r * padded, grad);
      if (distances) vicinity.add_bias_gradient(sights[r], block, grad, s.bias_grad);
    }
    multiply(rows, padded_dim, seen, {s.score_grads, padded, 1}, s.keys + block.begin * kPanel, keys, s.q_grad,
             padded_dim, false);
    for (int64_t r = 0; r < rows; ++r)
      write_row(s.q_grad + r * padded_dim, dim, shape.scale, at<T>(b.q_grad, token + r, head));
    // s.queries already contains the scale of dK.
    multiply(seen, padded_dim, rows, {s.score_grads, 1, padded}, s.query_panels, rows,
             s.k_grad + block.begin * padded_dim, padded_dim, true);
    multiply(seen, padded_dim, rows, {s.probabilities, 1, padded}, s.out_grad_panels, rows,
             s.v_grad + block.begin * padded_dim, padded_dim, true);
  }
  for (int64_t j = 0; j < keys; ++j) {
    write_row(s.k_grad + j * padded_dim, dim, 1.0f, at<T>(b.k_grad, k_begin + j, head));
    write_row(s.v_grad + j * padded_dim, dim, 1.0f, at<T>(b.v_grad, k_begin + j, head));
  }
  if (distances)
    add_by_bucket(shape.places, s.bias_grad, b.bias_grad + (sample * shape.heads + head) * shape.places.buckets);
}

}  // namespace mp::MP_ISA
