/* SPDX-License-Identifier: Apache-2.0 */
/* dit_verify.c -- see dit_verify.h. */
#include "engine/dit_verify.h"

#include <errno.h>
#include <stdlib.h>

#include "engine/checkpoint.h"

enum { SHOWN_BYTES = 256 };

struct first_damage {
    char text[512];
    bool found;
};

static void keep_first(void *user, const struct hr_damage *damage)
{
    struct first_damage *first = user;

    if (!first->found)
        hr_damage_text(damage, first->text, sizeof(first->text));
    first->found = true;
}

static int check_files(const struct hr_dit_verify *verify, struct hr_error *err)
{
    struct first_damage first = {.found = false};
    const int r = hr_verify_files(verify->checkpoint, verify->manifest, keep_first, &first, err);

    if (r <= 0)
        return r;
    return hr_error_set(err, -EBADMSG,
                        "%s is not as its manifest says: %s; headrace verify lists all differences",
                        hr_checkpoint_path(verify->checkpoint), first.text);
}

static int check_listed(const struct hr_dit_verify *verify, const struct hr_tensor *tensor,
                        struct hr_error *err)
{
    const struct hr_manifest_tensor *listed = hr_manifest_find(verify->manifest, tensor->name);
    char name[SHOWN_BYTES];

    if (listed && hr_manifest_agrees(listed, tensor))
        return 0;
    return hr_error_set(err, -EBADMSG, "%s: tensor \"%s\" is %s the manifest; make a new one",
                        hr_checkpoint_path(verify->checkpoint),
                        hr_printable(tensor->name, name, sizeof(name)),
                        listed ? "of another type than in" : "not in");
}

int hr_dit_verify_init(struct hr_dit_verify *verify, const struct hr_checkpoint *checkpoint,
                       const struct hr_manifest *manifest, bool always,
                       const struct hr_tensor *const *plan, uint32_t n_plan, struct hr_error *err)
{
    int r;

    *verify =
        (struct hr_dit_verify){.checkpoint = checkpoint, .manifest = manifest, .always = always};
    r = check_files(verify, err);
    for (uint32_t i = 0; i < n_plan && r == 0; i++)
        r = check_listed(verify, plan[i], err);
    if (r < 0)
        return r;
    verify->checked = calloc(hr_checkpoint_n_tensors(checkpoint), sizeof(*verify->checked));
    if (!verify->checked)
        return hr_error_set(err, -ENOMEM, "no memory for checksums");
    return hr_tensor_hash_init(&verify->hash, err);
}

void hr_dit_verify_uninit(struct hr_dit_verify *verify)
{
    hr_tensor_hash_uninit(&verify->hash);
    free(verify->checked);
    *verify = (struct hr_dit_verify){0};
}

static int fail(const struct hr_dit_verify *verify, const struct hr_tensor *tensor,
                struct hr_error *err)
{
    char path[SHOWN_BYTES], name[SHOWN_BYTES];

    return hr_error_set(
        err, -EBADMSG,
        "%s: tensor \"%s\", bytes %llu to %llu: not the bytes that the manifest was made of; the "
        "file is damaged or was changed: headrace verify lists all differences",
        hr_printable(hr_checkpoint_shard(verify->checkpoint, tensor->shard_idx)->path, path,
                     sizeof(path)),
        hr_printable(tensor->name, name, sizeof(name)), (unsigned long long) tensor->offset_bytes,
        (unsigned long long) (tensor->offset_bytes + tensor->size_bytes - 1));
}

int hr_dit_verify_unit(struct hr_dit_verify *verify, const struct hr_unit *unit,
                       struct hr_error *err)
{
    const struct hr_tensor *tensor = unit->tensor;
    uint8_t *checked = &verify->checked[tensor - hr_checkpoint_tensor(verify->checkpoint, 0)];
    const uint64_t begin_ns = hr_now_ns();
    struct hr_hash hash;

    if (*checked)
        return 0;
    const bool last = hr_tensor_hash_add(&verify->hash, unit, &hash);

    verify->bytes += unit->size_bytes;
    verify->ns += hr_now_ns() - begin_ns;
    if (!last)
        return 0;
    if (!hr_hash_equal(hash, hr_manifest_find(verify->manifest, tensor->name)->hash))
        return fail(verify, tensor, err);
    *checked = !verify->always;
    return 0;
}
