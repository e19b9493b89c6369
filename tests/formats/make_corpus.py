#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write small safetensors files, shard indices and configs, valid and hostile, with verdicts.

    make_corpus.py FOLDER STAMP

FOLDER gets header/, index/, config/, manifest/ and verdicts.txt, a line for each file:

    kind/name <tab> ok|EBADMSG|EOPNOTSUPP <tab> entries of a valid file, or words of the message

and files without a verdict for the other fuzz targets. The same files every time; none is larger than a few
hundred kB. STAMP is touched last.
"""
import itertools
import json
import os
import pathlib
import shutil
import struct
import sys

LIMIT = 2**63 - 1


class Corpus:
    def __init__(self, folder):
        self.folder = folder
        self.verdicts = []

    def add(self, kind, name, data, verdict, detail):
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists(), path
        path.write_bytes(data)
        self.verdicts.append(f"{kind}/{name}\t{verdict}\t{detail}\n")

    def write(self, kind, name, data):
        """A file without a verdict: only fuzz targets read it."""
        path = self.folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def header(self, name, text, n_data, detail, n=None):
        """A file of `text`, n_data bytes of data; detail: a count if valid, words if not."""
        if isinstance(text, str):
            text = text.encode("utf-8", "surrogatepass")
        data = struct.pack("<Q", len(text) if n is None else n) + text + bytes(n_data)
        verdict = "ok" if isinstance(detail, int) else "EBADMSG"
        self.add("header", name, data, verdict, detail)

    def index(self, name, text, detail):
        verdict = "ok" if isinstance(detail, int) else "EBADMSG"
        self.add("index", name, text.encode() if isinstance(text, str) else text, verdict, detail)

    def manifest(self, name, text, detail):
        verdict = "ok" if isinstance(detail, int) else "EBADMSG"
        self.add("manifest", name, text.encode() if isinstance(text, str) else text, verdict, detail)

    def config(self, name, text, verdict, detail=""):
        self.add("config", name, text.encode() if isinstance(text, str) else text, verdict, detail)


def entry(name, dtype, shape, begin, end, more=""):
    """One member; shape, begin and end go into the text as they are."""
    if not isinstance(shape, str):
        shape = ",".join(str(d) for d in shape)
    return f'"{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{begin},{end}]{more}}}'


def obj(*members):
    return "{" + ",".join(members) + "}"


TWO = obj(entry("a", "BF16", [2, 3], 0, 12), entry("b", "F32", [2], 12, 20))


def valid_headers(c):
    c.header("ok_empty", "{}", 0, 0)
    c.header("ok_two", TWO, 20, 2)
    for pad in range(1, 9):
        c.header(f"ok_spaces_{pad}", TWO + " " * pad, 20, 2)
    c.header("ok_space_everywhere", " \t\r\n" + TWO.replace(",", " ,\n").replace(":", "\t: "), 20, 2)
    c.header("ok_out_of_order", obj(entry("a", "U8", [3], 5, 8), entry("b", "U8", [5], 0, 5)), 8, 2)
    c.header("ok_empty_between", obj(entry("a", "U8", [3], 0, 3), entry("e", "F32", [0], 3, 3),
                                     entry("f", "I64", [4, 0, 2], 3, 3),
                                     entry("b", "U8", [1], 3, 4), entry("g", "U8", [0], 4, 4)), 4, 5)
    c.header("ok_only_empty", obj(entry("a", "F32", [0], 0, 0)), 0, 1)
    c.header("ok_scalar", obj(entry("s", "F64", [], 0, 8)), 8, 1)
    c.header("ok_extra_keys", obj(entry("s", "U8", [1], 0, 1, ',"x":{"y":[null,1.5,-0]},"z":1e9')),
             1, 1)
    c.header("ok_extra_large_integer", obj(entry("s", "U8", [1], 0, 1, f',"x":{2**80}')), 1, 1)
    c.header("ok_metadata", obj('"__metadata__":{"format":"pt","x":"{\\"y\\":1}"}',
                                entry("s", "U8", [1], 0, 1)), 1, 1)
    c.header("ok_metadata_last", obj(entry("s", "U8", [1], 0, 1), '"__metadata__":{}'), 1, 1)
    c.header("ok_metadata_escaped", obj('"__met\\u0061data__":{"a":"b"}'), 0, 0)
    c.header("ok_keys_reordered",
             '{"s":{"data_offsets":[0,4],"shape":[4],"dtype":"I8"}}', 4, 1)
    c.header("ok_name_empty", obj(entry("", "U8", [1], 0, 1)), 1, 1)
    c.header("ok_name_unicode", obj(entry("\u00e9\u4e2d\U0001f600", "U8", [1], 0, 1)), 1, 1)
    c.header("ok_name_escapes", obj(entry("\\ud83d\\ude00\\/\\n\\\"", "U8", [1], 0, 1)), 1, 1)
    c.header("ok_name_noncharacter", obj(entry("\uffff", "U8", [1], 0, 1)), 1, 1)
    c.header("ok_names_differ_by_case", obj(entry("A", "U8", [1], 0, 1),
                                            entry("a", "U8", [1], 1, 2)), 2, 2)
    c.header("ok_huge_dims_empty", obj(entry("a", "U8", [LIMIT, 0], 0, 0)), 0, 1)
    c.header("ok_zero_before_wrap", obj(entry("a", "U8", [0, 2**62, 2**62], 0, 0)), 0, 1)
    c.header("ok_rank_64", obj(entry("a", "U8", [1] * 64, 0, 1)), 1, 1)
    c.header("ok_f4_even", obj(entry("a", "F4", [6], 0, 3)), 3, 1)
    c.header("ok_f6_four", obj(entry("a", "F6_E3M2", [4], 0, 3)), 3, 1)
    widths = {8: "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ", 16: "I16 U16 F16 BF16",
              32: "I32 U32 F32", 64: "C64 F64 I64 U64", 4: "F4", 6: "F6_E2M3 F6_E3M2"}
    for bits, names in widths.items():
        for name in names.split():
            c.header(f"ok_dtype_{name}", obj(entry("t", name, [8], 0, bits)), bits, 1)
    many = [entry(f"blocks.{i}.weight", "U8", [i % 3], (i // 3) * 3 + (0, 0, 1)[i % 3],
                  (i // 3) * 3 + (0, 1, 3)[i % 3]) for i in range(300)]
    c.header("ok_many", obj(*many), 300, 300)
    c.header("ok_many_reversed", obj(*reversed(many)), 300, 300)
    c.header("ok_long_name", obj(entry("n" * 50000, "U8", [1], 0, 1)), 1, 1)
    c.header("ok_long_metadata", obj('"__metadata__":{"x":"' + "y" * 200000 + '"}'), 0, 0)


def hostile_lengths(c):
    text = TWO.encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(20)
    boundaries = {0, 1, 7, 8, 9, 8 + len(text) // 2, 8 + len(text) - 1, 8 + len(text),
                  8 + len(text) + 1, 8 + len(text) + 12, len(whole) - 1}
    boundaries |= {8 + i for i, b in enumerate(text) if b in b'{}[]":,'}
    for n in sorted(boundaries):
        c.add("header", f"bad_truncated_{n:03}", whole[:n], "EBADMSG", "")
    c.add("header", "bad_appended", whole + b"x", "EBADMSG", "something appended")
    c.header("bad_length_0", TWO, 20, "expected an object", n=0)
    c.header("bad_length_short", TWO, 20, "", n=len(text) - 1)
    c.header("bad_length_long", TWO, 20, "", n=len(text) + 1)
    c.header("bad_length_over_limit", TWO, 20, "at most 100000000", n=100000001)
    c.header("bad_length_2_63", TWO, 20, "at most 100000000", n=2**63)
    c.header("bad_length_max", TWO, 20, "at most 100000000", n=2**64 - 1)
    c.header("bad_length_wraps", TWO, 20, "at most 100000000", n=2**64 - 8)
    c.header("bad_length_truncated", TWO, 20, "truncated", n=99999999)
    c.add("header", "bad_big_endian", struct.pack(">Q", len(text)) + text + bytes(20), "EBADMSG",
          "at most")


def hostile_text(c):
    a = entry("a", "U8", [1], 0, 1)
    for name, text, words in [
            ("array", "[]", "expected an object"),
            ("array_of_entries", '[{"dtype":"U8","shape":[1],"data_offsets":[0,1]}]', "expected an"),
            ("string", '"x"', "expected an object"), ("number", "1", "expected an object"),
            ("null", "null", "expected an object"), ("spaces_only", "    ", "expected an object"),
            ("bom", b"\xef\xbb\xbf" + TWO.encode(), "expected an object"),
            ("utf16", TWO.encode("utf-16-le"), ""),
            ("trailing_garbage", "{" + a + "}x", "something follows"),
            ("trailing_nul", "{" + a + "}\0\0", "something follows"),
            ("trailing_object", "{" + a + "}{}", "something follows"),
            ("trailing_comma", "{" + a + ",}", "expected a key"),
            ("trailing_form_feed", "{" + a + "}\f", "something follows"),
            ("leading_comma", "{," + a + "}", "expected a key"),
            ("no_comma", "{" + a + " " + a.replace("a", "b") + "}", "expected , or }"),
            ("no_colon", '{"a" {}}', "expected :"), ("no_value", '{"a":}', "expected a value"),
            ("comment", "{/* x */" + a + "}", "expected a key"),
            ("single_quotes", a.replace('"', "'").join("{}"), "expected a key"),
            ("unquoted_key", '{a:{}}', "expected a key"),
            ("key_unterminated", '{"a', "ends inside the string"),
            ("value_unterminated", '{"a":{"dtype":"U8', "ends inside the value"),
            ("brackets_crossed", '{"a":{"shape":[1}]}', 'tensor "a"'),
            ("literal_upper", '{"a":Null}', 'tensor "a"'),
            ("deep_arrays", '{"a":' + "[" * 100000, "more than 32 brackets inside one another"),
            ("deep_objects", '{"a":' * 50000, "more than 32 brackets inside one another"),
            ("deep_33", obj(entry("a", "U8", [1], 0, 1, ',"x":' + "[" * 33 + "]" * 33)),
             "more than 32 brackets inside one another"),
            ("deep_in_metadata", '{"__metadata__":{"a":' + "[" * 40 + "]" * 40 + "}}",
             "more than 32 brackets inside one another")]:
        c.header("bad_json_" + name, text, 1, words)
    for name, text in [
            ("ff", b"\xff"), ("overlong_slash", b"\xc0\xaf"), ("overlong_nul", b"\xc0\x80"),
            ("overlong_3", b"\xe0\x80\xaf"), ("surrogate", b"\xed\xa0\x80"),
            ("above_10ffff", b"\xf4\x90\x80\x80"), ("five_bytes", b"\xf8\x88\x80\x80\x80"),
            ("cut", b"\xe4\xb8"), ("lone_continuation", b"\x80"), ("cut_by_quote", b"\xf0\x9f\x98"),
            ("raw_nul", b"\0"), ("raw_newline", b"\n"), ("raw_tab", b"\t"),
            ("escaped_nul", b"\\u0000"), ("lone_high", b"\\ud800"), ("lone_low", b"\\udc00"),
            ("high_high", b"\\ud800\\ud800"), ("high_text", b"\\ud83dx"), ("short_u", b"\\u12"),
            ("bad_escape", b"\\x"), ("cut_escape", b"\\")]:
        good = obj(entry("QQQ", "U8", [1], 0, 1)).encode()
        c.header(f"bad_text_name_{name}", good.replace(b"QQQ", text), 1, "")
        c.header(f"bad_text_value_{name}",
                 obj(entry("a", "U8", [1], 0, 1, ',"x":"QQQ"')).encode().replace(b"QQQ", text), 1, "")
    c.header("bad_dup_names", obj(a, entry("a", "U8", [0], 1, 1)), 1, 'tensor "a" appears twice')
    c.header("bad_dup_names_escaped", obj(a, entry("\\u0061", "U8", [0], 1, 1)), 1,
             'tensor "a" appears twice')
    c.header("bad_dup_in_entry", obj(entry("a", "U8", [1], 0, 1, ',"dtype":"U8"')), 1, 'tensor "a"')
    c.header("bad_dup_in_entry_escaped", obj(entry("a", "U8", [1], 0, 1, ',"\\u0073hape":[1]')), 1,
             'tensor "a"')
    c.header("bad_dup_deep", obj(entry("a", "U8", [1], 0, 1, ',"x":[{"k":1,"k":1}]')), 1,
             'tensor "a"')
    c.header("bad_dup_metadata", '{"__metadata__":{},"__metadata__":{}}', 0, "appears twice")
    c.header("bad_dup_metadata_key", '{"__metadata__":{"k":"1","\\u006b":"1"}}', 0,
             'metadata key "k" appears twice')
    for name, value in [("null", "null"), ("array", "[]"), ("string", '"x"'), ("number", "1"),
                        ("number_value", '{"k":1}'), ("null_value", '{"k":null}'),
                        ("object_value", '{"k":{}}'), ("entry", '{"dtype":"U8","shape":[0],'
                                                       '"data_offsets":[0,0]}')]:
        c.header(f"bad_metadata_{name}", obj(f'"__metadata__":{value}'), 0, "metadata")


def hostile_entries(c):
    integers = {"1_0": "1.0", "1e1": "1e1", "1E0": "1E0", "1e0": "1e0", "minus_0": "-0",
                "minus_0_0": "-0.0", "minus_1": "-1", "2_63": str(2**63), "2_64_1": str(2**64 + 1),
                "10_40": "1" + "0" * 40, "minus_2_63": str(-2**63), "minus_2_70": str(-2**70),
                "string": '"1"', "null": "null", "true": "true", "array": "[1]", "object": "{}",
                "leading_0": "01", "plus": "+1", "hex": "0x1", "dot": "1.", "infinity": "Infinity",
                "nan": "NaN", "1e999": "1e999", "minus": "-", "missing": ""}
    for name, text in integers.items():
        if text:
            c.header(f"bad_int_shape_{name}", obj(entry("i", "U8", text, 0, 1)), 1, 'tensor "i"')
        c.header(f"bad_int_begin_{name}", obj(entry("i", "U8", "1", text, 1)), 1, 'tensor "i"')
        c.header(f"bad_int_end_{name}", obj(entry("i", "U8", "1", 0, text)), 1, 'tensor "i"')
    for value in [2**53 + 1, LIMIT]:
        c.header(f"bad_behind_end_{value}", obj(entry("a", "U8", [value], 0, value)), 1,
                 "behind the end of the file")
    for name, shape, dtype, words in [
            ("wraps_to_0", [2**32, 2**32], "U8", "product of the shape"),
            ("wraps_to_1", [2**33, 2**31], "U8", "product of the shape"),
            ("wraps_then_0", [2**32, 2**32, 0], "U8", "product of the shape"),
            ("wraps_twice", [LIMIT, LIMIT, LIMIT], "U8", "product of the shape"),
            ("bits_wrap", [2**61], "U8", "size in bits"), ("bits_wrap_64", [2**58], "F64", "bits"),
            ("rank_65", [1] * 65, "U8", "more than 64"), ("rank_5000", [1] * 5000, "U8", "more than"),
            ("f4_odd", [3], "F4", "no whole number"), ("f6_odd", [1], "F6_E2M3", "no whole number"),
            ("too_few", [2], "U8", "hold 1 bytes"), ("scalar_of_2", [], "BF16", "hold 1 bytes"),
            ("dtype_lower", [1], "u8", "unknown dtype"), ("dtype_space", [1], "U8 ", "unknown dtype"),
            ("dtype_empty", [1], "", "unknown dtype"), ("dtype_torch", [1], "float32", "unknown"),
            ("dtype_long", [1], "F" * 5000, "unknown dtype")]:
        c.header(f"bad_shape_{name}", obj(entry("t", dtype, shape, 0, 1)), 1, words)
    parts = ['"dtype":"U8"', '"shape":[1]', '"data_offsets":[0,1]']
    for i, part in enumerate(parts):
        others = parts[:i] + parts[i + 1:]
        key = part.split('"')[1]
        c.header(f"bad_missing_{key}", '{"t":' + obj(*others) + "}", 1, key)
        for name, value in [("null", "null"), ("number", "1"), ("object", "{}"), ("bool", "true"),
                            ("other", "[]" if key != "shape" else '"1"')]:
            c.header(f"bad_{key}_{name}", '{"t":' + obj(*others, f'"{key}":{value}') + "}", 1, key)
        c.header(f"bad_key_case_{key}", '{"t":' + obj(*others, part.replace(key, key.upper())) + "}",
                 1, key)
    c.header("bad_offsets_one", obj(entry("t", "U8", [1], 0, 1).replace("[0,1]", "[0]")), 1, "no pair")
    c.header("bad_offsets_three", obj(entry("t", "U8", [1], 0, "1,1")), 1, "no pair")
    for name, value in [("null", "null"), ("array", '["U8",[1],[0,1]]'), ("string", '"U8"'),
                        ("number", "0"), ("false", "false")]:
        c.header(f"bad_entry_{name}", f'{{"t":{value}}}', 1, 'tensor "t": expected an object')
    c.header("bad_entry_large", '{"t":[' + "{}," * 400000 + "0]}", 0, "at most 1048576")


def hostile_ranges(c):
    def two(b0, e0, b1, e1):
        return obj(entry("a", "U8", [max(e0 - b0, 0)], b0, e0), entry("b", "U8", [max(e1 - b1, 0)],
                                                                    b1, e1))

    for b0, e0, b1, e1 in itertools.product(range(0, 4), repeat=4):
        ranges = sorted([(b0, e0), (b1, e1)])
        good = ranges[0][0] == 0 and ranges[0][1] == ranges[1][0] and ranges[1][1] == 3 and \
            b0 <= e0 and b1 <= e1
        c.header(f"{'ok' if good else 'bad'}_ranges_{b0}{e0}_{b1}{e1}", two(b0, e0, b1, e1), 3,
                 2 if good else "tensor")
    c.header("bad_hole_first", obj(entry("a", "U8", [1], 1, 2)), 2, "a hole before it")
    c.header("bad_no_data", obj(entry("a", "U8", [1], 0, 1)), 0, "behind the end of the file")
    c.header("bad_data_unclaimed", "{}", 1, "something appended")
    c.header("bad_empty_behind_end", obj(entry("a", "U8", [0], 1, 1)), 0, "behind the end")
    c.header("bad_empty_in_hole", obj(entry("a", "U8", [1], 0, 1), entry("e", "U8", [0], 2, 2)), 2,
             "a hole before it")
    c.header("bad_same_range", obj(entry("a", "U8", [2], 0, 2), entry("b", "U8", [2], 0, 2)), 4,
             "overlaps")
    c.header("bad_reversed_max", obj(entry("a", "U8", [1], LIMIT, 0)), 1, "end before they begin")


def indices(c):
    def one(file):
        return json.dumps({"weight_map": {"t.w": file}})

    shards = {f"blocks.{i}.w": f"m-{i % 9 + 1:05}-of-00009.safetensors" for i in range(120)}
    c.index("ok_published", json.dumps({"metadata": {"total_size": 123}, "weight_map": shards},
                                       indent=2) + "\n", 120)
    for name, metadata in [("null", None), ("array", []), ("float", 1e300), ("big", 2**80),
                           ("text", "x"), ("deep", {"a": {"b": [{}]}})]:
        c.index(f"ok_metadata_{name}", json.dumps({"metadata": metadata, "more": metadata,
                                                   "weight_map": {"t": "x.safetensors"}}), 1)
    for i, name in enumerate(["x.safetensors", "a b.safetensors", "-.safetensors", "..safetensors",
                              "x..safetensors", "\u00e9.safetensors", "x.safetensors.safetensors"]):
        c.index(f"ok_file_{i}", one(name), 1)
    bad_files = ["", ".", "..", ".safetensors", "x", "x.bin", "x.safetensor", "x.Safetensors",
                 "x.safetensors ", "x.safetensors/", "../x.safetensors", "../../etc/x.safetensors",
                 "/x.safetensors", "a/x.safetensors", "./x.safetensors", "..\\x.safetensors",
                 "C:\\x.safetensors", "a\nb.safetensors", "\x7f.safetensors", "\x1b[2J.safetensors",
                 "x.safetensors\0", "\0x.safetensors", "x" * 300 + ".safetensors"]
    for i, name in enumerate(bad_files):
        c.index(f"bad_file_{i:02}", one(name), 't.w')
    for name, text, words in [
            ("empty", "", "expected an object"), ("array", "[]", "expected an object"),
            ("no_map", "{}", "no weight_map"), ("map_empty", '{"weight_map":{}}', "is empty"),
            ("map_null", '{"weight_map":null}', "weight_map is no object"),
            ("map_array", '{"weight_map":[]}', "weight_map is no object"),
            ("value_null", '{"weight_map":{"t":null}}', 'tensor "t"'),
            ("value_array", '{"weight_map":{"t":["x.safetensors"]}}', 'tensor "t"'),
            ("dup_tensor", '{"weight_map":{"t":"x.safetensors","t":"x.safetensors"}}', 'tensor "t"'),
            ("dup_escaped", '{"weight_map":{"t":"x.safetensors","\\u0074":"y.safetensors"}}',
             'tensor "t" appears twice'),
            ("dup_map", '{"weight_map":{"t":"x.safetensors"},"weight_map":{"u":"x.safetensors"}}',
             'key "weight_map" appears twice'),
            ("dup_metadata", '{"weight_map":{"t":"x.safetensors"},"m":1,"\\u006d":1}', 'key "m"'),
            ("trailing", '{"weight_map":{"t":"x.safetensors"}}]', "something follows"),
            ("name_nul", '{"weight_map":{"t\\u0000":"x.safetensors"}}', "u0000"),
            ("metadata_malformed", '{"metadata":{"a":tru},"weight_map":{"t":"x.safetensors"}}',
             'key "metadata"'),
            ("utf8", b'{"weight_map":{"t":"\xff.safetensors"}}', "unable to decode"),
            ("deep", '{"metadata":' + "[" * 5000, "more than 32 brackets inside one another")]:
        c.index("bad_" + name, text, words)
    text = one("x.safetensors")
    for n in range(1, len(text), 5):
        c.index(f"bad_truncated_{n:02}", text[:n], "")


def configs(c):
    full = {"_class_name": "QwenImageTransformer2DModel", "_diffusers_version": "0.34.0.dev0",
            "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56], "guidance_embeds": False,
            "in_channels": 64, "joint_attention_dim": 3584, "num_attention_heads": 24,
            "num_layers": 60, "out_channels": 16, "patch_size": 2, "pooled_projection_dim": 768}
    c.config("ok_published", json.dumps(full, indent=2) + "\n", "ok")
    c.config("ok_edit", json.dumps({**full, "zero_cond_t": True}), "ok")
    c.config("ok_layered", json.dumps({**full, "use_additional_t_cond": True, "zero_cond_t": False,
                                       "use_layer3d_rope": True}), "ok")
    c.config("ok_small", json.dumps({**full, "num_layers": 2, "num_attention_heads": 2,
                                     "joint_attention_dim": 96}), "ok")
    c.config("ok_empty", "{}", "ok")
    for i, value in enumerate([None, 1.5, -1, "x", [], {"a": [1]}, True, 2**80]):
        c.config(f"ok_unknown_{i}", json.dumps({**full, "pooled_projection_dim": value,
                                                "quantization_config": value}), "ok")
    for key in full:
        c.config(f"ok_without_{key}", json.dumps({k: v for k, v in full.items() if k != key}), "ok")
    for key, value in full.items():
        if isinstance(value, bool):
            wrong = [None, 0, "false", []]
        elif isinstance(value, int) and key != "pooled_projection_dim":
            wrong = [None, float(value), str(value), -value, [value], True, 2**63, 2**64 + value]
        elif key == "axes_dims_rope":
            wrong = [None, 128, [16, 56], [16, 56, 56, 0], [16, 56, 56.0], [16, 56, "56"], {}]
        elif key == "_class_name":
            wrong = [None, 1, []]
        else:
            continue
        for i, bad in enumerate(wrong):
            c.config(f"bad_{key}_{i}", json.dumps({**full, key: bad}), "EBADMSG", key)
    for key, value in [("num_layers", 0), ("num_layers", 10001), ("num_layers", 2**32 + 60),
                       ("num_attention_heads", 0), ("num_attention_heads", 1025),
                       ("joint_attention_dim", 65537), ("joint_attention_dim", LIMIT)]:
        c.config(f"bad_range_{key}_{value}", json.dumps({**full, key: value}), "EBADMSG", key)
    for key, value in [("_class_name", "FluxTransformer2DModel"), ("_class_name", ""),
                       ("attention_head_dim", 64), ("in_channels", 16), ("out_channels", 64),
                       ("patch_size", 1), ("axes_dims_rope", [16, 56, 64]),
                       ("guidance_embeds", True)]:
        word = "the model is a" if key == "_class_name" else key
        c.config(f"other_{key}_{len(c.verdicts)}", json.dumps({**full, key: value}), "EOPNOTSUPP",
                 word)
    for name, text in [("empty", ""), ("array", "[]"), ("number", "1"), ("nul", b"{}\0"),
                       ("minus_0", '{"num_layers":-0}'), ("dup", '{"a":1,"\\u0061":1}'),
                       ("deep", "[" * 100000), ("trailing", "{}x"), ("utf8", b'{"\xff":1}'),
                       ("bom", b"\xef\xbb\xbf{}"), ("python", "{'num_layers': 60}")]:
        c.config("bad_json_" + name, text, "EBADMSG")
    text = json.dumps(full)
    for n in range(1, len(text), 31):
        c.config(f"bad_truncated_{n:03}", text[:n], "EBADMSG")


def manifests(c):
    digits = "0123456789abcdef" * 2

    def change(**more):
        whole = {"headrace_manifest": 1, "hash": "xxh3-128", "config": digits,
                 "files": {f"m-{i}.safetensors": {"size_bytes": 1000 + i, "mtime_ns": i, "header": digits}
                           for i in range(3)},
                 "tensors": {f"t.{i}": {"file": f"m-{i % 3}.safetensors", "type": f"BF16 [{i}]",
                                        "range": [100 + i, 100 + 3 * i], "data": digits} for i in range(12)}}
        whole.update(more)
        return json.dumps({k: v for k, v in whole.items() if v is not None})

    tensor = json.loads(change())["tensors"]["t.1"]
    c.manifest("ok_whole", change(), 12)
    c.manifest("ok_no_config", change(config=None), 12)
    c.manifest("ok_no_tensors", change(tensors={}), 0)
    c.manifest("ok_nothing", change(tensors={}, files={}), 0)
    c.manifest("ok_name", change(tensors={"\u00e9 \" \\": tensor}), 1)
    for key in ("headrace_manifest", "hash", "files", "tensors"):
        c.manifest(f"bad_without_{key}", change(**{key: None}), "no manifest")
        c.manifest(f"bad_type_{key}", change(**{key: [1]}), "")
    for key in tensor:
        c.manifest(f"bad_tensor_without_{key}", change(tensors={"t": {k: v for k, v in tensor.items() if k != key}}),
                   'tensor "t"')
        for i, value in enumerate(([], "x", -1, [1, 2, 3], [5, 2**70], "0" * 31 + "g")):
            if key != "type" or not isinstance(value, str):
                c.manifest(f"bad_tensor_{key}_{i}", change(tensors={"t": {**tensor, key: value}}), 'tensor "t"')
    c.manifest("bad_version", change(headrace_manifest=2), "version")
    c.manifest("bad_hash", change(hash="crc32"), "hash")
    c.manifest("bad_more", change(more=1), "more")
    c.manifest("bad_utf8", b'{"headrace_manifest":1,"\xff":1}', "")
    c.manifest("bad_deep", change()[:-1] + ',"x":' + "[" * 5000, "more than 32 brackets inside one another")
    text = change()
    for n in range(1, len(text), 97):
        c.manifest(f"bad_truncated_{n:04}", text[:n], "")


def loras(c):
    """Files for fuzz_lora, which has its own idea of what is right."""
    folder = c.folder / "lora"
    folder.mkdir()

    def write(name, tensors, metadata=None):
        header, at = ({"__metadata__": metadata} if metadata else {}), 0
        for key, (dtype, shape) in tensors.items():
            size = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}[dtype]
            for n in shape:
                size *= n
            header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        ones = b"\0\0\x80\x3f" * ((at + 3) // 4)
        (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + ones[:at])

    to_q, proj = "transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.0.proj"
    for i, (prefix, down, up, flat) in enumerate([
            ("", "lora_A.weight", "lora_B.weight", False), ("transformer.", "lora_A.weight", "lora_B.weight", False),
            ("diffusion_model.", "lora_A.default.weight", "lora_B.default.weight", False),
            ("pipe.dit.", "lora_down.weight", "lora_up.weight", False),
            ("", "lora.down.weight", "lora.up.weight", False),
            ("lora_unet_", "lora_down.weight", "lora_up.weight", True)]):
        tensors = {}
        for module, n_out, n_in in ((to_q, 4, 2), (proj, 8, 2)):
            name = prefix + (module.replace(".", "_") if flat else module)
            tensors.update({f"{name}.{down}": ("BF16", [3, n_in]), f"{name}.{up}": ("F32", [n_out, 3]),
                            f"{name}.alpha": ("F32", [])})
        write(f"form_{i}", tensors)
        write(f"form_{i}_half", dict(list(tensors.items())[1:]))
        write(f"form_{i}_shape", {**tensors, f"{name}.{down}": ("F16", [3, 3])})
    for i, value in enumerate(({"r": 3, "lora_alpha": 6}, {"lora_alpha": 1e400}, {"transformer.use_rslora": True},
                               {"alpha_pattern": {"to_q": 2}}, {"use_dora": True}, [])):
        write(f"adapter_{i}", {to_q + ".lora_A.weight": ("F32", [1, 2]), to_q + ".lora_B.weight": ("F32", [4, 1])},
              {"lora_adapter_metadata": json.dumps(value)})


def states(c):
    """Tables for fuzz_states; what is right, test_state_table.c says."""
    disk, cpu = {"dtype": "disk", "device": "disk"}, {"dtype": "torch.bfloat16", "device": "cpu"}
    whole = [{"module": "transformer_blocks.*", "offload": disk, "onload": cpu, "preparing": cpu, "computation": cpu},
             {"module": "img_in", "offload": cpu}, {"module": "*", "offload": {"device": "disk"}}]
    text = json.dumps(whole)
    c.write("states", "whole", text)
    for key in whole[0]:
        c.write("states", f"without_{key}", json.dumps([{k: v for k, v in whole[0].items() if k != key}]))
        for i, value in enumerate((1, "disk", [], {}, {"device": 1}, {"device": "cuda:0"}, {**disk, "pin": 1},
                                   {"device": "cpu", "dtype": "float8_e4m3fn"})):
            c.write("states", f"{key}_{i}", json.dumps([{**whole[0], key: value}]))
    for n in range(1, len(text), 23):
        c.write("states", f"truncated_{n:03}", text[:n])


def tunings(c):
    """Figures for fuzz_tuning."""
    whole = {"version": 1, "device": "259:0 nvme", "filesystem": "ext4", "kernel": "6.18", "block_bytes": 1 << 22,
             "iodepth": 16, "bytes_per_s": 2 * 10**9, "bytes_per_s_low": 10**9, "bytes_per_s_high": 3 * 10**9,
             "samples": 12, "time": 1790000000}
    text = json.dumps(whole)
    c.write("tuning", "whole", text)
    for key in whole:
        for i, value in enumerate((0, 1, -1, 2**32, 2**63 - 1, 2**64, 1.5, "x" * 300, None, [])):
            c.write("tuning", f"{key}_{i}", json.dumps({**whole, key: value}))
    for n in range(1, len(text), 31):
        c.write("tuning", f"truncated_{n:03}", text[:n])


def command_lines(c):
    """Words for fuzz_options: a byte for the verb, then a line each."""
    sizes = ["1", "400MiB", "1.5GiB", "0", "-1", "1e3", "18446744073709551615", "18446744073709551616", "16384TiB",
             "0.999999999999999999TiB", "1.", ".5GB", "4KIB", "inf", "", " 1", "1 ", "0x10"]
    names = ["--ram", "--ring", "--block-size", "--iodepth", "--width", "--timestep", "--steps", "--lora", "--direct",
             "--inputs", "--seed", "--cfg-scale", "--io-timeout", "--layers", "--threads"]
    for verb in range(10):
        for name in names:
            for i, value in enumerate(sizes):
                if (i + verb) % 5 == 0:  # a fifth of each for each verb
                    words = f"{name}={value}" if i % 2 else f"{name}\n{value}"
                    c.write("options", f"{verb}{name}_{i}", bytes([verb]) + f"model\n{words}\n--json".encode())
    for i, words in enumerate(["--", "-", "--no-such", "--ramm=1", "--lora\nx:0.5\n--lora\nx", "--help", "--inputs",
                               "--inputs\na\n" * 40, "m\n" * 60, "--zero-cond-t\n--no-zero-cond-t", "--=", "-x=1"]):
        c.write("options", f"words_{i}", b"\0" + words.encode())


def main():
    folder = pathlib.Path(sys.argv[1])
    shutil.rmtree(folder, ignore_errors=True)
    corpus = Corpus(folder)
    valid_headers(corpus)
    hostile_lengths(corpus)
    hostile_text(corpus)
    hostile_entries(corpus)
    hostile_ranges(corpus)
    indices(corpus)
    configs(corpus)
    manifests(corpus)
    loras(corpus)
    states(corpus)
    tunings(corpus)
    command_lines(corpus)
    (folder / "verdicts.txt").write_text("".join(corpus.verdicts))
    pathlib.Path(sys.argv[2]).touch()
    os.utime(sys.argv[2])


if __name__ == "__main__":
    main()
