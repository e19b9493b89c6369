/* SPDX-License-Identifier: Apache-2.0 */
/* test_verify.c -- checksums: every flipped bit is found and named, every other difference too. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/common.h"
#include "engine/verify.h"
#include "scratch.h"

#undef XXH3_128bits /* libxxhash's own, whatever the CPU has */

enum { FLIPS = 1000, DAMAGES_MAX = 256 };

/* Few reads at a time, for each has a thread and a thousand runs follow. */
static const struct hr_verify_params small = {
    .stream = {.ring_bytes = 4 << 20, .depth = 2, .io = "pread"}};

/* What a verification found. */
static struct {
    struct hr_damage all[DAMAGES_MAX];
    char text[DAMAGES_MAX][256];
    char tensor[DAMAGES_MAX][64];
    int n;
} found;

static void keep_damage(void *user, const struct hr_damage *damage)
{
    (void) user;
    assert_true(found.n < DAMAGES_MAX);
    found.all[found.n] = *damage;
    snprintf(found.tensor[found.n], sizeof(found.tensor[0]), "%s",
             damage->tensor ? damage->tensor : "");
    hr_damage_text(damage, found.text[found.n], sizeof(found.text[0]));
    found.n++;
}

static struct hr_checkpoint *open_model(const char *path)
{
    struct hr_checkpoint *checkpoint = NULL;

    assert_works(hr_checkpoint_open(
        &checkpoint, &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1}, &err));
    return checkpoint;
}

static struct hr_manifest *make_manifest(const char *path)
{
    struct hr_checkpoint *checkpoint = open_model(path);
    struct hr_manifest *manifest = NULL;

    assert_works(hr_manifest_make(&manifest, checkpoint, &small, &err));
    hr_checkpoint_close(&checkpoint);
    return manifest;
}

/* @return what hr_checkpoint_open() or hr_verify() says */
static int verify(const char *path, const struct hr_manifest *manifest, struct hr_error *err)
{
    struct hr_checkpoint *checkpoint = NULL;
    int r = hr_checkpoint_open(&checkpoint,
                               &(struct hr_checkpoint_params){.paths = &path, .n_paths = 1}, err);

    found.n = 0;
    if (r == 0)
        r = hr_verify(checkpoint, manifest, &small, keep_damage, NULL, NULL, err);
    hr_checkpoint_close(&checkpoint);
    return r;
}

static void expect(const char *path, const struct hr_manifest *manifest, const char *const *lines,
                   int n)
{
    struct hr_error err = {0};
    const int r = verify(path, manifest, &err);

    if (r != n)
        fail_msg("%d instead of %d: %s", r, n, r < 0 ? err.message : found.text[0]);
    assert_int_equal(found.n, n);
    for (int i = 0; i < n; i++)
        if (!strstr(found.text[i], lines[i]))
            fail_msg("\"%s\" is not in: %s", lines[i], found.text[i]);
}

static void flip(const char *path, uint64_t bit)
{
    const int fd = open(path, O_RDWR);
    uint8_t byte;

    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t) (bit / 8)), 1);
    byte ^= (uint8_t) (1u << (bit % 8));
    assert_int_equal(pwrite(fd, &byte, 1, (off_t) (bit / 8)), 1);
    close(fd);
}

static void every_flipped_bit_is_found(void **state)
{
    const char *model = scratch("m.safetensors");
    const struct hr_synth_params synth = {
        .path = model, .n_layers = 1, .n_heads = 1, .joint_dim = 8};
    struct hr_manifest *manifest;
    uint64_t random = 88172645463325252u;
    unsigned n_parse = 0, n_header = 0, n_data = 0;
    struct stat st;

    (void) state;
    assert_works(hr_synth(&synth, &err));
    assert_int_equal(stat(model, &st), 0);
    manifest = make_manifest(model);
    expect(model, manifest, NULL, 0);
    for (int i = 0; i < FLIPS; i++) {
        struct hr_error err = {0};

        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        /* A quarter of them in the header, which is small. */
        const uint64_t n_bits = (i % 4 ? (uint64_t) st.st_size : 4096) * 8, bit = random % n_bits;

        flip(model, bit);
        const int r = verify(model, manifest, &err);
        flip(model, bit);
        if (r == 0)
            fail_msg("bit %llu was not found", (unsigned long long) bit);
        if (r < 0) {
            assert_non_null(strstr(err.message, "m.safetensors"));
            n_parse++;
        } else if (found.all[0].kind == HR_DAMAGE_HEADER) {
            n_header++;
        } else {
            assert_int_equal(r, 1);
            assert_int_equal(found.all[0].kind, HR_DAMAGE_TENSOR_DATA);
            assert_true(bit / 8 >= found.all[0].begin_bytes &&
                        bit / 8 < found.all[0].begin_bytes + found.all[0].size_bytes);
            n_data++;
        }
    }
    print_message("%d bits: %u refused with the header, %u in headers, %u in tensors\n", FLIPS,
                  n_parse, n_header, n_data);
    expect(model, manifest, NULL, 0);
    hr_manifest_close(&manifest);
}

static void each_difference_is_named(void **state)
{
    const char *dir = scratch("dir"), *a = scratch("dir/model-00001-of-00002.safetensors");
    const char *b = scratch("dir/model-00002-of-00002.safetensors"), *all = scratch("all");
    const char *index = "{\"weight_map\":{\"p\":\"model-00001-of-00002.safetensors\",\"q\":\"model-"
                        "00001-of-00002.safetensors\",\"r\":\"model-00002-of-00002.safetensors\"}}";
    struct hr_manifest *manifest;

    (void) state;
    scratch_folder(dir);
    scratch_weights(a, "p q");
    scratch_weights(b, "r");
    scratch_text(scratch("dir/model.safetensors.index.json"), index);
    manifest = make_manifest(dir);
    expect(dir, manifest, NULL, 0);
    assert_works(hr_manifest_write(manifest, all, &err));
    hr_manifest_close(&manifest);
    assert_works(hr_manifest_read(&manifest, all, &err));
    assert_int_equal(hr_manifest_n_tensors(manifest), 3);

    /* One shard as a model of its own. */
    expect(a, manifest,
           (const char *const[]){"model-00002-of-00002.safetensors: bytes 0 to ",
                                 "model-00002-of-00002.safetensors: tensor \"r\", bytes "},
           2);
    assert_int_equal(found.all[0].kind, HR_DAMAGE_FILE_MISSING);
    assert_int_equal(found.all[1].kind, HR_DAMAGE_TENSOR_MISSING);
    scratch_text(scratch("dir/config.json"), "{}");
    expect(dir, manifest, (const char *const[]){"config.json: not what"}, 1);
    assert_int_equal(unlink(scratch("dir/config.json")), 0);
    /* A shard replaced by another that has more, and one that a tensor has moved out of. */
    scratch_weights(b, "r s");
    expect(b, manifest,
           (const char *const[]){"another size", "the header has changed", "missing",
                                 "tensor \"s\", bytes ", "tensor \"p\", ", "tensor \"q\", "},
           6);
    hr_manifest_close(&manifest);
    /* Missing, and shrunk: said by the opening. */
    manifest = make_manifest(a);
    assert_int_equal(truncate(a, 40), 0);
    assert_fails(verify(dir, manifest, &err), -EBADMSG, "model-00001-of-00002.safetensors");
    assert_int_equal(unlink(a), 0);
    assert_fails(verify(dir, manifest, &err), -ENOENT, "model-00001-of-00002.safetensors");
    hr_manifest_close(&manifest);
}

static void types_and_models_are_compared(void **state)
{
    struct hr_synth_params synth = {
        .path = scratch("x.safetensors"), .n_layers = 1, .n_heads = 1, .joint_dim = 8};
    const char *other = scratch("other.safetensors");
    struct hr_manifest *manifest;
    struct hr_error why = {0};

    (void) state;
    assert_works(hr_synth(&synth, &err));
    manifest = make_manifest(synth.path);
    scratch_weights(other, "p q");
    assert_fails(verify(other, manifest, &err), -EINVAL, "of another model: none of the ");
    synth.dtype = HR_DTYPE_F16;
    synth.force = true;
    assert_works(hr_synth(&synth, &err));
    assert_true(verify(synth.path, manifest, &why) > 3);
    assert_int_equal(found.all[0].kind, HR_DAMAGE_FILE_SIZE);
    assert_non_null(strstr(found.text[0], ": another size: "));
    assert_int_equal(found.all[1].kind, HR_DAMAGE_HEADER);
    assert_int_equal(found.all[2].kind, HR_DAMAGE_TENSOR_TYPE);
    assert_non_null(strstr(found.text[2], ": F16 ["));
    assert_non_null(strstr(found.text[2], ", was BF16 ["));
    hr_manifest_close(&manifest);
}

static void a_file_without_tensors(void **state)
{
    const char *path = scratch("none.safetensors");
    struct hr_manifest *manifest;

    (void) state;
    scratch_weights(path, "");
    manifest = make_manifest(path);
    assert_int_equal(hr_manifest_n_tensors(manifest), 0);
    expect(path, manifest, NULL, 0);
    hr_manifest_close(&manifest);
}

static void bad_manifest_files(void **state)
{
    struct hr_manifest *manifest = NULL;

    (void) state;
    assert_fails(hr_manifest_read(&manifest, scratch("nowhere"), &err), -ENOENT, "nowhere");
    assert_fails(hr_manifest_read(&manifest, scratch("."), &err), -EINVAL, "is a folder");
    scratch_text(scratch("text"), "hello");
    assert_fails(hr_manifest_read(&manifest, scratch("text"), &err), -EBADMSG,
                 "; expected what headrace checksum writes");
    assert_int_equal(truncate(scratch("text"), 200000001), 0);
    assert_fails(hr_manifest_read(&manifest, scratch("text"), &err), -EBADMSG, "at most 200000000");
}

/* In pieces of any size, by whatever instructions, at any address. */
static void hashes_are_xxh3(void **state)
{
    static const uint64_t sizes[] = {1, 255, 256, 4097, 1, 65536, 200003};
    const struct hr_tensor tensor = {.size_bytes = 270149};
    struct hr_tensor_hash hash;
    struct hr_hash got = {0};
    static uint8_t data[270149 + 1];
    uint64_t done = 0;

    (void) state;
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t) (i * i >> 7);
    assert_works(hr_tensor_hash_init(&hash, &err));
    for (uint32_t at = 0; at < 2; at++, done = 0) {
        const XXH128_hash_t expected = XXH3_128bits(data + at, tensor.size_bytes);

        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++, done += sizes[i - 1]) {
            const struct hr_unit unit = {
                .tensor = &tensor, .data = data + at + done, .size_bytes = sizes[i]};

            assert_int_equal(hr_tensor_hash_add(&hash, &unit, &got),
                             done + sizes[i] == tensor.size_bytes);
        }
        assert_int_equal(done, tensor.size_bytes);
        assert_true(got.high == expected.high64 && got.low == expected.low64);
    }
    hr_tensor_hash_uninit(&hash);
}

static void cancelled_and_same_names(void **state)
{
    const char *paths[] = {scratch("one/m.safetensors"), scratch("two/m.safetensors")};
    volatile int cancel = 1;
    struct hr_verify_params params = small;
    struct hr_checkpoint *checkpoint = NULL;
    struct hr_manifest *manifest = NULL;

    (void) state;
    scratch_folder(scratch("one"));
    scratch_folder(scratch("two"));
    scratch_weights(paths[0], "p");
    scratch_weights(paths[1], "q");
    assert_works(hr_checkpoint_open(
        &checkpoint, &(struct hr_checkpoint_params){.paths = paths, .n_paths = 2}, &err));
    assert_fails(hr_manifest_make(&manifest, checkpoint, &small, &err), -EINVAL,
                 "two files of the model are called m.safetensors");
    hr_checkpoint_close(&checkpoint);
    checkpoint = open_model(paths[0]);
    params.cancel = &cancel;
    assert_fails(hr_manifest_make(&manifest, checkpoint, &params, &err), -ECANCELED, "interrupted");
    hr_checkpoint_close(&checkpoint);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_flipped_bit_is_found),
        cmocka_unit_test(each_difference_is_named),
        cmocka_unit_test(types_and_models_are_compared),
        cmocka_unit_test(a_file_without_tensors),
        cmocka_unit_test(bad_manifest_files),
        cmocka_unit_test(hashes_are_xxh3),
        cmocka_unit_test(cancelled_and_same_names),
    };

    return cmocka_run_group_tests_name("verify", tests, scratch_setup, scratch_teardown);
}
