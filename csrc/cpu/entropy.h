// Uncertainties of a row of logits: of the choice of one label, and of the most uncertain label.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "dtype.h"

namespace mp {

// Normalised entropy, u = -sum p log p / log N.
// With z = logit - max, Z = sum e^z and E = sum e^z z: -sum p log p = log Z - E / Z. A probability of 0 contributes 0.
// The result is clamped to [0, 1], which rounding could leave; NaN stays NaN.
template <typename T>
inline float normalized_entropy(const T* logits, int64_t classes) {
  float max_logit = to_float(logits[0]);
  for (int64_t i = 1; i < classes; ++i) max_logit = std::max(max_logit, to_float(logits[i]));
  float partition = 0, weighted = 0;
  for (int64_t i = 0; i < classes; ++i) {
    const float z = to_float(logits[i]) - max_logit, e = std::exp(z);
    partition += e;
    if (e != 0) weighted += e * z;
  }
  const float entropy = (std::log(partition) - weighted / partition) / std::log(static_cast<float>(classes));
  return entropy < 0 ? 0.0f : entropy > 1 ? 1.0f : entropy;
}

// u = max_j H(sigmoid(logit_j)) / log 2, where H is the binary entropy. H falls with |logit|, so the label with the
// least of them, a, counts: with e = exp(-a), H = log(1 + e) + a e / (1 + e). A probability of 0 contributes 0; NaN
// stays NaN.
template <typename T>
inline float label_entropy(const T* logits, int64_t labels) {
  float least = std::abs(to_float(logits[0]));
  for (int64_t i = 1; i < labels; ++i) {
    const float a = std::abs(to_float(logits[i]));
    if (!(a >= least) && !std::isnan(least)) least = a;
  }
  const float e = std::exp(-least);
  const float entropy = (std::log1p(e) + (e == 0 ? 0.0f : least * e / (1 + e))) / std::log(2.0f);
  return entropy > 1 ? 1.0f : entropy;
}

}  // namespace mp
