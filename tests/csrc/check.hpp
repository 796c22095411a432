// CHECK(condition): says what does not hold, and ends the program so that a sanitizer or a fuzzer notices.
#pragma once

#include <cstdio>
#include <cstdlib>

#define CHECK(...)                                                                   \
  do {                                                                               \
    if (!(__VA_ARGS__)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #__VA_ARGS__); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)

// The expression throws exactly this.
#define CHECK_THROWS(Exception, ...)  \
  do {                                \
    bool thrown = false;              \
    try {                             \
      static_cast<void>(__VA_ARGS__); \
    } catch (const Exception&) {      \
      thrown = true;                  \
    }                                 \
    CHECK(thrown);                    \
  } while (false)
