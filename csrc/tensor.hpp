// A tensor as a caller describes it, and the comparison of its type and shape with what a kernel takes: every entry of
// a kernel makes it before an address is read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace lora_comp {

struct Shape {
  static constexpr size_t kMost = 8;  // dimensions
  size_t dimensions = 0, sizes[kMost] = {};

  Shape() = default;
  Shape(std::initializer_list<size_t> from) {
    for (const size_t size : from) sizes[dimensions++] = size;
  }

  size_t operator[](size_t i) const { return sizes[i]; }
  const size_t* begin() const { return sizes; }
  const size_t* end() const { return sizes + dimensions; }
  size_t last() const { return sizes[dimensions - 1]; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

  size_t count() const {
    size_t all = 1;
    for (const size_t size : *this) all *= size;
    return all;
  }

  std::string text() const {
    std::string all = "(";
    for (const size_t size : *this) all += (all.size() > 1 ? ", " : "") + std::to_string(size);
    return all + (dimensions == 1 ? ",)" : ")");
  }
};

enum class Type { kFloat32, kBfloat16, kOther };

struct Tensor {
  void* data = nullptr;
  Shape shape = {};
  Type type = Type::kFloat32;
  bool given = false, gpu = false, contiguous = true;

  bool half() const { return type == Type::kBfloat16; }
};

// What must hold of arguments besides.
inline void demand(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// The tensors of one call, all in the memory of a GPU or all in the processor's. One that is not as it must be is a
// std::invalid_argument, which names it.
class Arguments {
 public:
  explicit Arguments(bool gpu) : gpu_(gpu) {}

  // Of any shape of so many dimensions at least, and at most.
  void any(const char* name, const Tensor& t, size_t least, size_t most = Shape::kMost) const {
    if (!t.given) refuse(name, "must be given");
    if (t.shape.dimensions < least || t.shape.dimensions > most)
      refuse(name, "must have " + std::to_string(least) + " dimensions" + (most > least ? " or more" : "") +
                       ", not shape " + t.shape.text());
    if (t.gpu != gpu_) refuse(name, gpu_ ? "must be on the GPU" : "must be on the CPU");
    if (!t.contiguous || (t.shape.count() > 0 && !t.data)) refuse(name, "must be contiguous in memory");
    if (t.type == Type::kOther) refuse(name, "must be float32 or bfloat16");
  }

  // The address of one of this shape and type.
  void* get(const char* name, const Tensor& t, const Shape& shape, Type type) const {
    if (t.given && !(t.shape == shape)) refuse(name, "must have shape " + shape.text() + ", not " + t.shape.text());
    any(name, t, shape.dimensions);
    if (t.type != type) refuse(name, type == Type::kFloat32 ? "must be float32" : "must be bfloat16");
    return t.data;
  }

  float* floats(const char* name, const Tensor& t, const Shape& shape) const {
    return static_cast<float*>(get(name, t, shape, Type::kFloat32));
  }

  // The same, or null for one that is not given.
  void* find(const char* name, const Tensor& t, const Shape& shape, Type type) const {
    return t.given ? get(name, t, shape, type) : nullptr;
  }
  float* find_floats(const char* name, const Tensor& t, const Shape& shape) const {
    return t.given ? floats(name, t, shape) : nullptr;
  }

 private:
  [[noreturn]] static void refuse(const char* name, const std::string& what) {
    throw std::invalid_argument(std::string(name) + " " + what);
  }

  bool gpu_;
};

}  // namespace lora_comp
