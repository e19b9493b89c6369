#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turn include/headrace.h into the module that cffi reads at run time. usage: make_header.py HEADER OUTPUT

The header stays the one place where functions and structures are declared.
"""
import re
import sys

import cffi


def declarations(header):
    """The header without what cffi's parser does not take: the preprocessor's lines and C++ guards."""
    header = re.sub(r"^#ifdef __cplusplus.*?^#endif[^\n]*\n", "", header, flags=re.M | re.S)
    return re.sub(r"^#[^\n]*\n", "", header, flags=re.M).replace("HR_API ", "")


def main():
    with open(sys.argv[1], encoding="utf-8") as f:
        text = declarations(f.read())
    ffi = cffi.FFI()
    ffi.set_source("headrace._header", None)
    ffi.cdef(text)
    ffi.emit_python_code(sys.argv[2])


main()
