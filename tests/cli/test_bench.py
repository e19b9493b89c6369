#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""headrace bench and tune: what they print, when they refuse to claim anything, what later runs use.

No figure is tested: this disk may be anything. fio is replaced by scripts where its answer matters."""
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import unittest
import xml.dom.minidom

from cli_testing import HEADRACE, ModelCase, environment, headrace, main, write_tensors

FAKE_FIO = """#!/bin/sh
[ "$1" = --version ] && echo fio-fake && exit 0
echo "$@" >> "{log}"
for a in "$@"; do case $a in --size=*) size=${{a#--size=}} ;; esac; done
{extra}
cat <<END
a warning
{{"jobs": [{{"error": 0, "usr_cpu": 1.0, "sys_cpu": 2.0, "read": {{"io_bytes": $size, "runtime": 100,
 "clat_ns": {{"percentile": {{"50.000000": 1000000, "99.000000": 2000000, "99.900000": 3000000}}}}}}}}]}}
END
"""


class Bench(ModelCase):
    model_options = ["--layers", 2, "--heads", 4, "--joint-dim", 96, "--shards", 2]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.bin = cls.path("bin")
        cls.log = cls.path("fio.log")
        os.mkdir(cls.bin)

    def env(self, fio=None, **extra):
        """fio: text of a fake one; None: there is none to be found."""
        path = os.path.join(self.bin, "fio")
        if os.path.exists(path):
            os.remove(path)
        if os.path.exists(self.log):
            os.remove(self.log)
        if fio is not None:
            with open(path, "w", encoding="utf-8") as f:
                f.write(FAKE_FIO.format(log=self.log, extra=fio))
            os.chmod(path, stat.S_IRWXU)
        extra.setdefault("XDG_CACHE_HOME", self.path("cache"))
        return environment(PATH=f"{self.bin}:/bin:/usr/bin" if fio is not None else self.bin, **extra)

    def bench(self, *args, model=None, **env):
        result = headrace("bench", model or self.model, "--json", "--quiet", *args, env=self.env(**env))
        self.assertEqual(result.code, 0, result.err)
        return json.loads(result.out)

    def test_without_fio(self):
        out = self.bench("--quads", 1)
        self.assertGreater(out["gbps"], 0)
        for key in ("ratio", "ratio_low", "ratio_high", "fio_gbps"):
            self.assertIsNone(out[key])
        self.assertIn(out["verdict"], ("refused", "no comparison"))
        for key in ("latency_p50_ms", "latency_p99_ms", "latency_p999_ms", "cpu_s_per_gb", "in_flight",
                    "bounced_bytes", "short_reads", "retries", "backend", "pinned_bytes", "huge_bytes", "block_bytes",
                    "iodepth"):
            self.assertIn(key, out)
        self.assertGreater(len(out["sweep"]), 3)

    def test_ignored_ends_of_children(self):
        """As a parent may leave it; fio's end could then not be waited for, and it was taken for not installed."""
        process = subprocess.run([HEADRACE, "bench", self.model, "--quads", "1", "--quiet", "--json"], text=True,
                                 timeout=300, capture_output=True, env=self.env(fio=""),
                                 preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
        self.assertEqual(process.returncode, 0, process.stderr)
        self.assertIsNotNone(json.loads(process.stdout)["fio_gbps"])

    def test_no_descriptors(self):
        """A machine that cannot ask fio has none for all that, and no figures without it."""
        path, lines = self.path("one.safetensors"), set()
        write_tensors(path, {"a": ("U8", [1 << 20], os.urandom(1 << 20))})
        for most in range(4, 40):
            process = subprocess.run([HEADRACE, "bench", path, "--quads", "1", "--iodepth", "4", "--quiet", "--json"],
                                     text=True, timeout=300, capture_output=True, env=self.env(fio=""),
                                     preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)))
            if process.returncode == 0:
                self.assertIsNotNone(json.loads(process.stdout)["fio_gbps"], most)
                break
            self.assertEqual(process.stdout, "")
            lines.update(process.stderr.splitlines())
        self.assertEqual(process.returncode, 0)
        self.assertIn("headrace: fio: cannot be run: Too many open files", lines)

    def test_broken_fio(self):
        env = self.env(fio="")
        with open(os.path.join(self.bin, "fio"), "w", encoding="utf-8") as f:
            f.write("#!/bin/sh\necho libaio.so.1: not found\nexit 127\n")
        self.assert_fails(headrace("bench", self.model, "--quiet", "--quads", 1, env=env),
                          "fio --version failed: libaio.so.1: not found; repair it")
        os.chmod(os.path.join(self.bin, "fio"), stat.S_IRUSR)  # nobody may run it, not even root
        env["PATH"] = self.bin
        result = headrace("bench", self.model, "--quiet", "--quads", 1, "--iodepth", 4, "--json", env=env)
        self.assertEqual(result.code, 0, result.err)
        self.assertIsNone(json.loads(result.out)["fio_gbps"])

    def test_with_fio(self):
        out = self.bench("--quads", 2, fio="")
        self.assertGreater(out["ratio"], 0)
        self.assertLessEqual(out["ratio_low"], out["ratio"])
        self.assertLessEqual(out["ratio"], out["ratio_high"])
        self.assertEqual(out["fio"]["version"], "fio-fake")
        self.assertAlmostEqual(out["fio"]["latency_p99_ms"], 2.0)
        self.assertEqual(len(out["sweep"][0]["fio_gbps"]), len(out["sweep"][0]["gbps"]))
        with open(self.log, encoding="utf-8") as f:
            calls = f.read().splitlines()
        # 7 settings in 3 turns; 2 null quads of 4, and 2 of ours with 2
        self.assertEqual(len(calls), 7 * 3 + 2 * 4 + 2 * 2)
        for call in calls:
            self.assertIn("--readonly", call)
            self.assertIn("--direct=1", call)
            offset, size = (int(re.search(f"--{k}=([0-9]+)", call)[1]) for k in ("offset", "size"))
            name = re.search("--filename=(.*safetensors)", call)[1]
            self.assertEqual((offset % 4096, size % 4096), (0, 0))
            self.assertLessEqual(offset + size, os.path.getsize(name))
            self.assertGreater(size, 0)

    def test_few_quads_make_no_claim(self):
        out = self.bench("--quads", 2, fio="")
        self.assertIn(out["verdict"], ("refused", "inconclusive: too few quads"))

    def test_fio_that_fails(self):
        for fio, words in (("echo 'fio: out of luck'; exit 3", ["fio", "out of luck"]),
                           ("exit 0", ["fio failed"])):
            result = headrace("bench", self.model, "--quiet", "--quads", 1, env=self.env(fio=fio))
            self.assert_fails(result, *words)

    def test_settings_of_the_user(self):
        out = self.bench("--quads", 1, "--block-size", "256KiB", "--iodepth", 3)
        self.assertEqual((out["block_bytes"], out["iodepth"], out["setting"]), (256 << 10, 3, "as given"))
        self.assertEqual(out["sweep"], [])  # nothing to choose and nobody to compare with

    def test_common_options(self):
        self.bench("--quads", 1, "--ram", "100MiB", "--io", "pread", "--direct", "off", "--layers", 1, "--iodepth", 4)
        self.assert_fails(headrace("bench", self.model, "--ram", "2MiB", env=self.env()), "--ram", "49 MiB")

    def test_pass_order(self):
        out = self.bench("--quads", 1, "--order", "pass", "--iodepth", 8)
        self.assertEqual(out["order"], "pass")
        self.assertGreater(out["gbps"], 0)

    def test_small_pages(self):
        self.assertEqual(self.bench("--quads", 1, "--no-huge-pages", "--iodepth", 8)["huge_bytes"], 0)

    def test_grid_and_plot(self):
        plot = self.path("out <&>.svg")
        result = headrace("bench", self.model, "--quiet", "--quads", 1, "--sweep", "--plot", plot, env=self.env())
        self.assertEqual(result.code, 0, result.err)
        self.assertRegex(result.out, r"\n +256 KiB x 256 ")
        self.assertRegex(result.out, r"verdict +\w+")
        circles = xml.dom.minidom.parse(plot).getElementsByTagName("circle")
        self.assertGreater(len(circles), 100)
        self.assert_fails(headrace("bench", self.model, "--quiet", "--quads", 1, "--plot", "/no/such/folder/x.svg",
                                   env=self.env()), "/no/such/folder/x.svg")

    def test_plot_spares_the_model(self):
        shard = next(os.path.join(self.model, n) for n in os.listdir(self.model) if n.endswith(".safetensors"))
        before = os.stat(shard)
        self.assert_fails(headrace("bench", self.model, "--quiet", "--quads", 1, "--plot", shard, env=self.env()),
                          "--plot", "is a part of the model")
        self.assertEqual((before.st_ino, before.st_size), (os.stat(shard).st_ino, os.stat(shard).st_size))

    def test_page_cache_is_no_disk(self):
        folder = self.path("cached")
        shutil.copytree(self.model, folder)
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as f:
                os.fsync(f.fileno())
                f.read()
        out = self.bench("--quads", 1, "--direct", "off", "--iodepth", 8, model=folder)
        self.assertEqual(out["verdict"], "refused")
        self.assertIn("page cache", out["why"])
        self.assertEqual(out["bounced_bytes"], out["bytes_read"])

    def test_holes_are_no_data(self):
        path = self.path("holes.safetensors")
        write_tensors(path, {"a": ("U8", [64 << 20], b"")})
        with open(path, "r+b") as f:
            n = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(n))
            header["a"]["data_offsets"] = [0, 64 << 20]
            text = json.dumps(header).encode()
            f.seek(0)
            f.write(len(text).to_bytes(8, "little") + text)
            f.truncate(8 + len(text) + (64 << 20))
            os.fsync(f.fileno())
        out = self.bench("--quads", 1, "--iodepth", 8, model=path)
        self.assertEqual(out["verdict"], "refused")
        self.assertRegex(out["why"], "hole|page cache|zeros")

    def test_nothing_to_read(self):
        path = self.path("empty.safetensors")
        write_tensors(path, {})
        for verb in ("bench", "tune"):
            self.assert_fails(headrace(verb, path, env=self.env()), "empty.safetensors", "no bytes")
        not_a_dit = self.path("other.safetensors")
        write_tensors(not_a_dit, {"a": ("U8", [5000], os.urandom(5000))})
        self.assertGreater(self.bench("--quads", 1, "--iodepth", 2, model=not_a_dit)["gbps"], 0)
        self.assert_fails(headrace("bench", not_a_dit, "--order", "pass", env=self.env()), "other.safetensors")

    def test_usage(self):
        for args in (["--quads", 0], ["--quads", "many"], ["--order", "random"], ["--block-size", "3MiB"],
                     ["--iodepth", 0], ["--iodepth", 100000], ["--block-size", "1GiB"]):
            result = headrace("bench", self.model, *args, env=self.env())
            self.assertEqual(result.code, 2, (args, result.err))


class Device(ModelCase):
    """bench --device, on the CPU and on the device that plays one with memory of its own."""

    def bench(self, *args):
        return headrace("bench", self.model, "--quiet", "--turns", 1, *args)

    def rates(self, *args):
        result = self.bench("--json", *args)
        self.assertEqual(result.code, 0, result.err)
        out = json.loads(result.out)
        return out, {rate["name"].split(",")[0]: rate for rate in out["rates"]}

    def test_cpu(self):
        """Nothing is copied to it, and it stays within its memory."""
        out, rates = self.rates("--device", "cpu", "--threads", 1, "--ram", "400MiB")
        self.assertIn("1 thread", out["device"])
        self.assertEqual((out["verb"], out["precision"], out["turns"]), ("bench", "bf16", 1))
        self.assertEqual(out["device_memory_bytes"], 0)
        if os.environ.get("HEADRACE_TEST_SMALL") != "1":  # a sanitizer has memory of its own
            self.assertLessEqual(out["peak_memory_bytes"], 400 << 20)
        for name, rate in rates.items():
            if name.startswith("copy") or "copied" in name:
                self.assertEqual((rate["median"], rate["share_of"]), (None, None))
                self.assertEqual(rate["not_measured"], "none, computes on the ring")
            else:
                self.assertLessEqual(rate["low"], rate["median"])
                self.assertIsNone(rate["not_measured"])
        self.assertEqual(rates["square"]["unit"], "TFLOP/s")
        self.assertEqual(rates["MLP up"]["share_of"], rates["square"]["name"])
        self.assertGreater(out["bytes_read"], 0)

    def test_device_with_memory(self):
        """Disk and copies at the same time, each next to itself alone."""
        self.assert_fails(self.bench("--device", "emulated", "--vram", "200MiB"),
                          "the limit of device memory is 200 MiB", "raise the limit")
        out, rates = self.rates("--device", "emulated", "--vram", "320MiB")
        self.assertTrue(0 < out["device_peak_bytes"] <= out["device_memory_bytes"] <= 320 << 20)
        for name in ("copy from ordinary memory", "copy from registered memory", "copy while the disk reads"):
            self.assertGreater(rates[name]["median"], 0)
        self.assertEqual(rates["copy while the disk reads"]["share_of"], "copy from registered memory")
        self.assertEqual(rates["disk while bands are copied"]["share_of"], "disk alone")
        self.assertEqual(rates["weights F8_E4M3 to BF16"]["share_of"], "weights BF16 to BF16, 16 tokens")

    def test_text(self):
        result = self.bench("--device", "cpu", "--precision", "f32")
        self.assertEqual(result.code, 0, result.err)
        self.assertRegex(result.out, r"\nturns +1 in \d+ s")
        self.assertRegex(result.out, r"\ncopy from registered memory +none, computes on the ring\n")
        self.assertRegex(result.out, r"\ndisk alone +[\d.]+ GB/s ")
        self.assertRegex(result.out, r"\nMLP up, \d+ x 3072 -> 12288 +[\d.]+ TFLOP/s .* % of square\n")

    def test_refused(self):
        self.assert_fails(self.bench("--device", "abacus"), '"abacus" is unknown')
        self.assert_fails(self.bench("--device", "cpu", "--ram", "60MiB"), "the memory limit is 60 MiB",
                          "raise the limit")
        empty = self.path("empty.safetensors")
        write_tensors(empty, {})
        self.assert_fails(headrace("bench", empty, "--device", "cpu"), "no bytes")

    def test_unreadable(self):
        """A disk that fails, and one that hangs."""
        for faults, words in (("eio=2000000", ["tensor", "Input/output error"]), ("hang=2000000", ["tensor", "1 s"])):
            result = headrace("bench", self.model, "--quiet", "--device", "emulated", "--io", "fault",
                              "--io-timeout", 1, env=environment(HEADRACE_FAULTS=faults))
            self.assert_fails(result, *words)

    def test_interrupt(self):
        """While reading, which takes for ever."""
        for device in ("cpu", "emulated"):
            process = subprocess.Popen([HEADRACE, "bench", self.model, "--device", device, "--turns", "1000",
                                        "--io", "fault"], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                       env=environment(HEADRACE_FAULTS="delay=500000"))
            for line in process.stderr:
                if "io: fault" in line:
                    break
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, out), (1, ""), err)
            self.assertIn("interrupted", err.splitlines()[-1])

    def test_without_effect(self):
        """Also where the default is asked for."""
        for args in (["--quads", 1], ["--order", "pass"], ["--order", "file"], ["--order=file"], ["--sweep"],
                     ["--plot", self.path("x.svg")], ["--layers", 1]):
            result = self.bench("--device", "cpu", *args)
            self.assertEqual(result.code, 2, (args, result.err))
            self.assertIn(f"{args[0].split('=')[0]} has no effect with --device", result.err)
        for args in (["--turns", 1], ["--vram", "1GiB"], ["--threads", 1], ["--precision", "f32"],
                     ["--precision", "bf16"], ["--attention", "cudnn"], ["--attention", "own"]):
            result = headrace("bench", self.model, *args)
            self.assertEqual(result.code, 2, (args, result.err))
            self.assertIn(f"{args[0]} has no effect without --device", result.err)


class Tune(ModelCase):
    def setUp(self):
        self.cache = tempfile.mkdtemp(dir=self.folder)

    def tune(self, *args, model=None):
        return headrace("tune", model or self.model, "--json", "--quiet", *args,
                        env=environment(XDG_CACHE_HOME=self.cache))

    def stored(self):
        folder = os.path.join(self.cache, "headrace")
        return [os.path.join(folder, n) for n in os.listdir(folder)] if os.path.isdir(folder) else []

    def test_stored_or_said_why_not(self):
        result = self.tune()
        if result.code != 0:  # noise, or a filesystem that is no disk's
            self.assertRegex(result.lines[-1], "nothing was stored|nothing to tune")
            self.assertEqual(self.stored(), [])
            return
        out = json.loads(result.out)
        self.assertEqual(self.stored(), [out["stored"]])
        with open(out["stored"], encoding="utf-8") as f:
            kept = json.load(f)
        self.assertEqual((kept["block_bytes"], kept["iodepth"]), (out["block_bytes"], out["iodepth"]))
        self.assertLessEqual(out["gbps_low"], out["gbps"])
        if (out["block_bytes"], out["iodepth"]) != (4 << 20, 16):  # won by more than chance
            self.assertGreater(out["over_default_low"], 1.0)
        else:
            self.assertEqual([out["over_default" + x] for x in ("", "_low", "_high")], [1, 1, 1])
        env = environment(XDG_CACHE_HOME=self.cache)
        later = json.loads(self.forward("--json", "--quiet", env=env).out)
        self.assertEqual((later["tuned"], later["block_bytes"]), (True, out["block_bytes"]))
        self.assertFalse(json.loads(self.forward("--json", "--quiet", "--iodepth", 5, env=env).out)["tuned"])

    def test_memory_is_not_tuned(self):
        shm = "/dev/shm"
        if not os.access(shm, os.W_OK):
            self.skipTest("no tmpfs")
        with tempfile.TemporaryDirectory(dir=shm) as folder:
            path = os.path.join(folder, "m.safetensors")
            write_tensors(path, {"a": ("U8", [1 << 20], os.urandom(1 << 20))})
            self.assert_fails(self.tune(model=path), "m.safetensors", "nothing to tune")
        self.assertEqual(self.stored(), [])


if __name__ == "__main__":
    main()
