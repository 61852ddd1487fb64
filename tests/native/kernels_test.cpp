// The CPU kernels against loops in double precision, without torch: for processors that can only be emulated.
// Runs every build of the kernels that the processor can run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/kernels.h"

namespace {

int failures = 0;

void expect_close(const char* what, const mp::Kernels& kernels, const std::vector<float>& got,
                  const std::vector<double>& wanted, double tolerance) {
  double worst = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::abs(got[i] - wanted[i]);
    if (!(error <= worst)) worst = error;  // also true for NaN
  }
  const bool passed = got.size() == wanted.size() && worst <= tolerance;
  std::printf("%-8s %-28s worst error %.1e%s\n", kernels.name, what, worst, passed ? "" : "  FAILED");
  failures += !passed;
}

std::vector<float> random_floats(size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(generator);
  return values;
}

struct Problem {
  int64_t heads, dim;
  std::vector<int32_t> starts;
  int64_t window = -1, reach = -1;  // the latter of a bias, -1: none
  int64_t total() const { return starts.back(); }
};

// Places of queries and keys, which are never the same, and a bias with a bucket for each two distances.
struct RandomPlaces {
  std::vector<int32_t> queries, keys, bucket_of;
  std::vector<float> bias;  // [heads, distances]
  int64_t reach, distances, buckets, window;

  explicit RandomPlaces(const Problem& p)
      : reach(p.reach), distances(2 * p.reach + 1), buckets(p.reach + 1), window(p.window) {
    for (size_t b = 0; b + 1 < p.starts.size(); ++b)
      for (int32_t i = 0; i < p.starts[b + 1] - p.starts[b]; ++i) {
        keys.push_back(3 * i + i / 4 * 5);
        queries.push_back(keys.back() + 1);
      }
    if (reach < 0) return;
    const std::vector<float> by_bucket = random_floats(p.heads * buckets, 6);
    for (int32_t d = 0; d < distances; ++d) bucket_of.push_back(d / 2);
    for (int64_t h = 0; h < p.heads; ++h)
      for (const int32_t bucket : bucket_of) bias.push_back(by_bucket[h * buckets + bucket]);
  }
  mp::Places pointers() const {
    if (reach < 0 && window < 0) return {};
    if (reach < 0) return {queries.data(), keys.data(), nullptr, nullptr, 0, 0, window};
    return {queries.data(), keys.data(), bias.data(), bucket_of.data(), reach, buckets, window};
  }
  int64_t distance_index(int64_t i, int64_t j) const {
    return std::min(std::max<int64_t>(keys[j] - queries[i], -reach), reach) + reach;
  }
  double bias_of(int64_t head, int64_t i, int64_t j) const {
    return reach < 0 ? 0 : bias[head * distances + distance_index(i, j)];
  }
  bool exists(int64_t i, int64_t j) const { return window < 0 || std::abs(keys[j] - queries[i]) <= window; }
};

void test_attention(const mp::Kernels& kernels, const Problem& p) {
  const int64_t heads = p.heads, dim = p.dim, total = p.total(), size = total * heads * dim;
  const double scale = 1 / std::sqrt(static_cast<double>(dim));
  std::vector<float> q = random_floats(size, 1), k = random_floats(size, 2), v = random_floats(size, 3);
  std::vector<float> out_grad = random_floats(size, 4), importance_grad = random_floats(heads * total, 5);
  std::vector<float> out(size, NAN), by_head(heads * total, NAN), logsumexp(heads * total, NAN), importance(total, NAN);
  std::vector<float> q_grad(size, NAN), k_grad(size, NAN), v_grad(size, NAN);
  const auto tensor = [&](std::vector<float>& x) { return mp::Heads{x.data(), heads * dim, dim}; };

  const RandomPlaces places(p);
  const int64_t buckets = p.reach < 0 ? 0 : places.buckets, samples = static_cast<int64_t>(p.starts.size()) - 1;
  std::vector<float> bias_shares(samples * heads * buckets, NAN), bias_grad(heads * buckets);
  std::vector<double> want_bias(heads * buckets);
  const mp::AttentionShape shape{mp::Dtype::kFloat32,       p.starts.data(),  p.starts.data(), heads, dim, total, total,
                                 static_cast<float>(scale), places.pointers()};
  const mp::AttentionForward forward{shape,       tensor(q),      tensor(k),       tensor(v),
                                     tensor(out), by_head.data(), logsumexp.data()};
  const mp::AttentionBackward backward{shape,
                                       tensor(q),
                                       tensor(k),
                                       tensor(v),
                                       tensor(out_grad),
                                       importance_grad.data(),
                                       logsumexp.data(),
                                       tensor(q_grad),
                                       tensor(k_grad),
                                       tensor(v_grad),
                                       bias_shares.data()};
  std::vector<double> want_out(size), want_importance(total), want_q(size), want_k(size), want_v(size);
  for (size_t b = 0; b + 1 < p.starts.size(); ++b) {
    const int64_t begin = p.starts[b], n = p.starts[b + 1] - begin;
    std::vector<float> scratch(std::max(kernels.attention_forward_scratch(n, dim),
                                        kernels.attention_backward_scratch(n, dim, shape.places.distances())));
    for (int64_t h = 0; h < heads; ++h) {
      kernels.attention_forward(forward, static_cast<int64_t>(b), h, scratch.data());
      kernels.attention_backward(backward, static_cast<int64_t>(b), h, scratch.data());
      const auto at = [&](int64_t token, int64_t d) { return ((begin + token) * heads + h) * dim + d; };
      std::vector<double> viewers(n);
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < n; ++i) viewers[j] += places.exists(begin + i, begin + j);
      for (int64_t i = 0; i < n; ++i) {
        std::vector<double> probability(n), slope(n);
        double partition = 0, mean_slope = 0;
        for (int64_t j = 0; j < n; ++j) {
          if (!places.exists(begin + i, begin + j)) continue;
          double score = 0;
          for (int64_t d = 0; d < dim; ++d) score += static_cast<double>(q[at(i, d)]) * k[at(j, d)];
          partition += probability[j] = std::exp(score * scale + places.bias_of(h, begin + i, begin + j));
        }
        for (int64_t j = 0; j < n; ++j) {
          if (!places.exists(begin + i, begin + j)) continue;
          probability[j] /= partition;
          want_importance[begin + j] += probability[j] / (static_cast<double>(heads) * viewers[j]);
          slope[j] = importance_grad[h * total + begin + j] / viewers[j];
          for (int64_t d = 0; d < dim; ++d) {
            want_out[at(i, d)] += probability[j] * v[at(j, d)];
            want_v[at(j, d)] += probability[j] * out_grad[at(i, d)];
            slope[j] += static_cast<double>(out_grad[at(i, d)]) * v[at(j, d)];
          }
          mean_slope += probability[j] * slope[j];
        }
        for (int64_t j = 0; j < n; ++j) {
          const double score_grad = probability[j] * (slope[j] - mean_slope);
          if (buckets)
            want_bias[h * buckets + places.bucket_of[places.distance_index(begin + i, begin + j)]] += score_grad;
          for (int64_t d = 0; d < dim; ++d) {
            want_q[at(i, d)] += scale * score_grad * k[at(j, d)];
            want_k[at(j, d)] += scale * score_grad * q[at(i, d)];
          }
        }
      }
    }
    kernels.mean_over_heads(by_head.data(), heads, total, begin, begin + n, importance.data());
  }
  expect_close("attention", kernels, out, want_out, 1e-5);
  expect_close("importance", kernels, importance, want_importance, 1e-5);
  expect_close("attention, q gradient", kernels, q_grad, want_q, 1e-5);
  expect_close("attention, k gradient", kernels, k_grad, want_k, 1e-5);
  expect_close("attention, v gradient", kernels, v_grad, want_v, 1e-5);
  for (int64_t i = 0; i < samples * heads * buckets; ++i) bias_grad[i % (heads * buckets)] += bias_shares[i];
  if (buckets) expect_close("attention, bias gradient", kernels, bias_grad, want_bias, 1e-5);
}

void test_rows(const mp::Kernels& kernels, int64_t width) {
  const int64_t rows = 5;
  const std::vector<float> x = random_floats(rows * width, 1), residual = random_floats(rows * width, 2);
  const std::vector<float> weight = random_floats(width, 3), bias = random_floats(width, 4);
  std::vector<float> normed(rows * width, NAN), grown(rows * width, NAN), mean(width, NAN), pair(4 * width, NAN);
  std::vector<double> want_normed(rows * width), want_grown(rows * width), want_mean(width), want_pair(4 * width);
  const mp::LayerNorm norm{mp::Dtype::kFloat32, x.data(),    nullptr,       residual.data(), nullptr,
                           weight.data(),       bias.data(), normed.data(), width,           1e-12f};
  kernels.add_layer_norm(norm, 0, rows);
  kernels.bias_gelu(mp::Dtype::kFloat32, x.data(), bias.data(), grown.data(), width, 0, rows);
  kernels.mean_rows(mp::Dtype::kFloat32, x.data(), mean.data(), width, 0, rows);
  kernels.pair_features({mp::Dtype::kFloat32, bias.data(), x.data(), pair.data(), width, 0, 2, rows});
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < width; ++i) sum += static_cast<double>(x[r * width + i]) + residual[r * width + i];
    const double centre = sum / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i)
      squares += std::pow(static_cast<double>(x[r * width + i]) + residual[r * width + i] - centre, 2);
    for (int64_t i = 0; i < width; ++i) {
      const double added = static_cast<double>(x[r * width + i]) + residual[r * width + i];
      const double biased = static_cast<double>(x[r * width + i]) + bias[i];
      want_normed[r * width + i] =
          (added - centre) / std::sqrt(squares / static_cast<double>(width)) * weight[i] + bias[i];
      want_grown[r * width + i] = biased * 0.5 * std::erfc(-biased / std::sqrt(2.0));
      want_mean[i] += x[r * width + i] / static_cast<double>(rows);
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    double a = 0, b = 0;
    for (int64_t r = 0; r < rows; ++r) (r < 2 ? a : b) += x[r * width + i];
    a /= 2, b /= static_cast<double>(rows - 2);
    want_pair[i] = bias[i], want_pair[width + i] = want_mean[i];
    want_pair[2 * width + i] = std::abs(a - b), want_pair[3 * width + i] = a * b;
  }
  expect_close("features of a pair", kernels, pair, want_pair, 1e-5);
  expect_close("add + LayerNorm", kernels, normed, want_normed, 1e-5);
  expect_close("bias + GELU", kernels, grown, want_grown, 1e-5);
  expect_close("mean of rows", kernels, mean, want_mean, 1e-5);
}

void test_gate_and_rotation(const mp::Kernels& kernels, int64_t width) {
  const int64_t rows = 5, heads = 3, head_dim = 2 * width;
  const std::vector<float> x = random_floats(rows * heads * head_dim, 1), angles = random_floats(7 * width, 2);
  const std::vector<int32_t> positions{6, 0, 3, 3, 1};
  std::vector<float> cos(7 * width), sin(7 * width), gated(rows * heads * width, NAN), turned(x.size(), NAN);
  std::vector<double> want_gated(gated.size()), want_turned(x.size());
  for (size_t i = 0; i < angles.size(); ++i) cos[i] = std::cos(angles[i]), sin[i] = std::sin(angles[i]);
  const mp::Heads from{const_cast<float*>(x.data()), heads * head_dim, head_dim};
  kernels.gelu_gate(mp::Dtype::kFloat32, x.data(), gated.data(), width, 0, rows * heads);
  kernels.rotary_embedding(
      {mp::Dtype::kFloat32, from, positions.data(), cos.data(), sin.data(), turned.data(), heads, head_dim}, 0, rows);
  for (int64_t r = 0; r < rows * heads; ++r)
    for (int64_t i = 0; i < width; ++i) {
      const double first = x[r * head_dim + i], second = x[r * head_dim + width + i];
      const double c = cos[positions[r / heads] * width + i], s = sin[positions[r / heads] * width + i];
      want_gated[r * width + i] = first * 0.5 * std::erfc(-first / std::sqrt(2.0)) * second;
      want_turned[r * head_dim + i] = first * c - second * s;
      want_turned[r * head_dim + width + i] = second * c + first * s;
    }
  expect_close("GELU gate", kernels, gated, want_gated, 1e-5);
  expect_close("rotary positions", kernels, turned, want_turned, 1e-6);
}

// A linear layer by its definition; `stride`: elements from one row of x to the next.
std::vector<double> linear_layer(const std::vector<float>& x, int64_t stride, const std::vector<float>& weight,
                                 const std::vector<float>& bias) {
  const auto outputs = static_cast<int64_t>(bias.size()), rows = static_cast<int64_t>(x.size()) / stride;
  const int64_t features = static_cast<int64_t>(weight.size()) / outputs;
  std::vector<double> wanted(rows * outputs);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < outputs; ++o) {
      wanted[r * outputs + o] = bias[o];
      for (int64_t i = 0; i < features; ++i)
        wanted[r * outputs + o] += static_cast<double>(x[r * stride + i]) * weight[o * features + i];
    }
  return wanted;
}

void test_dense(const mp::Kernels& kernels, int64_t rows, int64_t features, int64_t outputs) {
  std::vector<float> x = random_floats(rows * features, 1), weight = random_floats(outputs * features, 2);
  std::vector<float> bias = random_floats(outputs, 3), out(rows * outputs, NAN), halves(rows * outputs, NAN);
  for (float& w : weight) w /= std::sqrt(static_cast<float>(features));
  const std::vector<double> wanted = linear_layer(x, features, weight, bias);
  const auto layer = [&](std::vector<float>& to) {
    return mp::Dense{mp::Dtype::kFloat32, x.data(), weight.data(), bias.data(), to.data(), rows, features, outputs};
  };
  kernels.dense(layer(out), 0, outputs);
  kernels.dense(layer(halves), 0, outputs / 2);
  kernels.dense(layer(halves), outputs / 2, outputs);
  expect_close("linear layer", kernels, out, wanted, 1e-5);
  expect_close("the same in two parts", kernels, halves, {out.begin(), out.end()}, 0);
}

void test_float_linear(const mp::Kernels& kernels, int64_t rows, int64_t features, int64_t outputs) {
  const int64_t stride = features + 5, panel = kernels.float_panel, panels = (rows + panel - 1) / panel;
  std::vector<float> x = random_floats(rows * stride, 1), weight = random_floats(outputs * features, 2);
  std::vector<float> bias = random_floats(outputs, 3), out(rows * outputs, NAN), scratch(kernels.float_scratch, NAN);
  std::vector<float> packed(panels * panel * features, NAN);
  for (float& w : weight) w /= std::sqrt(static_cast<float>(features));
  const std::vector<double> wanted = linear_layer(x, stride, weight, bias);
  const mp::FloatLinear layer{x.data(),      rows,        features,      outputs,   stride,
                              weight.data(), bias.data(), packed.data(), out.data()};
  for (int64_t i = 0; i < panels; ++i) kernels.pack_float_rows(layer, i, i + 1);
  const int64_t strips = (outputs + kernels.float_strip - 1) / kernels.float_strip;
  kernels.multiply_float_rows(layer, 0, 1, scratch.data());
  kernels.multiply_float_rows(layer, 1, strips, scratch.data());
  expect_close("linear layer of packed rows", kernels, out, wanted, 2e-5);
}

void test_int8(const mp::Kernels& kernels, int64_t width) {
  const int64_t rows = 5;
  std::vector<float> x = random_floats(rows * width, 1), residual = random_floats(rows * width, 2);
  std::vector<float> weight = random_floats(width, 3), bias = random_floats(width, 4), column_scales(width, 1e-3f);
  std::vector<float> scales(rows, NAN), back(rows * width, NAN), values(rows * width, NAN), normed(rows * width, NAN);
  std::vector<float> grown_scales(rows, NAN), grown(rows * width, NAN);
  std::vector<int8_t> quantised(rows * width), quantised_gelu(rows * width);
  std::vector<int32_t> product(rows * width);
  std::vector<double> want_back(rows * width), want_values(rows * width), want_grown(rows * width);
  std::vector<double> want_normed(rows * width);

  const mp::Int8Rows out{quantised.data(), scales.data()};
  kernels.quantize_rows(x.data(), nullptr, width, out, 0, rows);
  kernels.dequantize_rows(out, nullptr, width, back.data(), 0, rows);
  for (int64_t i = 0; i < rows * width; ++i) product[i] = quantised[i] * 20;
  const mp::Int8Product from{product.data(), 0, scales.data(), column_scales.data(), bias.data(), width};
  kernels.dequantize(from, values.data(), 0, rows);
  kernels.dequantize_gelu(from, {quantised_gelu.data(), grown_scales.data()}, 0, rows);
  kernels.dequantize_rows({quantised_gelu.data(), grown_scales.data()}, nullptr, width, grown.data(), 0, rows);
  const mp::LayerNorm norm{mp::Dtype::kFloat32, nullptr,     nullptr,       residual.data(), nullptr,
                           weight.data(),       bias.data(), normed.data(), width,           1e-2f};
  kernels.dequantize_add_layer_norm(from, norm, 0, rows);

  double worst = 0;  // of what was rounded, in scales: half of one is the most
  for (int64_t r = 0; r < rows; ++r) {
    double largest = 0, largest_gelu = 0, sum = 0, squares = 0;
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(x[i])));
      want_values[i] = product[i] * static_cast<double>(scales[r]) * 1e-3f + bias[i - r * width];
      want_grown[i] = want_values[i] * 0.5 * std::erfc(-want_values[i] / std::sqrt(2.0));
      largest_gelu = std::max(largest_gelu, std::abs(want_grown[i]));
      sum += want_values[i] + residual[i];
    }
    const double scale = largest / 127, scale_gelu = largest_gelu / 127, centre = sum / static_cast<double>(width);
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      want_back[i] = std::nearbyint(x[i] / scale) * scale;
      worst = std::max({worst, std::abs(back[i] - x[i]) / scale, std::abs(grown[i] - want_grown[i]) / scale_gelu});
      squares += std::pow(want_values[i] + residual[i] - centre, 2);
    }
    for (int64_t i = r * width; i < (r + 1) * width; ++i)
      want_normed[i] = (want_values[i] + residual[i] - centre) /
                           std::sqrt(squares / static_cast<double>(width) + 1e-2) * weight[i - r * width] +
                       bias[i - r * width];
  }
  expect_close("rounding, in scales", kernels, {static_cast<float>(worst)}, {0.25}, 0.2501);
  expect_close("rows to int8 and back", kernels, back, want_back, 1e-5);
  expect_close("product to floats", kernels, values, want_values, 1e-5);
  expect_close("product + LayerNorm", kernels, normed, want_normed, 1e-4);
}

void test_int8_product(const mp::Kernels& kernels, int64_t rows, int64_t features, int64_t outputs) {
  if (!kernels.takes_int8_weight || !kernels.takes_int8_weight(outputs, features)) return;
  std::vector<int8_t> left(rows * features), weight(outputs * features), packed(outputs * features);
  for (size_t i = 0; i < left.size(); ++i) left[i] = static_cast<int8_t>(i * 37 % 255 - 127);
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = static_cast<int8_t>(i * 101 % 255 - 127);
  std::vector<int32_t> product(rows * outputs, -1);
  std::vector<float> scratch(kernels.int8_scratch(rows, features));
  kernels.pack_int8_weight(weight.data(), features, packed.data(), 0, 1);
  kernels.pack_int8_weight(weight.data(), features, packed.data(), 1, outputs / 16);
  kernels.multiply_int8(left.data(), rows, features, packed.data(), outputs, product.data(), outputs, scratch.data());
  std::vector<double> wanted(rows * outputs);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < outputs; ++o)
      for (int64_t i = 0; i < features; ++i)
        wanted[r * outputs + o] += left[r * features + i] * weight[o * features + i];
  expect_close("product of int8", kernels, {product.begin(), product.end()}, wanted, 0);
}

void test_half_layers(const mp::Kernels& kernels, int64_t rows, int64_t width, int64_t grown) {
  if (!kernels.takes_half_weight || !kernels.takes_half_weight(grown, width)) return;
  const auto halves = [](int64_t n, unsigned seed, float factor) {
    std::vector<mp::BFloat16> rounded;
    for (const float x : random_floats(n, seed)) rounded.push_back(mp::from_float<mp::BFloat16>(x * factor));
    return rounded;
  };
  const auto x = halves(rows * width, 1, 1), grow = halves(grown * width, 2, 0.1f), grow_bias = halves(grown, 3, 1);
  const auto shrink = halves(grown * width, 4, 0.1f), bias = halves(width, 5, 1), factor = halves(width, 6, 1);
  std::vector<mp::BFloat16> packed(grow.size()), packed_shrink(shrink.size()), half_out(rows * grown), normed(x.size());
  kernels.pack_half_weight(grow.data(), width, packed.data(), 0, 1);
  kernels.pack_half_weight(grow.data(), width, packed.data(), 1, grown / 16);
  kernels.pack_half_weight(shrink.data(), grown, packed_shrink.data(), 0, width / 16);
  std::vector<float> scratch(kernels.linear_scratch(rows, width, grown, width) + 16);
  float* memory = scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) / 4;
  const mp::LayerNorm norm{mp::Dtype::kBFloat16, nullptr,     nullptr,       x.data(), nullptr,
                           factor.data(),        bias.data(), normed.data(), width,    1e-2f};
  std::vector<double> want_out, want_normed;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<double> inner, added;
    for (int64_t o = 0; o < grown; ++o) {
      double sum = mp::to_float(grow_bias[o]);
      for (int64_t i = 0; i < width; ++i) sum += mp::to_float(x[r * width + i]) * mp::to_float(grow[o * width + i]);
      want_out.push_back(sum);
      inner.push_back(sum * 0.5 * std::erfc(-sum / std::sqrt(2.0)));
    }
    double mean = 0, squares = 0;
    for (int64_t o = 0; o < width; ++o) {
      double sum = static_cast<double>(mp::to_float(bias[o])) + mp::to_float(x[r * width + o]);
      for (int64_t i = 0; i < grown; ++i) sum += inner[i] * mp::to_float(shrink[o * grown + i]);
      added.push_back(sum);
      mean += sum / static_cast<double>(width);
    }
    for (const double v : added) squares += (v - mean) * (v - mean) / static_cast<double>(width);
    for (int64_t o = 0; o < width; ++o)
      want_normed.push_back((added[o] - mean) / std::sqrt(squares + 1e-2) * mp::to_float(factor[o]) +
                            mp::to_float(bias[o]));
  }
  for (const bool pack : {true, false}) {
    const mp::HalfLinear growing{grow.data(), pack ? packed.data() : nullptr, grow_bias.data(), grown, width};
    const mp::HalfLinear shrinking{shrink.data(), pack ? packed_shrink.data() : nullptr, bias.data(), width, grown};
    std::vector<float> out, norms;
    kernels.linear(growing, {x.data(), width}, half_out.data(), 0, rows, memory);
    kernels.feed_forward(growing, shrinking, {x.data(), width}, norm, 0, rows, memory);
    for (const mp::BFloat16 v : half_out) out.push_back(mp::to_float(v));
    for (const mp::BFloat16 v : normed) norms.push_back(mp::to_float(v));
    expect_close("bfloat16 layer", kernels, out, want_out, 0.03);
    expect_close("bfloat16 feed-forward", kernels, norms, want_normed, 0.05);
  }
  if (!kernels.pack_half_rows) return;
  // The same bits where threads share the outputs.
  const int64_t row_panels = (rows + 15) / 16, blocks = (grown + 31) / 32, width_blocks = (width + 31) / 32;
  const auto packed_rows = [&](const mp::BFloat16* from, int64_t features) {
    std::vector<mp::BFloat16> panels(row_panels * 16 * features);
    kernels.pack_half_rows({from, features}, rows, features, panels.data(), 0, 1);
    kernels.pack_half_rows({from, features}, rows, features, panels.data(), 1, row_panels);
    return panels;
  };
  const mp::HalfLinear growing{grow.data(), nullptr, grow_bias.data(), grown, width};
  const mp::HalfLinear shrinking{shrink.data(), nullptr, bias.data(), width, grown};
  const auto panels = packed_rows(x.data(), width);
  std::vector<mp::BFloat16> shared(rows * grown), shared_norms(normed.size());
  std::vector<float> block(kernels.half_outputs_scratch), sums(kernels.half_sums(rows, width));
  const auto grow_all = [&](bool gelu) {
    kernels.half_outputs(growing, panels.data(), rows, gelu, shared.data(), 0, 1, block.data());
    kernels.half_outputs(growing, panels.data(), rows, gelu, shared.data(), 1, blocks, block.data());
  };
  const auto as_floats = [](const std::vector<mp::BFloat16>& halves) {
    std::vector<float> floats;
    for (const mp::BFloat16 v : halves) floats.push_back(mp::to_float(v));
    return floats;
  };
  const auto as_wanted = [&](const std::vector<mp::BFloat16>& halves) {
    const std::vector<float> floats = as_floats(halves);
    return std::vector<double>(floats.begin(), floats.end());
  };
  grow_all(false);
  expect_close("bfloat16 layer, shared", kernels, as_floats(shared), as_wanted(half_out), 0);
  grow_all(true);
  const auto inner_panels = packed_rows(shared.data(), grown);
  mp::LayerNorm shared_norm = norm;
  shared_norm.out = shared_norms.data();
  kernels.sum_half_outputs(shrinking, inner_panels.data(), rows, sums.data(), 0, 1);
  kernels.sum_half_outputs(shrinking, inner_panels.data(), rows, sums.data(), 1, width_blocks);
  kernels.norm_half_sums(shrinking, shared_norm, sums.data(), rows, 0, rows);
  expect_close("bfloat16 norm, shared", kernels, as_floats(shared_norms), as_wanted(normed), 0);
}

}  // namespace

int main() {
  for (const mp::Kernels* const* kernels = mp::runnable_kernels(); *kernels; ++kernels) {
    test_attention(**kernels, {2, 64, {0, 1, 3, 34, 51, 100}});
    test_attention(**kernels, {3, 20, {0, 25, 41}});
    for (const int64_t window : {-1, 0, 1, 10, 1000})
      for (const int64_t reach : {-1, 0, 9, 500}) test_attention(**kernels, {2, 20, {0, 1, 3, 34, 100}, window, reach});
    for (const int64_t width : {1, 16, 33}) test_gate_and_rotation(**kernels, width);
    for (const int64_t width : {64, 50, 4100}) test_rows(**kernels, width);
    for (const int64_t width : {64, 50, 4100}) test_int8(**kernels, width);
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 16, 31, 32, 50, 64}) {
      test_int8_product(**kernels, rows, 128, 48);
      test_int8_product(**kernels, rows, 48, 32);
    }
    for (const int64_t rows : {1, 16, 31, 32, 50, 64}) test_half_layers(**kernels, rows, 64, 416);
    test_dense(**kernels, 7, 50, 9);
    test_dense(**kernels, 33, 64, 20);
    for (const int64_t rows : {1, 4, 15, 16, 17, 33, 128, 129, 300}) test_float_linear(**kernels, rows, 64, 80);
    test_float_linear(**kernels, 20, 1600, 48);
  }
  std::printf("%s\n", failures ? "FAILED" : "all kernels agree");
  return failures ? EXIT_FAILURE : EXIT_SUCCESS;
}
