#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What gpu_acceptance.py needs on a machine that has a GPU but neither this source nor its libraries, in one file.

usage: gpu_bundle.py BUILD_FOLDER OUTPUT.tar.xz

Programs without debug information, the shared libraries that they load (not the C library's own, nor CUDA's, which that
machine has) and the scripts. A build for that GPU alone is smallest: meson setup B -Dtests=true -Dbuildtype=release
-Dgpu_archs=90. There:

    tar xf OUTPUT.tar.xz && bundle/bench/gpu_acceptance.py bundle --libs bundle/libs [--full]
"""
import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile

from gpu_acceptance import PROGRAMS, TESTS

SYSTEM = ("libc.so", "libm.so", "ld-linux", "linux-vdso", "libpthread.so", "libdl.so", "librt.so")
SCRIPTS = ("gpu_acceptance.py", "gpu_full.py", "common.py")


def libraries(programs):
    """Paths of the shared libraries by the names under which they are loaded."""
    found = {}
    for program in programs:
        for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines():
            name, _, path = line.strip().partition(" => ")
            if path and not name.startswith(SYSTEM):
                if path.startswith("not found"):
                    sys.exit(f"{program}: {name} is not found")
                found[name] = path.split(" (")[0]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("output")
    args = parser.parse_args()
    programs = [os.path.join(args.build, name) for name in (*TESTS, *PROGRAMS)]
    missing = [program for program in programs if not os.access(program, os.X_OK)]
    if missing:
        sys.exit(f"{missing[0]} is missing; configure the build with -Dtests=true, with CUDA, and build it")
    with tempfile.TemporaryDirectory() as work:
        bundle = os.path.join(work, "bundle")
        for name, program in zip((*TESTS, *PROGRAMS), programs):
            os.makedirs(os.path.dirname(os.path.join(bundle, name)), exist_ok=True)
            subprocess.run(["strip", "-o", os.path.join(bundle, name), program], check=True)
        os.makedirs(os.path.join(bundle, "libs"))
        for name, path in libraries(programs).items():
            shutil.copy(path, os.path.join(bundle, "libs", name))
        os.makedirs(os.path.join(bundle, "bench"), exist_ok=True)
        for name in SCRIPTS:
            shutil.copy(os.path.join(os.path.dirname(os.path.abspath(__file__)), name), os.path.join(bundle, "bench"))
        with tarfile.open(args.output, "w:xz", preset=6) as tar:
            tar.add(bundle, "bundle")
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
