// The CPU operators that take the padding out of a batch, as torch calls them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "checks.h"

namespace {

using mp::require;
using mp::shape_of;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A padded batch: where its real tokens are, and integers of its tokens.
class Padded {
 public:
  Padded(const char* op, const Tensor& mask, const std::vector<Tensor>& xs)
      : keep_(torch::stable::contiguous(torch::stable::to(mask, ScalarType::Bool))) {
    require(mask.dim() == 2, op, ": attention_mask must be [batch, width]; got ", shape_of(mask));
    for (const Tensor& x : xs) {
      require(x.dim() == 2 && x.size(0) == batch() && x.size(1) == width(), op,
              ": xs must have attention_mask's shape; got ", shape_of(x), " and ", shape_of(mask));
      require(x.scalar_type() == ScalarType::Long || x.scalar_type() == ScalarType::Int, op,
              ": xs must be int64 or int32; got dtype number ", static_cast<int>(x.scalar_type()));
      integers_.push_back(torch::stable::contiguous(torch::stable::to(x, ScalarType::Long)));
    }
  }
  int64_t batch() const { return keep_.size(0); }
  int64_t width() const { return keep_.size(1); }
  const bool* row(int64_t sample) const { return keep_.const_data_ptr<bool>() + sample * width(); }
  size_t kinds() const { return integers_.size(); }
  const int64_t* integers(size_t kind) const { return integers_[kind].const_data_ptr<int64_t>(); }
  // The column of a sample's first real token; the width where it has none.
  int64_t first(int64_t sample) const { return std::find(row(sample), row(sample) + width(), true) - row(sample); }
  Tensor new_integers(std::vector<int64_t> sizes, ScalarType dtype = ScalarType::Long) const {
    return torch::stable::new_empty(keep_, sizes, dtype);
  }

 private:
  Tensor keep_;
  std::vector<Tensor> integers_;
};

std::tuple<Tensor, Tensor> measure_padded(const Tensor& attention_mask, std::vector<Tensor> xs) {
  const Padded padded("measure_padded", attention_mask, xs);
  Tensor starts = padded.new_integers({padded.batch() + 1}, ScalarType::Int);
  Tensor extents = padded.new_integers({5 + 2 * static_cast<int64_t>(padded.kinds())});
  auto* start = starts.mutable_data_ptr<int32_t>();
  auto* facts = extents.mutable_data_ptr<int64_t>();
  std::fill_n(facts, extents.size(0), 0);
  int64_t total = start[0] = 0;
  for (int64_t sample = 0; sample < padded.batch(); ++sample) {
    const bool* keep = padded.row(sample);
    int64_t count = 0, last = -1;
    for (int64_t column = 0; column < padded.width(); ++column) {
      if (!keep[column]) continue;
      ++count, last = column;
      for (size_t kind = 0; kind < padded.kinds(); ++kind) {
        const int64_t value = padded.integers(kind)[sample * padded.width() + column];
        int64_t *lowest = facts + 5 + 2 * kind, *highest = lowest + 1;
        *lowest = std::min(*lowest, value), *highest = std::max(*highest, value);
      }
    }
    total += count;
    start[sample + 1] = static_cast<int32_t>(total);
    facts[1] = std::max(facts[1], count);
    if (sample == 0 || count < facts[2]) facts[2] = count, facts[3] = sample;
    if (count > 0) facts[4] = std::max(facts[4], last + 1 - padded.first(sample));
  }
  facts[0] = total;
  return {starts, extents};
}

std::tuple<Tensor, Tensor, Tensor> pack_padded(const Tensor& attention_mask, const Tensor& /*cu_seqlens*/,
                                               int64_t total, std::vector<Tensor> xs) {
  const char* op = "pack_padded";
  const Padded padded(op, attention_mask, xs);
  int64_t real = 0;
  for (int64_t sample = 0; sample < padded.batch(); ++sample)
    real += std::count(padded.row(sample), padded.row(sample) + padded.width(), true);
  require(total == real, op, ": total must be the number of real tokens, ", real, "; got ", total);
  Tensor index = padded.new_integers({total}), places = padded.new_integers({total});
  Tensor packed = padded.new_integers({static_cast<int64_t>(padded.kinds()), total});
  auto *at = index.mutable_data_ptr<int64_t>(), *place = places.mutable_data_ptr<int64_t>();
  auto* values = packed.mutable_data_ptr<int64_t>();
  int64_t row = 0;
  for (int64_t sample = 0; sample < padded.batch(); ++sample) {
    const bool* keep = padded.row(sample);
    for (int64_t first = padded.first(sample), column = first; column < padded.width(); ++column) {
      if (!keep[column]) continue;
      at[row] = sample * padded.width() + column;
      place[row] = column - first;
      for (size_t kind = 0; kind < padded.kinds(); ++kind)
        values[static_cast<int64_t>(kind) * total + row] = padded.integers(kind)[at[row]];
      ++row;
    }
  }
  return {index, places, packed};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mp_kernels, CPU, m) {
  m.impl("measure_padded", TORCH_BOX(&measure_padded));
  m.impl("pack_padded", TORCH_BOX(&pack_padded));
}
