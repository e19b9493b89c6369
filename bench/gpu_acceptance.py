#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Everything that must be seen on a machine with an NVIDIA GPU, in one call of less than ten minutes.

usage: gpu_acceptance.py BUILD_FOLDER [--libs FOLDER]... [--work FOLDER] [--vram SIZE] [--quick | --full]

Needs python3 alone, and a build folder made with tests and CUDA, which may have been copied from another
machine (gpu_bundle.py): libraries that are missing here can be carried along in folders named by --libs.
cuBLASLt and cuDNN are looked for by the program itself, in those folders, and in the nvidia packages of any
python3 here. Prints a table and exits 1 when a check failed. Without a GPU it says so and skips them: exit 0.

    tests    the bodies of tests/gpu on the GPU, and the golden values in f32 (1e-4) and bf16 (1e-2)
    bits     two runs give the same bits, and so do other slots and block sizes
    rates    headrace bench --device cuda: host to device alone and while the disk reads, weights of each
             dtype, products and attention as shares of a large square product
    cuDNN    where it is installed, attention by it: the same bodies, and its rates next to our kernel's
    forward  1024x1024 on blocks of the real width: time, reading and copying at once, and the memory that
             the driver reports against --vram; by GPUDirect Storage where cuFile has a direct path

With --full, instead of all that, the whole model of 41 GB: see gpu_full.py.
"""
import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile
import threading
import time

from gpu_full import BLOCKS as FULL_BLOCKS, full

LIMIT_S = 570
BLOCKS = 2
RATES = 18


class Run:
    def __init__(self, args):
        self.args = args
        self.begin = time.monotonic()
        self.rows = []
        self.env = dict(os.environ, HEADRACE_DEVICE=args.device)
        folders = list(args.libs) + nvidia_folders() + [os.environ.get("LD_LIBRARY_PATH", "")]
        self.env["LD_LIBRARY_PATH"] = ":".join(folder for folder in folders if folder)

    def path(self, *parts):
        return os.path.join(self.args.build, *parts)

    def left(self):
        return max(5, LIMIT_S - (time.monotonic() - self.begin))

    def command(self, *words, **env):
        """(exit code, stdout, last lines of stderr and stdout)"""
        try:
            p = subprocess.run([str(word) for word in words], env=dict(self.env, **env), capture_output=True,
                               text=True, timeout=self.left(), check=False)
        except subprocess.TimeoutExpired:
            return 124, "", "no time left"
        except OSError as e:
            return 127, "", str(e)
        lines = (p.stdout + p.stderr).strip().split("\n")
        return p.returncode, p.stdout, " | ".join(lines[-3:])

    def row(self, name, result, text=""):
        self.rows.append((name, result, text))
        print(f"{result:5} {name:44} {text}"[:200], flush=True)

    def gpu_bytes(self):
        """Of memory of the GPU that is free now; of none that nvidia-smi knows: 4 GB."""
        mib = ask_driver("memory.free", self.args.device)
        return mib * 2.0**20 if mib else 4e9

    def check(self, name, code, good, bad):
        self.row(name, "ok" if code == 0 else "FAIL", good if code == 0 else f"exit {code}: {bad}")


def nvidia_folders():
    """Folders of pip's nvidia packages that hold cuBLASLt and cuDNN."""
    found = []

    def look(folder):
        for name in ("libcublasLt.so.1*", "libcudnn.so.9"):
            found.extend(glob.glob(os.path.join(folder, "*", "lib", name)))

    for pattern in ("/usr/lib/python3*/**/nvidia", "/usr/local/lib/python3*/*-packages/nvidia",
                    "/opt/*/lib/python3*/site-packages/nvidia", os.path.expanduser("~/.local/lib/python3*/"
                                                                                   "site-packages/nvidia")):
        for folder in glob.glob(pattern):
            look(folder)
    try:
        text = subprocess.run(["python3", "-c", "import nvidia; print(list(nvidia.__path__)[0])"],
                              capture_output=True, text=True, check=False, timeout=60).stdout.strip()
        if text:
            look(text)
    except (OSError, subprocess.TimeoutExpired):
        pass
    return list(dict.fromkeys(os.path.dirname(path) for path in found))


PROBE = "tests/gpu/test_gpu_cuda"
TESTS = [PROBE, "tests/gpu/test_gpu_rows", "tests/gpu/test_gpu_linear",
         "tests/gpu/test_gpu_attention", "tests/engine/test_golden", "tests/engine/test_dit",
         "tests/engine/test_dit_lora", "tests/engine/test_dit_scales", "tests/engine/test_denoise"]
PROGRAMS = ["cli/headrace", "bench/bench_stream"]


def tests(run):
    for test in TESTS[1:]:  # after the probe
        code, out, tail = run.command(run.path(test))
        run.check(os.path.basename(test), code, figures(out), tail)


def figures(out):
    found = [line.split("relative RMS ")[1] for line in out.split("\n") if "relative RMS " in line]
    return "relative RMS " + " ".join(found) if found else ""


def rates(run, model, *options, only="", label=""):
    """@return medians by the part of their names before the comma"""
    code, out, tail = run.command(run.path("cli/headrace"), "bench", model, "--device", run.args.device, "--vram",
                                  run.args.vram, "--json", "--quiet", *options)
    if code:
        run.check(" ".join(str(word) for word in ("rates", *options)), code, "", tail)
        return {}
    result = json.loads(out)
    print(f"rates of {result['device']}, a picture of {result['picture_tokens']} tokens, {result['turns']} turns, "
          f"{result['backend']}, {'direct' if result['direct'] else 'buffered'}")
    for rate in result["rates"]:
        if not rate["name"].startswith(only):
            continue
        name = f"{rate['name']}, {label}" if label else rate["name"]
        if rate["not_measured"]:
            run.row(name, "FAIL", rate["not_measured"])
            continue
        text = f"{rate['median']:.4g} {rate['unit']}, {rate['low']:.4g} to {rate['high']:.4g}"
        if rate["share_of"]:
            text += f", {100 * rate['share']:.0f} % of {rate['share_of'].split(',')[0]}"
        run.row(name, "ok", text)
    return {rate["name"].split(",")[0]: rate["median"] for rate in result["rates"] if not rate["not_measured"]}


def by_cudnn(run, model):
    """Attention by cuDNN, as far as it is installed."""
    for test in ("tests/gpu/test_gpu_attention", "tests/engine/test_golden"):
        code, out, tail = run.command(run.path(test), HEADRACE_TEST_ATTENTION="cudnn")
        if code == 77:
            return run.row("attention by cuDNN", "none", tail.split("skipped: ")[-1])
        run.check(f"{os.path.basename(test)}, cudnn", code, figures(out), tail)
    if model:
        rates(run, model, "--attention", "cudnn", "--turns", 3, only="attention", label="cudnn")


def ask_driver(what, device):
    """MiB, or 0 where nvidia-smi says nothing."""
    number = device.partition(":")[2] or "0"
    try:
        out = subprocess.run(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits", "-i", number],
                             capture_output=True, text=True, check=False, timeout=20).stdout
        return int(out.strip().split("\n")[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return 0


class Watch(threading.Thread):
    """The most memory that nvidia-smi reports as used, and what was used before."""

    def __init__(self, device):
        super().__init__(daemon=True)
        self.device, self.peak, self.stop = device, 0, False
        self.before = ask_driver("memory.used", device)

    def run(self):
        while not self.stop:
            self.peak = max(self.peak, ask_driver("memory.used", self.device))
            time.sleep(0.2)


def make_model(run, work):
    """Its folder, or None: blocks of the real width, or a small one to read from alone."""
    model, size = os.path.join(work, "model"), ["--layers", BLOCKS]
    if run.args.quick:
        size = ["--layers", 2, "--heads", 8]
    code, _, tail = run.command(run.path("cli/headrace"), "synth", model, *size)
    if code:
        run.check("a model to run", code, "", tail)
    return None if code else model


def forward(run, model, work):
    headrace, inputs, outputs = run.path("cli/headrace"), os.path.join(work, "in.safetensors"), []
    code, _, tail = run.command(headrace, "inputs", model, "--width", 1024, "--height", 1024, "--text-tokens", 100,
                                "--output", inputs)
    if code:
        return run.check("inputs to run with", code, "", tail)
    states = os.path.join(work, "states.json")
    with open(states, "w", encoding="ascii") as f:
        json.dump([{"module": "*", "offload": {"device": "cpu"}}], f)
    for name, vram, options in (
            ("forward 1024x1024", run.args.vram, []), ("again", run.args.vram, []),
            ("ring 96 MiB, blocks 1 MiB", run.args.vram, ["--ring", "96MiB", "--block-size", "1MiB"]),
            ("third, weights on the GPU", "6GiB", ["--repeat", 3]),
            ("third, weights in the host's memory", run.args.vram, ["--repeat", 3, "--states", states]),
            ("past the host's memory", run.args.vram, ["--io", "cufile"])):
        output, watch = os.path.join(work, f"out{len(outputs)}.safetensors"), Watch(run.args.device)
        watch.start()
        code, out, tail = run.command(headrace, "forward", model, "--inputs", inputs, "--output", output, "--json",
                                      "--timestep", 750, "--vram", vram, *options)
        watch.stop = True
        watch.join()
        if code and "cufile" in options and "cufile does not work here" in tail:
            run.row(name, "none", tail.split("does not work here: ")[-1])
            continue
        if code:
            run.check(name, code, "", tail)
            continue
        if "cufile" in options:
            rates(run, model, "--io", "cufile", "--turns", 3, only="disk", label="cufile")
        with open(output, "rb") as f:
            outputs.append(f.read())
        text = f"{time_of(out)}, nvidia-smi reports {watch.peak - watch.before} MiB more than before"
        fits = watch.peak - watch.before <= mib(vram)
        run.row(name, "ok" if fits or not watch.peak else "FAIL", f"{text}; --vram {vram}")
    if len(outputs) > 1:
        same = all(output == outputs[0] for output in outputs)
        run.row(f"{len(outputs)} runs give the same bits", "ok" if same else "FAIL")


def mib(size):
    for unit, factor in (("GiB", 1024), ("MiB", 1)):
        if size.endswith(unit):
            return float(size[:-3]) * factor
    sys.exit(f"--vram {size}: expected MiB or GiB")


def time_of(out):
    stats = json.loads(out)
    driver = f"{stats['device_peak_bytes'] / 2**20:.0f} MiB" if stats["device_peak_bytes"] else "nothing"
    return f"{stats['wall_s']:.3f} s, disk {stats['disk_gbps']:.2f} GB/s meanwhile, statistics say {driver}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build")
    parser.add_argument("--libs", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--work", help="where a model is made, of 1.5 GB without --quick (default: a temporary folder)")
    parser.add_argument("--vram", default="2GiB")
    parser.add_argument("--device", default="cuda", help="such as cuda:1")
    parser.add_argument("--quick", action="store_true", help="a small model, no forward")
    parser.add_argument("--full", action="store_true", help="the whole model instead, 41 GB")
    parser.add_argument("--blocks", type=int, default=FULL_BLOCKS, help="of it at most")
    parser.add_argument("--size", type=int, default=1024, help="of its picture, pixels each way")
    run = Run(parser.parse_args())
    if not os.access(run.path(PROBE), os.X_OK):
        sys.exit(f"{run.args.build} has no tests; configure it with -Dtests=true, build it and name that folder")
    if run.args.device.startswith("cuda") and not answers(run):
        return 0
    with tempfile.TemporaryDirectory(dir=run.args.work) as work:
        if run.args.full:
            whole_model(run, work)
        else:
            tests(run)
            model = make_model(run, work)
            if model:
                rates(run, model)
            by_cudnn(run, model)
            if model and not run.args.quick:
                forward(run, model, work)
    failed = [row for row in run.rows if row[1] == "FAIL"]
    passed = sum(row[1] == "ok" for row in run.rows)
    print(f"{passed} passed, {len(failed)} failed, {time.monotonic() - run.begin:.0f} s")
    return 1 if failed else 0


def answers(run):
    """Whether there is a GPU to check: the first of the tests."""
    n_checks = 4 if run.args.full else len(TESTS) + RATES + 4 + (0 if run.args.quick else 7)
    code, _, tail = run.command(run.path(PROBE))
    if code == 77:
        print(f"no GPU: {n_checks} checks skipped ({tail.split('skipped: ')[-1]})")
        return False
    print(f"libraries from {run.env['LD_LIBRARY_PATH'] or 'the system'}")
    run.check(os.path.basename(PROBE), code, "", tail)
    return True


def whole_model(run, work):
    model = make_model(run, work)
    medians = rates(run, model, "--turns", 3) if model else {}
    code, _, _ = run.command(run.path("tests/gpu/test_gpu_attention"), HEADRACE_TEST_ATTENTION="cudnn")
    has_cudnn = code == 0 and run.args.device.startswith("cuda")
    if medians:
        full(run, work, medians, ["own", "cudnn"] if has_cudnn else ["own"])


if __name__ == "__main__":
    sys.exit(main())
