// The kernels of csrc/cuda on numpy arrays, through the emulator.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <optional>

#include "../../csrc/cuda/gather.cuh"

namespace py = pybind11;

namespace {

using Index = py::array_t<int64_t, py::array::c_style>;

// A requirement of the kernels that csrc/cuda/ops_cuda.cu meets before it launches them.
void require_rows(const py::array& x) {
  if (x.ndim() != 2 || (x.size() > 0 && x.shape(1) > 1 && x.strides(1) != x.itemsize()))
    throw std::invalid_argument("rows must be [rows, width] with the elements of a row together");
}

void gather(const std::vector<py::array>& xs, const Index& index, std::vector<py::array> outs, int64_t max_blocks,
            unsigned schedule) {
  std::vector<mp::RowCopy> copies;
  for (size_t t = 0; t < xs.size(); ++t) {
    require_rows(xs[t]);
    mp::RowCopy& copy = copies.emplace_back();
    copy.x = static_cast<const char*>(xs[t].data());
    copy.out = static_cast<char*>(outs.at(t).mutable_data());
    copy.rows = xs[t].shape(0);
    copy.row_bytes = xs[t].shape(1) * xs[t].itemsize();
    copy.stride_bytes = xs[t].strides(0);
  }
  simt::schedule = schedule;
  mp::gather(copies.data(), copies.size(), index.data(), index.size(), nullptr, max_blocks);
}

void gather_backward(const std::vector<std::string>& types, const std::vector<py::array>& grads, const Index& sorted,
                     const std::optional<Index>& order, std::vector<py::array> sums, int64_t max_blocks,
                     unsigned schedule) {
  static const std::map<std::string, mp::GradType> kTypes{{"float32", mp::GradType::kFloat32},
                                                          {"float16", mp::GradType::kFloat16},
                                                          {"bfloat16", mp::GradType::kBFloat16},
                                                          {"float64", mp::GradType::kFloat64}};
  std::vector<mp::RowSum> parts;
  for (size_t t = 0; t < grads.size(); ++t) {
    require_rows(grads[t]);
    mp::RowSum& sum = parts.emplace_back();
    sum.type = kTypes.at(types.at(t));
    sum.grad = grads[t].data();
    sum.sum = sums.at(t).mutable_data();
    sum.rows = sums[t].shape(0);
    sum.width = grads[t].shape(1);
    sum.stride = grads[t].strides(0) / grads[t].itemsize();
  }
  simt::schedule = schedule;
  mp::gather_backward(parts.data(), parts.size(), sorted.data(), order ? order->data() : nullptr, sorted.size(),
                      nullptr, max_blocks);
}

}  // namespace

PYBIND11_MODULE(simt_kernels, m) {
  m.attr("TENSORS_PER_LAUNCH") = mp::kTensorsPerLaunch;
  m.attr("MAX_BLOCKS") = mp::kMaxBlocks;
  m.def("widest_access", &mp::widest_access);
  m.def("gather", &gather);
  m.def("gather_backward", &gather_backward);
}
