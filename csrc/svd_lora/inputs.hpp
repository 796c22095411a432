// Addresses and shapes of torch's tensors without torch's headers, by the table of C functions that it shares with
// other libraries (DLPack 1.2 and later, __dlpack_c_exchange_api__).
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

namespace lora_comp {

// DLPack's DLTensor and the start of its DLPackExchangeAPI.
struct Tensor {
  void* data;
  int32_t device, device_index, dims;
  uint8_t type, bits;
  uint16_t lanes;
  const int64_t *shape, *strides;
  uint64_t offset;

  bool is_plain_float() const {
    constexpr int kCpu = 1, kFloat = 2;
    int64_t step = 1;
    bool packed = true;
    for (int i = dims; i-- > 0; step *= shape[i]) packed = packed && (shape[i] == 1 || strides[i] == step);
    return data && device == kCpu && type == kFloat && bits == 32 && lanes == 1 && offset == 0 && packed && step > 0;
  }
};

struct Exchange {
  uint32_t major, minor;
  void *older, *allocate, *take, *give;
  int (*look)(void* object, Tensor* to);  // -1 with Python's exception set
};

// Null where torch has none that is known here.
inline const Exchange* exchange() {
  namespace py = pybind11;
  static const Exchange* const found = [] {
    const py::object capsule =
        py::getattr(py::module_::import("torch").attr("Tensor"), "__dlpack_c_exchange_api__", py::none());
    const auto* const table =
        capsule.is_none() ? nullptr
                          : static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (PyErr_Occurred()) PyErr_Clear();
    return table && table->major == 1 ? table : nullptr;
  }();
  return found;
}

struct LinearInputs {
  std::array<uintptr_t, 6> addresses;
  std::array<size_t, 5> sizes;  // batch, n, in, out, rank
};

// Of x, weight, bias (or None), u, s and v where all are contiguous float32 on the CPU, without an empty one, and their
// shapes fit each other.
inline std::optional<LinearInputs> linear_inputs(const std::array<pybind11::handle, 6>& objects) {
  const Exchange* const table = exchange();
  LinearInputs found{};
  std::array<Tensor, 6> t;
  if (!table) return {};
  for (size_t i = 0; i < t.size(); ++i) {
    if (i == 2 && objects[i].is_none()) continue;
    if (table->look(objects[i].ptr(), &t[i])) {
      PyErr_Clear();
      return {};
    }
    if (!t[i].is_plain_float()) return {};
    found.addresses[i] = reinterpret_cast<uintptr_t>(t[i].data);
  }
  const auto& [x, weight, bias, u, s, v] = t;
  const int batched = s.dims - 1;
  if (weight.dims != 2 || x.dims < 1 + batched || batched < 0 || batched > 1) return {};
  if (u.dims != 2 + batched || v.dims != 2 + batched) return {};
  const int64_t out = weight.shape[0], in = weight.shape[1], rank = s.shape[batched], batch = batched ? s.shape[0] : 1;
  if (found.addresses[2] && !(bias.dims == 1 && bias.shape[0] == out)) return {};
  if (batched && !(x.shape[0] == batch && u.shape[0] == batch && v.shape[0] == batch)) return {};
  if (x.shape[x.dims - 1] != in || u.shape[batched] != out || v.shape[batched] != in) return {};
  if (u.shape[batched + 1] != rank || v.shape[batched + 1] != rank) return {};
  int64_t n = 1;
  for (int i = batched; i < x.dims - 1; ++i) n *= x.shape[i];
  const auto size = [](int64_t value) { return static_cast<size_t>(value); };
  found.sizes = {size(batch), size(n), size(in), size(out), size(rank)};
  return found;
}

}  // namespace lora_comp
