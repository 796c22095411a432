// The only file that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <vector>

#include "attention/window_attention.hpp"
#include "conv/conv.hpp"
#include "gdn/gdn.hpp"
#include "rans/latents.hpp"
#include "rans/rans.hpp"
#include "svd_lora/svd_lora.hpp"
#include "swin/block.hpp"

namespace py = pybind11;
using namespace lora_comp;

// A tensor of torch, or None, by its own attributes: nothing of torch is compiled in.
template <>
struct pybind11::detail::type_caster<Tensor> {
  PYBIND11_TYPE_CASTER(Tensor, const_name("Tensor"));

  bool load(handle source, bool) {
    if (source.is_none()) return true;
    static const Names& names = *new Names;
    value.given = true;
    value.data = PyLong_AsVoidPtr(call(source, names.data_ptr).ptr());
    value.contiguous = call(source, names.is_contiguous).ptr() == Py_True;
    value.gpu = get(source, names.is_cuda).ptr() == Py_True;
    const object type = get(source, names.dtype), shape = get(source, names.shape);
    value.type = type.is(names.float32) ? Type::kFloat32 : type.is(names.bfloat16) ? Type::kBfloat16 : Type::kOther;
    if (!PyTuple_Check(shape.ptr())) throw type_error("a tensor's shape is a tuple");
    const auto dimensions = static_cast<size_t>(PyTuple_GET_SIZE(shape.ptr()));
    if (dimensions > Shape::kMost) throw value_error("a tensor has more dimensions than any argument");
    value.shape.dimensions = dimensions;
    for (size_t i = 0; i < dimensions; ++i)
      value.shape.sizes[i] = PyLong_AsSize_t(PyTuple_GET_ITEM(shape.ptr(), static_cast<Py_ssize_t>(i)));
    if (PyErr_Occurred()) throw error_already_set();
    return true;
  }

 private:
  struct Names {
    object data_ptr = intern("data_ptr"), is_contiguous = intern("is_contiguous"), is_cuda = intern("is_cuda");
    object dtype = intern("dtype"), shape = intern("shape");
    object float32 = module_::import("torch").attr("float32"), bfloat16 = module_::import("torch").attr("bfloat16");
    static object intern(const char* name) { return reinterpret_steal<object>(PyUnicode_InternFromString(name)); }
  };
  static object owned(PyObject* p) {
    if (!p) throw error_already_set();
    return reinterpret_steal<object>(p);
  }
  static object get(handle source, const object& name) { return owned(PyObject_GetAttr(source.ptr(), name.ptr())); }
  static object call(handle source, const object& name) {
    return owned(PyObject_CallMethodNoArgs(source.ptr(), name.ptr()));
  }
};

namespace {

// lora_comp/rans.py has checked shapes and made these C-contiguous; anything else is a TypeError here.
using Ints = py::array_t<int32_t, py::array::c_style>;

using Doubles = py::array_t<double, py::array::c_style>;
using Floats = py::array_t<float, py::array::c_style>;
using Hints = std::vector<std::pair<size_t, int32_t>>;

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

struct View {
  const uint8_t* data;
  size_t size;
  explicit View(const py::bytes& bytes) {
    char* start = nullptr;
    Py_ssize_t length = 0;
    if (PyBytes_AsStringAndSize(bytes.ptr(), &start, &length) != 0) throw py::error_already_set();
    data = reinterpret_cast<const uint8_t*>(start);
    size = static_cast<size_t>(length);
  }
};

void decode(const py::bytes& data, const Ints& indexes, const Ints& cdfs, const Ints& sizes, const Ints& offsets,
            Ints& symbols, unsigned threads, const std::string& kernel) {
  if (symbols.size() != indexes.size()) throw std::invalid_argument("symbols and indexes must have one shape");
  const View view(data);
  int32_t* const out = symbols.mutable_data();
  const py::gil_scoped_release release;
  rans::decode(view.data, view.size, indexes.data(), static_cast<size_t>(indexes.size()),
               make_tables(cdfs, sizes, offsets), out, {threads, kernel});
}

rans::Gaussians make_gaussians(const Floats& y, const Doubles& means, const Doubles& scales, const Doubles& bounds,
                               const Ints& symbols) {
  if (means.size() != y.size() || scales.size() != y.size() || symbols.size() != y.size())
    throw std::invalid_argument("y, means, scales and symbols must have one shape");
  return {means.data(), scales.data(), static_cast<size_t>(y.size()), bounds.data(),
          static_cast<size_t>(bounds.size())};
}

py::tuple encode_latents(const Floats& y, const Doubles& means, const Doubles& scales, const Doubles& bounds,
                         const Ints& cdfs, const Ints& sizes, const Ints& offsets, double margin, Ints& symbols,
                         unsigned threads) {
  const rans::Gaussians model = make_gaussians(y, means, scales, bounds, symbols);
  int32_t* const out = symbols.mutable_data();
  std::string data;
  Hints pairs;
  {
    const py::gil_scoped_release release;
    std::vector<rans::Hint> hints;
    data = rans::encode_latents(y.data(), model, make_tables(cdfs, sizes, offsets), margin, out, hints, {threads, {}});
    for (const rans::Hint& hint : hints) pairs.emplace_back(hint.position, hint.table);
  }
  return py::make_tuple(py::bytes(data), pairs);
}

void decode_latents(const py::bytes& data, const Doubles& means, const Doubles& scales, const Doubles& bounds,
                    const Ints& cdfs, const Ints& sizes, const Ints& offsets, const Hints& pairs, Ints& symbols,
                    Floats& y, unsigned threads) {
  const rans::Gaussians model = make_gaussians(y, means, scales, bounds, symbols);
  const View view(data);
  int32_t* const out = symbols.mutable_data();
  float* const y_out = y.mutable_data();
  const py::gil_scoped_release release;
  std::vector<rans::Hint> hints;
  for (const auto& [position, table] : pairs) hints.push_back({position, table});
  rans::decode_latents(view.data, view.size, model, make_tables(cdfs, sizes, offsets), hints, out, y_out,
                       {threads, {}});
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
  m.def(
      "encode_latents", &encode_latents, arg("y").noconvert(), arg("means").noconvert(), arg("scales").noconvert(),
      arg("bounds").noconvert(), arg("cdfs").noconvert(), arg("sizes").noconvert(), arg("offsets").noconvert(),
      arg("margin"), arg("symbols").noconvert(), arg("threads") = 1,
      "Writes round(y - means) into `symbols`; returns their bytes and, as (position, table), the latents whose scale\n"
      "lies within `margin`, relative, of a bound.");
  m.def("decode_latents", &decode_latents, arg("data"), arg("means").noconvert(), arg("scales").noconvert(),
        arg("bounds").noconvert(), arg("cdfs").noconvert(), arg("sizes").noconvert(), arg("offsets").noconvert(),
        arg("hints"), arg("symbols").noconvert(), arg("y").noconvert(), arg("threads") = 1,
        "Writes the decoded symbols into `symbols` and means + symbols into `y`.");
  // The ops: lora_comp/ops says what they compute, each header what the arguments are. A tensor is one of torch.
  using Release = py::call_guard<py::gil_scoped_release>;
  using Stream = std::optional<uintptr_t>;

  m.def(
      "conv3x3",
      [](Tensor x, Tensor more, Tensor weight, Tensor bias, bool relu, Tensor y, unsigned threads) {
        conv3x3({x, more, weight, bias, relu}, y, threads);
      },
      py::kw_only(), arg("x"), arg("more"), arg("weight"), arg("bias"), arg("relu"), arg("y"), arg("threads"),
      Release());

  m.def(
      "gdn_forward",
      [](Tensor x, Tensor beta, Tensor gamma, bool inverse, Tensor y, unsigned threads) {
        gdn_forward({x, beta, gamma, inverse}, y, threads);
      },
      py::kw_only(), arg("x"), arg("beta"), arg("gamma"), arg("inverse"), arg("y"), arg("threads"), Release());
  m.def(
      "gdn_backward",
      [](Tensor x, Tensor beta, Tensor gamma, bool inverse, Tensor grad_y, Tensor grad_x, Tensor grad_beta,
         Tensor grad_gamma,
         unsigned threads) { gdn_backward({x, beta, gamma, inverse}, grad_y, grad_x, grad_beta, grad_gamma, threads); },
      py::kw_only(), arg("x"), arg("beta"), arg("gamma"), arg("inverse"), arg("grad_y"), arg("grad_x"),
      arg("grad_beta"), arg("grad_gamma"), arg("threads"), Release(),
      "Writes grad_x and adds to the others, unless they are None.");

  m.def(
      "window_attention_forward",
      [](Tensor qkv, Tensor bias, size_t window, size_t shift, Tensor out, unsigned threads, Stream stream) {
        window_attention_forward({qkv, bias, window, shift}, out, threads, stream);
      },
      py::kw_only(), arg("qkv"), arg("bias"), arg("window"), arg("shift"), arg("out"), arg("threads"), arg("stream"),
      Release(), "stream: a CUDA stream's handle, or None for the CPU.");
  m.def(
      "window_attention_backward",
      [](Tensor qkv, Tensor bias, size_t window, size_t shift, Tensor grad_out, Tensor grad_qkv, Tensor grad_bias,
         unsigned threads, Stream stream) {
        window_attention_backward({qkv, bias, window, shift}, grad_out, grad_qkv, grad_bias, threads, stream);
      },
      py::kw_only(), arg("qkv"), arg("bias"), arg("window"), arg("shift"), arg("grad_out"), arg("grad_qkv"),
      arg("grad_bias"), arg("threads"), arg("stream"), Release(),
      "Writes grad_qkv and adds to grad_bias, unless that is None.");

  m.def(
      "low_rank_linear_forward",
      [](Tensor x, Tensor weight, Tensor bias, Tensor u, Tensor s, Tensor v, float scale, Tensor y, Tensor t,
         unsigned threads,
         Stream stream) { low_rank_linear_forward({x, weight, bias, u, s, v, scale}, y, t, threads, stream); },
      py::kw_only(), arg("x"), arg("weight"), arg("bias"), arg("u"), arg("s"), arg("v"), arg("scale"), arg("y"),
      arg("t"), arg("threads"), arg("stream"), Release());
  m.def(
      "low_rank_linear_backward",
      [](Tensor x, Tensor weight, Tensor u, Tensor s, Tensor v, float scale, Tensor grad_y, Tensor t, Tensor space,
         Tensor grad_x, Tensor grad_u, Tensor grad_s, Tensor grad_v, unsigned threads, Stream stream) {
        low_rank_linear_backward({x, weight, {}, u, s, v, scale}, grad_y, t, space, {grad_x, grad_u, grad_s, grad_v},
                                 threads, stream);
      },
      py::kw_only(), arg("x"), arg("weight"), arg("u"), arg("s"), arg("v"), arg("scale"), arg("grad_y"), arg("t"),
      arg("space"), arg("grad_x"), arg("grad_u"), arg("grad_s"), arg("grad_v"), arg("threads"), arg("stream"),
      Release(), "space: `low_rank_linear_space` numbers of float32 for a GPU, or None.");
  m.def("low_rank_linear_space", &low_rank_space, arg("batch"), arg("n"), arg("inputs"), arg("outputs"), arg("rank"));

  py::class_<SwinLayerTensors>(m, "SwinLayer")
      .def(py::init<Tensor, Tensor, Tensor, Tensor, Tensor>(), py::kw_only(), arg("weight"), arg("bias"), arg("u"),
           arg("s"), arg("v"));
  py::class_<SwinBlockTensors>(m, "SwinBlock")
      .def(py::init<Tensor, Tensor, Tensor, Tensor, Tensor, SwinLayerTensors, SwinLayerTensors, SwinLayerTensors,
                    SwinLayerTensors>(),
           py::kw_only(), arg("norm1_weight"), arg("norm1_bias"), arg("norm2_weight"), arg("norm2_bias"),
           arg("position"), arg("qkv"), arg("proj"), arg("fc1"), arg("fc2"));
  m.def("swin_block_half", &swin_block_half_available, "Whether the processor multiplies in bfloat16.");
  m.def(
      "swin_block_forward",
      [](const SwinBlockTensors& block, Tensor x, Tensor kept, size_t window, size_t shift, bool half, Tensor prompts,
         bool published_mask, Tensor y, unsigned threads) {
        swin_block_forward(block, {x, kept, window, shift, half, prompts, published_mask}, y, threads);
      },
      py::kw_only(), arg("block"), arg("x"), arg("kept"), arg("window"), arg("shift"), arg("half"), arg("prompts"),
      arg("published_mask"), arg("y"), arg("threads"), Release(),
      "kept: None, or (B, rows, columns, 48 heads + channels + hidden, 64) for the backward pass, for each window.");
  m.def(
      "swin_block_backward",
      [](const SwinBlockTensors& block, Tensor x, Tensor kept, size_t window, size_t shift, bool half, Tensor prompts,
         bool published_mask, Tensor grad_y, Tensor grad_x, Tensor grad_prompts, const SwinBlockTensors& grads,
         unsigned threads) {
        const SwinBlockCall call{x, kept, window, shift, half, prompts, published_mask};
        swin_block_backward(block, call, grad_y, grad_x, grads, grad_prompts, threads);
      },
      py::kw_only(), arg("block"), arg("x"), arg("kept"), arg("window"), arg("shift"), arg("half"), arg("prompts"),
      arg("published_mask"), arg("grad_y"), arg("grad_x"), arg("grad_prompts"), arg("grads"), arg("threads"), Release(),
      "Writes grad_x, and grad_prompts of a map, and adds to the others, unless they are None; of the dense ones all "
      "are\n"
      "given, or none.");
}
