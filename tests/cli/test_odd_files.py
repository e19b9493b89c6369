#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Models in odd places and things that are no files: the same bytes, or one clear line; never a hang.

Filesystems are mounted in a namespace of the test's own, which needs no root where the kernel allows it."""
import json
import os
import shutil
import subprocess
import tempfile
import time
import unittest

from cli_testing import HEADRACE, ModelCase, environment, headrace, main, read_header

SHM = "/dev/shm"


def in_namespace(script, *args, timeout=120):
    """Run a shell script where it may mount; None: it may not here."""
    for unshare in (["unshare", "-m"], ["unshare", "-rm"]):
        probe = subprocess.run([*unshare, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True)
        if probe.returncode == 0:
            return subprocess.run([*unshare, "sh", "-euc", script, "sh", *args], capture_output=True, text=True,
                                  timeout=timeout, env=environment(), stdin=subprocess.DEVNULL)
    return None


class OddFiles(ModelCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = cls.path("reference.safetensors")
        result = headrace("forward", cls.model, "--inputs", cls.inputs, "--timestep", 750, "--output", cls.reference)
        assert result.code == 0, result.err

    def same(self, output="out.safetensors"):
        with open(self.path(output), "rb") as a, open(self.reference, "rb") as b:
            self.assertEqual(a.read(), b.read())

    def shard(self, folder):
        return next(os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.endswith(".safetensors"))

    def copy(self, name):
        folder = self.path(name)
        shutil.copytree(self.model, folder)
        return folder

    # ---- filesystems

    @unittest.skipUnless(os.path.isdir(SHM) and os.access(SHM, os.W_OK), "no tmpfs")
    def test_tmpfs(self):
        with tempfile.TemporaryDirectory(dir=SHM) as folder:
            model = os.path.join(folder, "model")
            shutil.copytree(self.model, model)
            result = self.forward(model=model)
            self.assertEqual(result.code, 0, result.err)
            self.same()
            if subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout == "tmpfs\n":
                self.assertIn("lies in memory (tmpfs)", result.err)
                self.assert_fails(self.forward("--direct", "on", model=model), "tmpfs")

    def mounted(self, mount):
        """A forward of the model that `mount` brings to $1."""
        target = self.path("mounted")
        os.makedirs(target, exist_ok=True)
        out = self.path("out.safetensors")
        if os.path.exists(out):
            os.remove(out)
        result = in_namespace(f'{mount}; exec "$3" forward "$1" --inputs "$4" --timestep 750 --output "$5"', target,
                              self.model, HEADRACE, self.inputs, out)
        if result is None:
            self.skipTest("mounting is not allowed here")
        if result.returncode == 32:  # mount's own failure
            self.skipTest(result.stderr.strip())
        self.assertEqual(result.returncode, 0, result.stderr)
        self.same()

    def test_read_only(self):
        self.mounted('mount --bind "$2" "$1"; mount -o remount,ro,bind "$1"; ! touch "$1/x" 2>/dev/null')

    def test_overlay(self):
        upper = tempfile.mkdtemp(dir=self.folder)
        self.mounted(f'mount -t tmpfs up {upper}; mkdir {upper}/u {upper}/w; '
                     f'mount -t overlay o -o lowerdir="$2",upperdir={upper}/u,workdir={upper}/w "$1"')

    def test_filesystem_that_refuses_direct_reads(self):
        # As network filesystems do it: they open, and each direct read fails with EINVAL.
        env = environment(HEADRACE_FAULTS="inner=pread,einval=1")
        result = self.forward("--io", "fault", env=env)
        self.assertEqual(result.code, 0, result.err)
        self.same()
        # What was forced is not substituted.
        self.assert_fails(self.forward("--io", "fault", "--direct", "on", env=env), "Invalid argument", "bytes",
                          "tensor")

    def test_holes(self):
        folder = self.copy("holes")
        path = self.shard(folder)
        n, header = read_header(path)
        entry = header["transformer_blocks.0.img_mlp.net.2.weight"]["data_offsets"]
        begin, end = (8 + n + v for v in entry)
        whole = self.path("zeros")
        shutil.copytree(folder, whole)
        with open(self.shard(whole), "r+b") as f:
            f.seek(begin)
            f.write(bytes(end - begin))
        with open(path, "r+b") as f:  # the same zeros, never written
            tail = f.seek(end) and f.read()
            f.truncate(begin)
            f.seek(end)
            f.write(tail)
        sums = []
        for model in (whole, folder):
            self.assertEqual(self.forward(model=model).code, 0)
            with open(self.path("out.safetensors"), "rb") as f:
                sums.append(f.read())
        self.assertEqual(sums[0], sums[1])

    # ---- things that are no files

    def test_no_files(self):
        fifo, folder, empty = self.path("fifo.safetensors"), self.path("d.safetensors"), self.path("e.safetensors")
        os.mkfifo(fifo)
        os.mkdir(folder)
        with open(empty, "wb"):
            pass
        for path, words in ((fifo, "is a FIFO"), (folder, "d.safetensors"), (empty, "e.safetensors"),
                            ("/dev/zero", "is a device"), (self.path("none.safetensors"), "No such file")):
            for verb in (["inspect"], ["bench"], ["tune"], ["checksum"],
                         ["forward", "--inputs", self.inputs, "--timestep", 1]):
                self.assert_fails(headrace(verb[0], path, *verb[1:], timeout=60), words)

    @unittest.skipIf(os.geteuid() == 0, "root may read anything")
    def test_no_permission(self):
        folder = self.copy("secret")
        os.chmod(self.shard(folder), 0)
        self.assert_fails(self.forward(model=folder), "Permission denied", os.path.basename(self.shard(folder)))

    def test_no_permission_for_another_user(self):
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        folder = self.copy("secret")
        os.chmod(self.shard(folder), 0)
        for path in (self.folder, folder):
            os.chmod(path, 0o755)
        program = shutil.copy(HEADRACE, self.folder)  # its own folder may be root's alone
        result = subprocess.run([program, "inspect", folder], capture_output=True, text=True, env=environment(),
                                user=65534, group=65534, extra_groups=[])
        self.assertEqual(result.returncode, 1, result.stderr)
        self.assertIn("Permission denied", result.stderr)

    # ---- settings

    def test_absurd_settings(self):
        for args in (["--iodepth", 0], ["--iodepth", -1], ["--iodepth", 10 ** 9], ["--block-size", 0],
                     ["--block-size", 1000], ["--block-size", "4097"], ["--block-size", "96KiB"],
                     ["--block-size", "1TiB"], ["--ring", 0]):
            result = self.forward(*args)
            self.assertEqual(result.code, 2, (args, result.err))
            self.assertIn(args[0], result.err)
        for args in (["--iodepth", 1024, "--block-size", "32MiB"], ["--iodepth", 1, "--block-size", "64KiB"]):
            result = self.forward(*args)
            self.assertEqual(result.code, 0, result.err)
            self.same()

    # ---- others on the same disk

    def test_neighbour(self):
        """Another program that reads and writes all the time slows us down, and that is all."""
        script = ('while :; do dd if="$1" of=/dev/null bs=1M iflag=direct; '
                  'dd if="$1" of="$2" bs=1M oflag=direct conv=fdatasync; done')
        neighbours = [subprocess.Popen(["sh", "-c", script, "sh", self.shard(self.model), self.path(f"copy{i}")],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
                      for i in range(2)]
        try:
            time.sleep(0.2)
            result = headrace("forward", self.model, "--inputs", self.inputs, "--timestep", 750, "--output",
                              self.path("out.safetensors"), "--repeat", 20, "--direct", "on", "--json", "--quiet",
                              timeout=250)
            if result.code != 0 and "direct" in result.err:
                self.skipTest("no direct reads here")
            self.assertEqual(result.code, 0, result.err)
            self.assertEqual(len(json.loads(result.out)["forwards_wall_s"]), 20)
            self.same()
            self.assertTrue(all(p.poll() is None for p in neighbours))
        finally:
            for p in neighbours:
                os.killpg(p.pid, 9)
                p.wait()


if __name__ == "__main__":
    main()
