# SPDX-License-Identifier: Apache-2.0
"""headrace doctor on the machine at hand, and where things were taken away from it."""
import ctypes
import errno
import json
import os
import struct
import subprocess

from cli_testing import HEADRACE, ModelCase, Result, environment, headrace, main

NAMES = {"kernel", "io_uring", "backend", "o_direct", "memlock", "huge_pages", "filesystem", "free_disk", "disk",
         "numa", "free_ram", "cpu", "device", "gpu"}
STATES = ("ok", "slow", "missing")
SYS_IO_URING_SETUP = 425  # on all architectures


def forbid_io_uring():
    """In the child: io_uring_setup fails with EPERM, as under a container's seccomp filter."""
    code = b"".join(struct.pack("HBBI", *line) for line in (
        (0x20, 0, 0, 0),                            # the number of the system call
        (0x15, 0, 1, SYS_IO_URING_SETUP),           # is it this one?
        (0x06, 0, 0, 0x00050000 | errno.EPERM),     # SECCOMP_RET_ERRNO
        (0x06, 0, 0, 0x7FFF0000)))                  # SECCOMP_RET_ALLOW
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    none = ctypes.c_ulong(0)
    if (libc.prctl(38, ctypes.c_ulong(1), none, none, none) or  # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP
            libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(program), none, none)):
        os._exit(77)


class Doctor(ModelCase):
    def findings(self, *args, **kwargs):
        """By name: the first finding of each; all are well-formed."""
        result = headrace("doctor", *args, "--json", **kwargs)
        self.assertEqual((result.code, result.err), (0, ""))
        return self.parse(result.out)

    def parse(self, text):
        report = json.loads(text)
        self.assertEqual(report["verb"], "doctor")
        found = {}
        for finding in report["findings"]:
            self.assertEqual(sorted(finding), ["found", "name", "remedy", "state"])
            self.assertIn(finding["state"], STATES)
            self.assertEqual(finding["state"] == "ok", finding["remedy"] is None, finding)
            self.assertTrue(finding["found"])
            remedy = finding["remedy"]
            if remedy and not remedy.startswith("nothing to paste: "):
                shell = subprocess.run(["sh", "-n", "-c", remedy], capture_output=True, text=True, check=False)
                self.assertEqual((shell.returncode, shell.stderr), (0, ""), remedy)
            found.setdefault(finding["name"], finding)
        self.assertLessEqual(NAMES, set(found))
        return found

    def test_json(self):
        found = self.findings(self.model)
        self.assertIn(os.uname().release, found["kernel"]["found"])
        self.assertEqual((found["device"]["state"], found["device"]["found"][:3]), ("ok", "cpu"))
        self.assertEqual(found["gpu"]["state"], "missing")  # the tests hide it
        self.assertIn("GB", found["free_ram"]["found"])
        # as a run reads it
        run = json.loads(self.forward("--json", "--quiet", "--direct", "on").out or "{}")
        if found["o_direct"]["state"] == "ok":
            self.assertTrue(run["direct"])
            self.assertEqual(found["backend"]["found"], run["backend"] + ", direct")
        else:
            self.assertEqual(run, {})

    def test_paths(self):
        """A file, a folder without a model, the current folder: nothing is left there."""
        model = self.findings(self.model)
        shard = next(n for n in os.listdir(self.model) if n.endswith(".safetensors"))
        empty = self.path("empty")
        os.mkdir(empty)
        for args, cwd in (([os.path.join(self.model, shard)], None), ([empty], None), ([], empty), ([], self.model)):
            found = self.findings(*args, cwd=cwd)
            for name in ("io_uring", "o_direct", "filesystem", "disk"):
                self.assertEqual(found[name]["state"], model[name]["state"], (args, cwd))
        self.assertEqual(os.listdir(empty), [])

    def test_folder_of_others(self):
        """Nothing can be written or read there: it is said, and the rest is still asked."""
        folder = self.path("shut")
        os.mkdir(folder, 0o555)
        if os.access(folder, os.W_OK):  # root
            folder = "/proc/self"
        found = self.findings(folder)
        self.assertEqual(found["o_direct"]["state"], "missing")
        self.assertEqual(found["o_direct"]["remedy"], "headrace doctor MODEL")
        self.assertEqual(found["io_uring"]["state"], self.findings(self.model)["io_uring"]["state"])

    def test_text(self):
        result = headrace("doctor", self.model)
        self.assertEqual((result.code, result.err), (0, ""))
        lines = result.out.splitlines()
        found = self.findings(self.model)
        for name in NAMES:
            state = found[name]["state"]
            at = next(i for i, line in enumerate(lines) if line.split()[:2] == [name, state])
            if found[name]["remedy"]:
                self.assertEqual(lines[at + 1].strip(), found[name]["remedy"])
        self.assertRegex(lines[-1], r"^\d+ ok, \d+ slow, \d+ missing$")

    def test_forced_backend(self):
        found = self.findings(self.model, env=environment(HEADRACE_IO="pread"))
        self.assertEqual((found["backend"]["state"], found["backend"]["remedy"]), ("slow", "unset HEADRACE_IO"))
        found = self.findings(self.model, env=environment(HEADRACE_IO="warp"))
        self.assertEqual(found["backend"]["state"], "missing")

    def test_without_io_uring(self):
        process = subprocess.run([HEADRACE, "doctor", self.model, "--json"], capture_output=True, text=True,
                                 env=environment(), preexec_fn=forbid_io_uring, check=False)
        if process.returncode == 77:
            self.skipTest("no seccomp here")
        result = Result(process)
        self.assertEqual((result.code, result.err), (0, ""))
        found = self.parse(result.out)
        self.assertEqual(found["io_uring"]["state"], "missing")
        self.assertRegex(found["io_uring"]["remedy"], "seccomp|sysctl|liburing")
        self.assertEqual(found["backend"]["state"], "slow")
        self.assertRegex(found["backend"]["found"], "libaio|pread")

    def test_refusals(self):
        self.assert_fails(headrace("doctor", self.path("none")), "none", "No such file")
        os.mkfifo(self.path("fifo"))
        self.assert_fails(headrace("doctor", self.path("fifo")), "fifo", "a FIFO")
        self.assert_fails(headrace("doctor", self.model, self.model), "one MODEL", code=2)
        self.assert_fails(headrace("doctor", "--ram", "1GiB"), "--ram", code=2)
        result = headrace("doctor", "--help")
        self.assertEqual(result.code, 0)
        self.assertIn("[MODEL]", result.out)


if __name__ == "__main__":
    main()
