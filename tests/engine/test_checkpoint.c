/* SPDX-License-Identifier: Apache-2.0 */
/* test_checkpoint.c -- models as users have them, and as strangers make them. */
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

#include "engine/checkpoint.h"
#include "scratch.h"

static int open_cached(struct hr_checkpoint **checkpoint, const char *path, const char *cache_dir,
                       struct hr_error *err)
{
    const struct hr_checkpoint_params params = {&path, 1, cache_dir};

    return hr_checkpoint_open(checkpoint, &params, err);
}

static int open_one(struct hr_checkpoint **checkpoint, const char *path, struct hr_error *err)
{
    return open_cached(checkpoint, path, NULL, err);
}

/* Names of all tensors with spaces between them. */
static void assert_names(const char *path, const char *want)
{
    struct hr_checkpoint *checkpoint;
    char names[1024] = "";

    assert_works(open_one(&checkpoint, path, &err));
    for (uint32_t i = 0; i < hr_checkpoint_n_tensors(checkpoint); i++) {
        strcat(names, i ? " " : "");
        strcat(names, hr_checkpoint_tensor(checkpoint, i)->name);
        assert_ptr_equal(hr_checkpoint_find(checkpoint, hr_checkpoint_tensor(checkpoint, i)->name),
                         hr_checkpoint_tensor(checkpoint, i));
    }
    assert_string_equal(names, want);
    hr_checkpoint_close(&checkpoint);
}

#define assert_refused(path, code, text)                       \
    do {                                                       \
        struct hr_checkpoint *none = NULL;                     \
                                                               \
        assert_fails(open_one(&none, path, &err), code, text); \
        assert_null(none);                                     \
    } while (0)

/* m/: shards 1 (b, d) and 2 (a, c) with their index */
static void make_indexed(void)
{
    scratch_folder(scratch("m"));
    scratch_weights(scratch("m/w-1.safetensors"), "d b");
    scratch_weights(scratch("m/w-2.safetensors"), "a c");
    scratch_text(scratch("m/model.safetensors.index.json"),
                 "{\"weight_map\":{\"a\":\"w-2.safetensors\",\"b\":\"w-1.safetensors\","
                 "\"c\":\"w-2.safetensors\",\"d\":\"w-1.safetensors\"}}");
}

/* ---- forms of a model --------------------------------------------------------------- */

static void test_indexed_folder(void **state)
{
    struct hr_checkpoint *checkpoint;
    const struct hr_tensor *tensor;
    struct hr_config config;
    float values[2];

    (void) state;
    make_indexed();
    scratch_text(scratch("m/config.json"), "{\"num_layers\": 7, \"zero_cond_t\": true}");
    assert_names(scratch("m"), "a b c d");
    assert_names(scratch("m/"), "a b c d");
    assert_names(scratch("m/model.safetensors.index.json"), "a b c d");

    assert_works(open_one(&checkpoint, scratch("m"), &err));
    assert_int_equal(hr_checkpoint_n_shards(checkpoint), 2);
    assert_string_equal(hr_checkpoint_shard(checkpoint, 1)->path, scratch("m/w-2.safetensors"));
    assert_int_equal(hr_checkpoint_shard(checkpoint, 1)->n_tensors, 2);
    assert_null(hr_checkpoint_shard(checkpoint, 2));
    assert_null(hr_checkpoint_tensor(checkpoint, 4));
    assert_null(hr_checkpoint_find(checkpoint, "bb"));
    assert_true(fcntl(hr_checkpoint_fd(checkpoint, 0), F_GETFD) & FD_CLOEXEC);
    assert_false(fcntl(hr_checkpoint_fd(checkpoint, 0), F_GETFL) & O_NONBLOCK);
    tensor = hr_checkpoint_find(checkpoint, "c");
    assert_int_equal(tensor->shard_idx, 1);
    assert_int_equal(tensor->size_bytes, 8);
    assert_works(hr_checkpoint_read_f32(checkpoint, tensor, values, 2, &err));
    assert_true(values[0] == 1 && values[1] == -1);

    assert_string_equal(hr_checkpoint_path(checkpoint), scratch("m"));
    assert_non_null(strstr(hr_checkpoint_config(checkpoint), "zero_cond_t"));
    assert_works(hr_checkpoint_get_config(checkpoint, &config, &err));
    assert_int_equal(config.num_layers, 7);
    assert_true(config.zero_cond_t);
    hr_checkpoint_close(&checkpoint);
    assert_null(checkpoint);
    hr_checkpoint_close(&checkpoint);
}

static void test_single_file(void **state)
{
    struct hr_checkpoint *checkpoint;
    struct hr_config config;

    (void) state;
    scratch_weights(scratch("one.safetensors"), "b a __index_timestep_zero__");
    assert_names(scratch("one.safetensors"), "__index_timestep_zero__ a b");
    assert_works(open_one(&checkpoint, scratch("one.safetensors"), &err));
    assert_null(hr_checkpoint_config(checkpoint));
    assert_works(hr_checkpoint_get_config(checkpoint, &config, &err));
    assert_int_equal(config.num_layers, 0);
    assert_true(hr_checkpoint_has_zero_cond_marker(checkpoint));
    hr_checkpoint_close(&checkpoint);

    scratch_text(scratch("config.json"), "{\"num_layers\": 3}");
    assert_works(open_one(&checkpoint, scratch("one.safetensors"), &err));
    assert_string_equal(hr_checkpoint_config(checkpoint), "{\"num_layers\": 3}");
    hr_checkpoint_close(&checkpoint);
    assert_names(scratch("%s", ""), "__index_timestep_zero__ a b");

    /* A file without tensors is a file. */
    scratch_weights(scratch("none.safetensors"), "");
    assert_names(scratch("none.safetensors"), "");
}

static void test_several_paths(void **state)
{
    struct hr_checkpoint *checkpoint = NULL;

    (void) state;
    scratch_weights(scratch("x.safetensors"), "b d");
    scratch_weights(scratch("y.safetensors"), "a c");
    scratch_weights(scratch("z.safetensors"), "c e");
    const char *paths[] = {scratch("x.safetensors"), scratch("y.safetensors"),
                           scratch("z.safetensors")};
    const struct hr_checkpoint_params two = {paths, 2, NULL}, three = {paths, 3, NULL};

    assert_works(hr_checkpoint_open(&checkpoint, &two, &err));
    assert_int_equal(hr_checkpoint_n_tensors(checkpoint), 4);
    assert_int_equal(hr_checkpoint_find(checkpoint, "a")->shard_idx, 1);
    hr_checkpoint_close(&checkpoint);
    assert_fails(hr_checkpoint_open(&checkpoint, &three, &err), -EBADMSG, "\"c\" is also in");
    paths[1] = scratch("%s", "");
    assert_fails(hr_checkpoint_open(&checkpoint, &two, &err), -EINVAL, "is a folder");
    paths[1] = "";
    assert_fails(hr_checkpoint_open(&checkpoint, &two, &err), -EINVAL, "path 2 of 2 is empty");

    const struct hr_checkpoint_params none = {0};

    assert_fails(hr_checkpoint_open(&checkpoint, &none, &err), -EINVAL, "no model is named");
    assert_null(checkpoint);
}

static void test_parts_without_index(void **state)
{
    (void) state;
    scratch_folder(scratch("m"));
    scratch_weights(scratch("m/q-00001-of-00003.safetensors"), "c");
    scratch_weights(scratch("m/q-00003-of-00003.safetensors"), "a");
    assert_refused(scratch("m"), -ENOENT,
                   "q-00002-of-00003.safetensors is missing (2 of 3 files are here");
    scratch_weights(scratch("m/q-00002-of-00003.safetensors"), "b");
    scratch_text(scratch("m/._q-00002-of-00003.safetensors"), "hidden");
    assert_names(scratch("m"), "a b c");
    scratch_weights(scratch("m/q-00002-of-00003.safetensors"), "b a");
    assert_refused(scratch("m"), -EBADMSG, "\"a\" is also in");
    scratch_weights(scratch("m/other.safetensors"), "x");
    assert_refused(scratch("m"), -EINVAL,
                   "(other.safetensors, q-00001-of-00003.safetensors, "
                   "q-00002-of-00003.safetensors, q-00003-of-00003.safetensors)");
    scratch_weights(scratch("m/more.safetensors"), "x");
    assert_refused(scratch("m"), -EINVAL, " and 1 more)");

    scratch_folder(scratch("last"));
    scratch_weights(scratch("last/q-00002-of-00002.safetensors"), "c");
    assert_refused(scratch("last"), -ENOENT, "q-00001-of-00002.safetensors is missing");
}

static void test_folder_without_model(void **state)
{
    (void) state;
    assert_refused(scratch("none"), -ENOENT, "none: cannot open");
    assert_refused(scratch("%s", ""), -ENOENT, "no .safetensors file here");
    make_indexed();
    scratch_text(scratch("m/other.safetensors.index.json"), "{}");
    assert_refused(scratch("m"), -EINVAL,
                   "2 index files (model.safetensors.index.json, other.safetensors.index.json)");
    assert_names(scratch("m/model.safetensors.index.json"), "a b c d");
    assert_refused(scratch("m/x.safetensors.index.json"), -ENOENT, "x.safetensors.index.json");
}

static void test_pipeline_folder(void **state)
{
    (void) state;
    scratch_folder(scratch("p"));
    scratch_folder(scratch("p/transformer"));
    assert_refused(scratch("p"), -ENOENT, "p/transformer: no .safetensors file here");
    scratch_weights(scratch("p/transformer/t.safetensors"), "t");
    scratch_log();
    assert_names(scratch("p"), "t");
    assert_non_null(strstr(scratch_log(), "the model is in its transformer/"));
    /* What lies on top is the model, unless model_index.json says that this is a pipeline. */
    scratch_weights(scratch("p/top.safetensors"), "top");
    assert_names(scratch("p"), "top");
    scratch_text(scratch("p/model_index.json"), "{}");
    assert_names(scratch("p"), "t");
    /* Links may lead anywhere in the folder that was named. */
    assert_int_equal(unlink(scratch("p/transformer/t.safetensors")), 0);
    assert_int_equal(symlink("../top.safetensors", scratch("p/transformer/t.safetensors")), 0);
    assert_names(scratch("p"), "top");
    assert_refused(scratch("p/transformer"), -EACCES, "t.safetensors: links to ");

    scratch_folder(scratch("evil"));
    assert_int_equal(symlink("../p/transformer", scratch("evil/transformer")), 0);
    assert_refused(scratch("evil"), -EACCES, "evil/transformer: links to ");
}

/* ---- index and shards that disagree ------------------------------------------------- */

static void test_index_and_shards(void **state)
{
    (void) state;
    make_indexed();
    /* Unlisted tensors and files are ignored, */
    scratch_weights(scratch("m/w-2.safetensors"), "a c extra");
    scratch_weights(scratch("m/unlisted.safetensors"), "a");
    assert_names(scratch("m"), "a b c d");
    /* unless a listed tensor is in a second shard. */
    scratch_weights(scratch("m/w-2.safetensors"), "a c b");
    assert_refused(scratch("m"), -EBADMSG, "w-2.safetensors: tensor \"b\" is here, but the index");
    scratch_weights(scratch("m/w-2.safetensors"), "a");
    assert_refused(scratch("m"), -EBADMSG, "1 of its 4 tensors missing from their shards (\"c\"; ");
    scratch_weights(scratch("m/w-2.safetensors"), "");
    scratch_weights(scratch("m/w-1.safetensors"), "");
    assert_refused(scratch("m"), -EBADMSG, "4 of its 4 tensors missing from their shards (\"a\", ");
    assert_int_equal(unlink(scratch("m/w-1.safetensors")), 0);
    assert_refused(scratch("m"), -ENOENT,
                   "w-1.safetensors: no such file, but the index lists it for 2 tensors");
}

static void test_hostile_index(void **state)
{
    const char *index = "{\"weight_map\":{\"a\":\"../x.safetensors\"}}";
    int fd;

    (void) state;
    scratch_folder(scratch("m"));
    scratch_weights(scratch("x.safetensors"), "a");
    scratch_text(scratch("m/model.safetensors.index.json"), index);
    assert_refused(scratch("m"), -EBADMSG, "model.safetensors.index.json: ");
    scratch_text(scratch("m/model.safetensors.index.json"), "nonsense");
    assert_refused(scratch("m"), -EBADMSG, "model.safetensors.index.json: ");
    fd = open(scratch("m/model.safetensors.index.json"), O_WRONLY);
    assert_int_equal(ftruncate(fd, (64 << 20) + 1), 0);
    close(fd);
    assert_refused(scratch("m"), -EBADMSG, "more than the 64 MiB");
}

static void test_damaged_shards(void **state)
{
    (void) state;
    make_indexed();
    assert_int_equal(truncate(scratch("m/w-2.safetensors"), 150), 0);
    assert_refused(scratch("m"), -EBADMSG, "w-2.safetensors: ");
    assert_int_equal(truncate(scratch("m/w-2.safetensors"), 20), 0);
    assert_refused(scratch("m"), -EBADMSG, "w-2.safetensors: ");
    assert_int_equal(truncate(scratch("m/w-2.safetensors"), 0), 0);
    assert_refused(scratch("m"), -EBADMSG, "w-2.safetensors: ");
    scratch_text(scratch("m/w-2.safetensors"), "nonsense nonsense");
    assert_refused(scratch("m"), -EBADMSG, "w-2.safetensors: ");
}

/* ---- what is no regular file, or elsewhere ------------------------------------------ */

static void test_special_files(void **state)
{
    (void) state;
    alarm(20); /* a FIFO must not be waited for */
    assert_int_equal(mkfifo(scratch("f.safetensors"), 0666), 0);
    assert_refused(scratch("f.safetensors"), -EINVAL, "is a FIFO");
    assert_refused("/dev/zero", -EINVAL, "is a device");
    make_indexed();
    assert_int_equal(unlink(scratch("m/w-1.safetensors")), 0);
    assert_int_equal(mkfifo(scratch("m/w-1.safetensors"), 0666), 0);
    assert_refused(scratch("m"), -EINVAL, "w-1.safetensors: is a FIFO, not a file");
    assert_int_equal(unlink(scratch("m/w-1.safetensors")), 0);
    scratch_folder(scratch("m/w-1.safetensors"));
    assert_refused(scratch("m"), -EINVAL, "w-1.safetensors: is a folder, not a file");
    assert_int_equal(rmdir(scratch("m/w-1.safetensors")), 0);
    scratch_weights(scratch("m/w-1.safetensors"), "b d");
    assert_int_equal(mkfifo(scratch("m/config.json"), 0666), 0);
    assert_refused(scratch("m"), -EINVAL, "config.json: is a FIFO, not a file");
    alarm(0);
}

/* The layout of the Hugging Face cache: a snapshot's files are links to blobs. */
static void test_links(void **state)
{
    struct hr_checkpoint *checkpoint = NULL;

    (void) state;
    scratch_folder(scratch("home"));
    scratch_folder(scratch("home/hub"));
    scratch_folder(scratch("home/hub/blobs"));
    scratch_folder(scratch("home/hub/snapshot"));
    scratch_weights(scratch("home/hub/blobs/123"), "a");
    const char *snapshot = scratch("home/hub/snapshot");
    const char *link = scratch("home/hub/snapshot/m.safetensors");

    assert_int_equal(symlink("../blobs/123", link), 0);
    assert_refused(snapshot, -EACCES, "set HF_HUB_CACHE to a folder that holds it");
    assert_fails(open_cached(&checkpoint, snapshot, snapshot, &err), -EACCES, "links to ");
    assert_works(open_cached(&checkpoint, snapshot, scratch("home/hub"), &err));
    hr_checkpoint_close(&checkpoint);
    assert_names(link, "a"); /* named by the user himself */

    setenv("HF_HUB_CACHE", scratch("home/hub"), 1);
    assert_names(snapshot, "a");
    setenv("HF_HUB_CACHE", scratch("home/h"), 1); /* no prefix of a name */
    scratch_folder(scratch("home/h"));
    assert_refused(snapshot, -EACCES, "links to ");
    unsetenv("HF_HUB_CACHE");
    setenv("HF_HOME", scratch("home"), 1);
    assert_names(snapshot, "a");
    unsetenv("HF_HOME");
    scratch_folder(scratch("home/.cache"));
    scratch_folder(scratch("home/.cache/huggingface"));
    assert_int_equal(symlink("../../hub", scratch("home/.cache/huggingface/hub")), 0);
    setenv("HOME", scratch("home"), 1);
    assert_names(snapshot, "a");
    unsetenv("HOME");

    assert_int_equal(unlink(scratch("home/hub/blobs/123")), 0);
    assert_refused(snapshot, -ENOENT, "links to ../blobs/123, which cannot be reached");
    assert_int_equal(unlink(link), 0);
    scratch_weights(scratch("home/hub/snapshot/real"), "r");
    assert_int_equal(symlink("real", link), 0);
    assert_names(snapshot, "r");
    scratch_text(scratch("secret"), "{}");
    assert_int_equal(symlink("../../../secret", scratch("home/hub/snapshot/config.json")), 0);
    assert_refused(snapshot, -EACCES, "config.json: links to ");
}

/* ---- prefixes ----------------------------------------------------------------------- */

static void test_prefixes(void **state)
{
    const char *path = scratch("p.safetensors");

    (void) state;
    scratch_weights(path, "diffusion_model.b diffusion_model.a scaled_fp8");
    assert_names(path, "a b scaled_fp8");
    scratch_weights(path, "transformer.z transformer.a __index_timestep_zero__");
    assert_names(path, "__index_timestep_zero__ a z");
    scratch_weights(path, "model.diffusion_model.b model.diffusion_model.__index_timestep_zero__");
    assert_names(path, "__index_timestep_zero__ b");
    scratch_log();
    scratch_weights(path, "model.diffusion_model.b first_stage_model.a scaled_fp8 vae.x");
    assert_names(path, "b scaled_fp8");
    assert_non_null(strstr(scratch_log(), "the model is the 2 tensors under model.diffusion_model."
                                          "; 2 others are ignored"));
    /* Not all of them: names stay as they are. */
    scratch_weights(path, "transformer.a diffusion_model.b c");
    assert_names(path, "c diffusion_model.b transformer.a");
    scratch_weights(path, "scaled_fp8");
    assert_names(path, "scaled_fp8");
    scratch_weights(path, "diffusion_model.scaled_fp8 scaled_fp8");
    assert_refused(
        path, -EBADMSG,
        "two tensors are called \"scaled_fp8\" once their prefix is gone; the file holds "
        "two models, keep one of them");
}

/* ---- config and values -------------------------------------------------------------- */

static void test_config(void **state)
{
    struct hr_checkpoint *checkpoint;
    struct hr_config config;

    (void) state;
    scratch_weights(scratch("a.safetensors"), "a");
    scratch_text(scratch("config.json"), "{\n\"num_layers\": 3,,}");
    assert_refused(scratch("a.safetensors"), -EBADMSG, "config.json: malformed JSON at byte 19");
    /* Another model can be listed and streamed; only the DiT minds. */
    scratch_text(scratch("config.json"), "{\"_class_name\": \"FluxTransformer2DModel\"}");
    assert_works(open_one(&checkpoint, scratch("a.safetensors"), &err));
    assert_fails(hr_checkpoint_get_config(checkpoint, &config, &err), -EOPNOTSUPP, "config.json: ");
    hr_checkpoint_close(&checkpoint);
}

/* Names of files come from strangers, too. */
static void test_printable(void **state)
{
    const char *const no_such[] = {"x"};
    struct hr_checkpoint *checkpoint;
    struct hr_stream *stream = NULL;
    uint32_t joint_dim;

    (void) state;
    scratch_weights(scratch("\x1b[2J.safetensors"), "img_in.weight txt_norm.weight");
    assert_works(open_one(&checkpoint, scratch("%s", ""), &err));
    assert_string_equal(strrchr(hr_checkpoint_shard_shown(checkpoint, 0), '/'),
                        "/\\x1b[2J.safetensors");
    assert_fails(hr_dit_joint_dim(checkpoint, &joint_dim, &err), -EBADMSG,
                 "/\\x1b[2J.safetensors: tensor img_in.weight has the shape [2]; expected [width, "
                 "64], width a multiple of 128 up to 131072");
    assert_works(hr_stream_open(&stream, checkpoint, NULL, &err));
    assert_fails(hr_stream_plan(stream, no_such, 1, 0, 1, &err), -ENOENT,
                 "no tensor is called \"x\"; headrace inspect lists the names");
    hr_stream_close(&stream);
    hr_checkpoint_close(&checkpoint);
}

static void test_read_errors(void **state)
{
    static const char integers[] = "8\0\0\0\0\0\0\0{\"i\":{\"dtype\":\"I64\",\"shape\":[],\"data_"
                                   "offsets\":[0,8]}}   12345678";
    struct hr_checkpoint *checkpoint;
    struct hr_tensor other = {.name = "x", .dtype = HR_DTYPE_F32, .shard_idx = 9};
    float values[2];
    FILE *file = fopen(scratch("i.safetensors"), "wb");

    (void) state;
    fwrite(integers, 1, sizeof(integers) - 1, file);
    fclose(file);
    assert_works(open_one(&checkpoint, scratch("i.safetensors"), &err));
    assert_fails(
        hr_checkpoint_read_f32(checkpoint, hr_checkpoint_find(checkpoint, "i"), values, 1, &err),
        -EOPNOTSUPP, "tensor \"i\" is I64");
    hr_checkpoint_close(&checkpoint);

    scratch_weights(scratch("a.safetensors"), "a b");
    assert_works(open_one(&checkpoint, scratch("a.safetensors"), &err));
    const struct hr_tensor *tensor = hr_checkpoint_find(checkpoint, "b");

    assert_fails(hr_checkpoint_read_f32(checkpoint, tensor, values, 3, &err), -EINVAL,
                 "has 2 elements, not 3");
    assert_fails(hr_checkpoint_read_f32(checkpoint, &other, values, 1, &err), -EINVAL,
                 "another checkpoint's");
    assert_int_equal(truncate(scratch("a.safetensors"), (off_t) tensor->offset_bytes + 4), 0);
    assert_fails(hr_checkpoint_read_f32(checkpoint, tensor, values, 2, &err), -EIO,
                 "a.safetensors: the file has shrunk: tensor \"b\"");
    hr_checkpoint_close(&checkpoint);
}

int main(void)
{
    static const char *const variables[] = {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"};
#define scratch_test(f) cmocka_unit_test_setup_teardown(f, scratch_setup, scratch_teardown)
    const struct CMUnitTest tests[] = {
        scratch_test(test_indexed_folder),
        scratch_test(test_single_file),
        scratch_test(test_several_paths),
        scratch_test(test_parts_without_index),
        scratch_test(test_folder_without_model),
        scratch_test(test_pipeline_folder),
        scratch_test(test_index_and_shards),
        scratch_test(test_hostile_index),
        scratch_test(test_damaged_shards),
        scratch_test(test_special_files),
        scratch_test(test_links),
        scratch_test(test_prefixes),
        scratch_test(test_config),
        scratch_test(test_printable),
        scratch_test(test_read_errors),
    };

    for (size_t i = 0; i < HR_ARRAY_SIZE(variables); i++)
        unsetenv(variables[i]);
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}
