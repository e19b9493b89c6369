#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Find what a build with CUDA needs: prints the paths of nvcc, of the headers' folder and of
libcudart_static.a, one a line; or the reason on stderr, exit 1.

Looked at, in this order: $CUDA_HOME, the folder of nvcc in PATH, /usr/local/cuda, then pip's folders
(nvidia/cu13, or nvidia/cuda_nvcc with nvidia/cuda_runtime).
"""
import glob
import os
import re
import shutil
import site
import subprocess
import sys

VERSION_MIN = (12, 8)


def candidates():
    """(folder of nvcc's bin/, folder of include/ and lib/) in order of preference."""
    home = os.environ.get("CUDA_HOME")
    in_path = shutil.which("nvcc")
    roots = [home] if home else []
    if in_path:
        roots.append(os.path.dirname(os.path.dirname(os.path.realpath(in_path))))
    roots += ["/usr/local/cuda"] + sorted(glob.glob("/usr/local/cuda-*"), reverse=True)
    folders = site.getsitepackages() + [site.getusersitepackages()] + sys.path
    for folder in folders:
        roots += sorted(glob.glob(os.path.join(folder, "nvidia", "cu1[0-9]")), reverse=True)
    for root in roots:
        yield root, root
    for folder in folders:
        yield tuple(os.path.join(folder, "nvidia", name) for name in ("cuda_nvcc", "cuda_runtime"))


def first(*paths):
    return next((path for path in paths if os.path.exists(path)), None)


def main():
    reason = "no nvcc in $CUDA_HOME, PATH, /usr/local/cuda or pip's folders"
    for compiler, runtime in candidates():
        nvcc = first(os.path.join(compiler, "bin", "nvcc"))
        if not nvcc:
            continue
        header = first(os.path.join(runtime, "include", "cuda_runtime_api.h"))
        library = first(*(os.path.join(runtime, lib, "libcudart_static.a")
                          for lib in ("lib64", "lib", "targets/x86_64-linux/lib")))
        if not header or not library:
            reason = f"{nvcc} has no cuda_runtime_api.h or libcudart_static.a beside it"
            continue
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"release (\d+)\.(\d+)", text)
        if not version or tuple(map(int, version.groups())) < VERSION_MIN:
            reason = f"{nvcc} is older than {VERSION_MIN[0]}.{VERSION_MIN[1]}"
            continue
        print(nvcc, os.path.dirname(header), library, sep="\n")
        return 0
    print(reason, file=sys.stderr)
    return 1


sys.exit(main())
