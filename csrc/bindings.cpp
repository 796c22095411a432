// The only file that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "rans/rans.hpp"
#include "svd_lora/svd_lora.hpp"

namespace py = pybind11;
using namespace lora_comp;

namespace {

// lora_comp/rans.py has checked shapes and made these C-contiguous; anything else is a TypeError here.
using Ints = py::array_t<int32_t, py::array::c_style>;

rans::Tables make_tables(const Ints& cdfs, const Ints& sizes, const Ints& offsets) {
  if (cdfs.ndim() != 2 || sizes.size() != cdfs.shape(0) || offsets.size() != cdfs.shape(0))
    throw std::invalid_argument("cdfs must be (tables, entries), sizes and offsets (tables,)");
  return {cdfs.data(), sizes.data(), offsets.data(), static_cast<size_t>(cdfs.shape(0)),
          static_cast<size_t>(cdfs.shape(1))};
}

py::bytes encode(const Ints& symbols, const Ints& indexes, const Ints& cdfs, const Ints& sizes, const Ints& offsets,
                 unsigned threads, const std::string& kernel) {
  if (symbols.size() != indexes.size()) throw std::invalid_argument("symbols and indexes must have one shape");
  const auto n = static_cast<size_t>(symbols.size());
  std::string data;
  {
    const int32_t *s = symbols.data(), *i = indexes.data();
    const py::gil_scoped_release release;
    data = rans::encode(s, i, n, make_tables(cdfs, sizes, offsets), {threads, kernel});
  }
  return py::bytes(data);
}

void decode(const py::bytes& data, const Ints& indexes, const Ints& cdfs, const Ints& sizes, const Ints& offsets,
            Ints& symbols, unsigned threads, const std::string& kernel) {
  if (symbols.size() != indexes.size()) throw std::invalid_argument("symbols and indexes must have one shape");
  char* bytes = nullptr;
  Py_ssize_t size = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &bytes, &size) != 0) throw py::error_already_set();
  int32_t* const out = symbols.mutable_data();
  const py::gil_scoped_release release;
  rans::decode(reinterpret_cast<const uint8_t*>(bytes), static_cast<size_t>(size), indexes.data(),
               static_cast<size_t>(indexes.size()), make_tables(cdfs, sizes, offsets), out,
               {threads, kernel});
}

void low_rank_update(uintptr_t y, uintptr_t x, uintptr_t u, uintptr_t s, uintptr_t v, ptrdiff_t y_stride,
                     ptrdiff_t x_stride, size_t n, size_t in, size_t out, int rank, float scale,
                     std::optional<uintptr_t> stream) {
  if (rank < 1 || rank > kMaxRank) throw std::invalid_argument("rank must lie in [1, 16]");
  const auto input = [](uintptr_t p) { return reinterpret_cast<const float*>(p); };
  const LowRankUpdate update{reinterpret_cast<float*>(y), input(x), input(u), input(s), input(v), y_stride, x_stride,
                             n, in, out, rank, scale};
  const py::gil_scoped_release release;
  if (!stream) return low_rank_update_cpu(update);
#ifdef LORA_COMP_CUDA
  low_rank_update_cuda(update, *stream);
#else
  throw std::runtime_error("lora_comp was built without CUDA: reinstall it with nvcc on PATH");
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled parts of lora_comp, on plain pointers and numpy arrays.";
#ifdef LORA_COMP_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif

  static const py::handle bitstream_error =
      py::object(py::module_::import("lora_comp.errors").attr("BitstreamError")).release();
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const rans::StreamError& error) {
      py::set_error(bitstream_error, error.what());
    }
  });

  using py::arg;
  m.def("rans_kernels", &rans::kernels, "Names of the coder's kernels that this machine runs, fastest first.");
  m.def("rans_encode", &encode, arg("symbols").noconvert(), arg("indexes").noconvert(), arg("cdfs").noconvert(),
        arg("sizes").noconvert(), arg("offsets").noconvert(), arg("threads") = 1, arg("kernel") = "");
  m.def("rans_decode", &decode, arg("data"), arg("indexes").noconvert(), arg("cdfs").noconvert(),
        arg("sizes").noconvert(), arg("offsets").noconvert(), arg("symbols").noconvert(), arg("threads") = 1,
        arg("kernel") = "", "Writes the decoded symbols into `symbols`.");
  m.def("low_rank_update", &low_rank_update, arg("y"), arg("x"), arg("u"), arg("s"), arg("v"), arg("y_stride"),
        arg("x_stride"), arg("n"), arg("in_features"), arg("out_features"), arg("rank"), arg("scale"),
        arg("stream") = py::none(),
        "y += scale * ((x V) * s) U^T in place, float32. y, x, u, s, v: addresses of (n, out), (n, in), (out, rank),\n"
        "(rank,), (in, rank); strides in elements between rows of y and x; stream: a CUDA stream's handle, or None\n"
        "for the CPU.");
}
