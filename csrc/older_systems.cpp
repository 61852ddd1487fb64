// Functions that GCC takes from newer system libraries than manylinux_2_28 has, which are glibc 2.28 and those of
// GCC 8. Wheels bring them along, and so load wherever torch's own wheels do.

#include <new>
#include <sstream>

// glibc 2.32: where it is not 0, shared pointers are counted without atomic operations.
extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;

namespace std {

// GCC 9.
template basic_ostringstream<char>::basic_ostringstream();
template basic_stringstream<char>::basic_stringstream();

// GCC 11.
[[noreturn]] void __throw_bad_array_new_length() {
  throw bad_array_new_length();
}

}  // namespace std
