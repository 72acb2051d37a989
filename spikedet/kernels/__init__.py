"""Compiled kernels: the C++ code of `csrc`, and the library that is built from it."""
