// Memory for the operands of a kernel.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace lora_comp::simd {

// Zeros at an address that is a multiple of 64.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t size = 0)
      : size_(size), data_(static_cast<T*>(::operator new[](size * sizeof(T) + 1, std::align_val_t(64)))) {
    std::memset(static_cast<void*>(data_.get()), 0, size * sizeof(T));
  }
  T* get() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Delete {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  size_t size_;
  std::unique_ptr<T[], Delete> data_;
};

}  // namespace lora_comp::simd
