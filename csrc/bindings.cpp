// The only file that knows Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "attention/window_attention.hpp"
#include "gdn/gdn.hpp"
#include "rans/latents.hpp"
#include "rans/rans.hpp"
#include "svd_lora/svd_lora.hpp"
#include "swin/block.hpp"

namespace py = pybind11;
using namespace lora_comp;

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

using LinearSizes = std::array<size_t, 5>;
using Addresses = std::array<uintptr_t, 6>;

LowRankLinear make_linear(const Addresses& inputs, const LinearSizes& sizes, float scale, bool bfloat16) {
  const auto [batch, n, in, out, rank] = sizes;
  if (rank == 0) throw std::invalid_argument("a rank is at least 1");
  const auto input = [&](size_t i) { return reinterpret_cast<const float*>(inputs[i]); };
  return {input(0), input(1), input(2), input(3), input(4), input(5), batch, n, in, out, rank, scale, bfloat16};
}

[[maybe_unused]] void refuse_cuda() {
  throw std::runtime_error("lora_comp was built without CUDA: reinstall it with nvcc on PATH");
}

// space: what a GPU needs for itself. stream: a CUDA stream's handle, or none for the CPU.
void linear_forward(const Addresses& inputs, uintptr_t y, uintptr_t t, const LinearSizes& sizes, float scale,
                    bool bfloat16, unsigned threads, std::optional<uintptr_t> stream) {
  const LowRankLinear linear = make_linear(inputs, sizes, scale, bfloat16);
  float* const projected = reinterpret_cast<float*>(t);
  const py::gil_scoped_release release;
  if (!stream) return low_rank_linear_forward(linear, reinterpret_cast<void*>(y), projected, threads);
#ifdef LORA_COMP_CUDA
  low_rank_linear_forward_cuda(linear, reinterpret_cast<void*>(y), projected, *stream);
#else
  refuse_cuda();
#endif
}

void linear_backward(const Addresses& inputs, uintptr_t grad_y, uintptr_t t, uintptr_t space,
                     const std::array<uintptr_t, 4>& grads, const LinearSizes& sizes, float scale, bool bfloat16,
                     unsigned threads, std::optional<uintptr_t> stream) {
  const LowRankLinear linear = make_linear(inputs, sizes, scale, bfloat16);
  const auto output = [&](size_t i) { return reinterpret_cast<float*>(grads[i]); };
  const LowRankGradients to{output(0), output(1), output(2), output(3)};
  const void* const from = reinterpret_cast<const void*>(grad_y);
  const float* const projected = reinterpret_cast<const float*>(t);
  const py::gil_scoped_release release;
  if (!stream) return low_rank_linear_backward(linear, from, projected, to, threads);
#ifdef LORA_COMP_CUDA
  low_rank_linear_backward_cuda(linear, from, projected, reinterpret_cast<float*>(space), to, *stream);
#else
  static_cast<void>(space);
  refuse_cuda();
#endif
}

size_t low_rank_space_of(const LinearSizes& sizes) {
  const auto [batch, n, in, out, rank] = sizes;
  return low_rank_space(batch, n, in, out, rank);
}

using AttentionSizes = std::array<size_t, 7>;

WindowAttention make_attention(uintptr_t qkv, uintptr_t bias, const AttentionSizes& sizes) {
  const auto [batch, height, width, heads, dim, window, shift] = sizes;
  return {reinterpret_cast<const void*>(qkv),
          reinterpret_cast<const float*>(bias),
          batch,
          height,
          width,
          heads,
          dim,
          window,
          shift};
}

// bfloat16: of qkv and out, on a GPU alone. stream: as above.
void attention_forward(uintptr_t qkv, uintptr_t bias, uintptr_t out, const AttentionSizes& sizes,
                       [[maybe_unused]] bool bfloat16, unsigned threads, std::optional<uintptr_t> stream) {
  const WindowAttention attention = make_attention(qkv, bias, sizes);
  const py::gil_scoped_release release;
  if (!stream) return window_attention_forward(attention, reinterpret_cast<float*>(out), threads);
#ifdef LORA_COMP_CUDA
  window_attention_forward_cuda(attention, reinterpret_cast<void*>(out), bfloat16, *stream);
#else
  refuse_cuda();
#endif
}

void attention_backward(uintptr_t qkv, uintptr_t bias, uintptr_t grad_out, uintptr_t grad_qkv, uintptr_t grad_bias,
                        const AttentionSizes& sizes, [[maybe_unused]] bool bfloat16, unsigned threads,
                        std::optional<uintptr_t> stream) {
  const WindowAttention attention = make_attention(qkv, bias, sizes);
  float* const of_bias = reinterpret_cast<float*>(grad_bias);
  const py::gil_scoped_release release;
  if (!stream)
    return window_attention_backward(attention, reinterpret_cast<const float*>(grad_out),
                                     reinterpret_cast<float*>(grad_qkv), of_bias, threads);
#ifdef LORA_COMP_CUDA
  window_attention_backward_cuda(attention, reinterpret_cast<const void*>(grad_out), reinterpret_cast<void*>(grad_qkv),
                                 of_bias, bfloat16, *stream);
#else
  refuse_cuda();
#endif
}

// The tensors of `swin_block.py`, in its order.
using Tensors = std::vector<uintptr_t>;

SwinBlock make_swin_block(const Tensors& dense, const Tensors& low_rank, const std::array<size_t, 4>& ranks, bool own,
                          const std::array<size_t, 8>& sizes) {
  if (dense.size() != 13 || low_rank.size() != 12) throw std::invalid_argument("13 and 12 tensors");
  const auto [batch, height, width, window, shift, dim, heads, hidden] = sizes;
  const auto tensor = [](uintptr_t address) { return reinterpret_cast<const float*>(address); };
  SwinBlock block{};
  block.batch = batch, block.windows = {height, width, window, shift}, block.dim = dim, block.heads = heads;
  block.norm1_weight = tensor(dense[0]), block.norm1_bias = tensor(dense[1]);
  block.norm2_weight = tensor(dense[2]), block.norm2_bias = tensor(dense[3]);
  block.position = tensor(dense[4]), block.own = own;
  SwinLayer* const layers[] = {&block.qkv, &block.proj, &block.fc1, &block.fc2};
  const size_t in[] = {dim, dim, dim, hidden}, out[] = {3 * dim, dim, hidden, dim};
  for (size_t i = 0; i < 4; ++i)
    *layers[i] = {tensor(dense[5 + 2 * i]),
                  tensor(dense[6 + 2 * i]),
                  tensor(low_rank[3 * i]),
                  tensor(low_rank[3 * i + 1]),
                  tensor(low_rank[3 * i + 2]),
                  in[i],
                  out[i],
                  ranks[i]};
  return block;
}

void forward_swin_block(uintptr_t x, uintptr_t y, uintptr_t kept, const Tensors& dense, const Tensors& low_rank,
                        const std::array<size_t, 4>& ranks, bool own, const std::array<size_t, 8>& sizes, bool half,
                        unsigned threads) {
  const py::gil_scoped_release release;
  swin_block_forward(make_swin_block(dense, low_rank, ranks, own, sizes), reinterpret_cast<const float*>(x),
                     reinterpret_cast<float*>(y), reinterpret_cast<float*>(kept), half, threads);
}

void backward_swin_block(uintptr_t x, uintptr_t grad_y, uintptr_t grad_x, uintptr_t kept, const Tensors& dense,
                         const Tensors& low_rank, const std::array<size_t, 4>& ranks, bool own,
                         const std::array<size_t, 8>& sizes, const Tensors& dense_grads, const Tensors& low_rank_grads,
                         bool half, unsigned threads) {
  if (dense_grads.size() != 13 || low_rank_grads.size() != 12) throw std::invalid_argument("13 and 12 gradients");
  const auto at = [](const Tensors& grads, size_t i) { return reinterpret_cast<float*>(grads[i]); };
  const auto layer = [&](size_t i) {
    return SwinLayerGrad{at(low_rank_grads, 3 * i), at(low_rank_grads, 3 * i + 1), at(low_rank_grads, 3 * i + 2),
                         at(dense_grads, 5 + 2 * i), at(dense_grads, 6 + 2 * i)};
  };
  const SwinBlockGrad grad{layer(0),           layer(1),           layer(2),
                           layer(3),           at(dense_grads, 0), at(dense_grads, 1),
                           at(dense_grads, 2), at(dense_grads, 3), at(dense_grads, 4)};
  const py::gil_scoped_release release;
  swin_block_backward(make_swin_block(dense, low_rank, ranks, own, sizes), reinterpret_cast<const float*>(x),
                      reinterpret_cast<const float*>(grad_y), reinterpret_cast<float*>(grad_x),
                      reinterpret_cast<float*>(kept), grad, half, threads);
}

Gdn make_gdn(uintptr_t beta, uintptr_t gamma, const std::array<size_t, 2>& sizes, bool inverse, bool bfloat16) {
  return {sizes[0], sizes[1], reinterpret_cast<const float*>(beta), reinterpret_cast<const float*>(gamma),
          inverse,  bfloat16};
}

void forward_gdn(uintptr_t x, uintptr_t y, uintptr_t beta, uintptr_t gamma, const std::array<size_t, 2>& sizes,
                 bool inverse, bool bfloat16, unsigned threads) {
  const py::gil_scoped_release release;
  gdn_forward(make_gdn(beta, gamma, sizes, inverse, bfloat16), reinterpret_cast<const void*>(x),
              reinterpret_cast<void*>(y), threads);
}

void backward_gdn(uintptr_t x, uintptr_t grad_y, uintptr_t grad_x, uintptr_t beta, uintptr_t gamma,
                  const std::array<uintptr_t, 2>& grads, const std::array<size_t, 2>& sizes, bool inverse,
                  bool bfloat16, unsigned threads) {
  const py::gil_scoped_release release;
  gdn_backward(make_gdn(beta, gamma, sizes, inverse, bfloat16), reinterpret_cast<const void*>(x),
               reinterpret_cast<const void*>(grad_y), reinterpret_cast<void*>(grad_x),
               reinterpret_cast<float*>(grads[0]), reinterpret_cast<float*>(grads[1]), threads);
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
  m.def("window_attention_forward", &attention_forward, arg("qkv"), arg("bias"), arg("out"), arg("sizes"),
        arg("bfloat16"), arg("threads"), arg("stream"),
        "Addresses of contiguous float32, on a GPU with `bfloat16` of that for qkv and out; sizes: batch, height, "
        "width,\n"
        "heads, dim, window, shift; stream: a CUDA stream's handle, or None for the CPU.");
  m.def("window_attention_backward", &attention_backward, arg("qkv"), arg("bias"), arg("grad_out"), arg("grad_qkv"),
        arg("grad_bias"), arg("sizes"), arg("bfloat16"), arg("threads"), arg("stream"),
        "Writes grad_qkv and adds to grad_bias, unless that is 0.");
  m.def("swin_block_half", &swin_block_half_available, "Whether the processor multiplies in bfloat16.");
  m.def("swin_block_forward", &forward_swin_block, arg("x"), arg("y"), arg("kept"), arg("dense"), arg("low_rank"),
        arg("ranks"), arg("own"), arg("sizes"), arg("half"), arg("threads"),
        "Addresses of contiguous float32; kept: 0, or of (windows, 48 heads + channels + hidden, 64) for the backward\n"
        "pass; sizes: batch, height, width, window, shift, channels, heads, hidden.");
  m.def("swin_block_backward", &backward_swin_block, arg("x"), arg("grad_y"), arg("grad_x"), arg("kept"), arg("dense"),
        arg("low_rank"), arg("ranks"), arg("own"), arg("sizes"), arg("dense_grads"), arg("low_rank_grads"), arg("half"),
        arg("threads"),
        "Writes grad_x, unless that is 0, and adds to the gradients whose address is not 0: all of the dense ones, or "
        "none.");
  m.def("gdn_forward", &forward_gdn, arg("x"), arg("y"), arg("beta"), arg("gamma"), arg("sizes"), arg("inverse"),
        arg("bfloat16"), arg("threads"),
        "Addresses of contiguous float32, or with `bfloat16` of that for x and y; sizes: pixels, channels.");
  m.def("gdn_backward", &backward_gdn, arg("x"), arg("grad_y"), arg("grad_x"), arg("beta"), arg("gamma"), arg("grads"),
        arg("sizes"), arg("inverse"), arg("bfloat16"), arg("threads"),
        "Writes grad_x and adds to grads, those of beta and gamma, unless both are 0.");
  m.def("low_rank_linear_forward", &linear_forward, arg("inputs"), arg("y"), arg("t"), arg("sizes"), arg("scale"),
        arg("bfloat16"), arg("threads"), arg("stream"),
        "Addresses as in svd_lora.hpp; inputs: x, weight, bias, u, s, v; sizes: batch, n, in, out, rank; stream: a\n"
        "CUDA stream's handle, or None for the CPU.");
  m.def(
      "low_rank_linear_backward", &linear_backward, arg("inputs"), arg("grad_y"), arg("t"), arg("space"), arg("grads"),
      arg("sizes"), arg("scale"), arg("bfloat16"), arg("threads"), arg("stream"),
      "grads: of x, u, s, v, 0 where not wanted; space: `low_rank_linear_space` numbers of float32 for a GPU, else 0.");
  m.def("low_rank_linear_space", &low_rank_space_of, arg("sizes"));
}
