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

static int fail(const struct hr_dit_verify *verify, const struct hr_tensor *tensor,
                struct hr_error *err)
{
    char name[SHOWN_BYTES];

    return hr_error_set(
        err, -EBADMSG,
        "%s: tensor \"%s\", bytes %llu to %llu: not the bytes that the manifest was made of; the "
        "file is damaged or was changed: headrace verify lists all differences",
        hr_checkpoint_shard_shown(verify->checkpoint, tensor->shard_idx),
        hr_printable(tensor->name, name, sizeof(name)), (unsigned long long) tensor->offset_bytes,
        (unsigned long long) (tensor->offset_bytes + tensor->size_bytes - 1));
}

/* ---- the thread --------------------------------------------------------------------------- */

static void compare(struct hr_dit_verify *verify, const struct hr_unit *unit, struct hr_error *err)
{
    const struct hr_tensor *tensor = unit->tensor;
    const uint64_t begin_ns = hr_now_ns();
    struct hr_hash hash;
    const bool last = hr_tensor_hash_add(&verify->hash, unit, &hash);

    atomic_fetch_add_explicit(&verify->bytes, unit->size_bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&verify->ns, hr_now_ns() - begin_ns, memory_order_relaxed);
    if (!last)
        return;
    if (hr_hash_equal(hash, hr_manifest_find(verify->manifest, tensor->name)->hash))
        verify->checked[tensor - hr_checkpoint_tensor(verify->checkpoint, 0)] = !verify->always;
    else
        fail(verify, tensor, err);
}

static void *thread_main(void *arg)
{
    struct hr_dit_verify *verify = arg;

    pthread_mutex_lock(&verify->lock);
    while (!verify->stop) {
        struct hr_error failure = {0};

        if (verify->n_done == verify->n_posted) {
            pthread_cond_wait(&verify->changed, &verify->lock);
            continue;
        }
        const struct hr_unit unit = verify->units[verify->n_done % HR_VERIFY_UNITS_MAX];

        pthread_mutex_unlock(&verify->lock);
        compare(verify, &unit, &failure);
        pthread_mutex_lock(&verify->lock);
        if (failure.code && !verify->failure.code)
            verify->failure = failure;
        verify->n_done++;
        pthread_cond_broadcast(&verify->changed);
    }
    pthread_mutex_unlock(&verify->lock);
    return NULL;
}

/* ---- interface ---------------------------------------------------------------------------- */

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
    return r;
}

int hr_dit_verify_start(struct hr_dit_verify *verify, struct hr_error *err)
{
    int r;

    verify->checked = calloc(hr_checkpoint_n_tensors(verify->checkpoint), sizeof(*verify->checked));
    if (!verify->checked)
        return hr_error_set(err, -ENOMEM, "no memory for checksums");
    r = hr_tensor_hash_init(&verify->hash, err);
    if (r < 0)
        return r;
    pthread_mutex_init(&verify->lock, NULL);
    pthread_cond_init(&verify->changed, NULL);
    r = hr_thread_start(&verify->thread, "hr-verify", 0, thread_main, verify);
    verify->is_started = r == 0;
    return r < 0 ? hr_error_set(err, r, "no thread for checksums") : 0;
}

void hr_dit_verify_uninit(struct hr_dit_verify *verify)
{
    if (verify->is_started) {
        pthread_mutex_lock(&verify->lock);
        verify->stop = true;
        pthread_cond_broadcast(&verify->changed);
        pthread_mutex_unlock(&verify->lock);
        pthread_join(verify->thread, NULL);
        pthread_cond_destroy(&verify->changed);
        pthread_mutex_destroy(&verify->lock);
    }
    hr_tensor_hash_uninit(&verify->hash);
    free(verify->checked);
    *verify = (struct hr_dit_verify){0};
}

/* With the lock held. */
static int failure(const struct hr_dit_verify *verify, struct hr_error *err)
{
    return verify->failure.code
               ? hr_error_set(err, verify->failure.code, "%s", verify->failure.message)
               : 0;
}

int hr_dit_verify_unit(struct hr_dit_verify *verify, const struct hr_unit *unit,
                       uint64_t *ret_ticket, struct hr_error *err)
{
    /* A tensor's flag is set after its last band, and read before that. */
    *ret_ticket = 0;
    if (verify->checked[unit->tensor - hr_checkpoint_tensor(verify->checkpoint, 0)])
        return 0;
    pthread_mutex_lock(&verify->lock);
    const int r = failure(verify, err);

    if (r == 0) {
        hr_assert(verify->n_posted - verify->n_done < HR_VERIFY_UNITS_MAX);
        verify->units[verify->n_posted++ % HR_VERIFY_UNITS_MAX] = *unit;
        *ret_ticket = verify->n_posted;
        pthread_cond_broadcast(&verify->changed);
    }
    pthread_mutex_unlock(&verify->lock);
    return r;
}

bool hr_dit_verify_is_done(struct hr_dit_verify *verify, uint64_t ticket, bool wait)
{
    pthread_mutex_lock(&verify->lock);
    while (wait && verify->n_done < ticket)
        pthread_cond_wait(&verify->changed, &verify->lock);
    const bool is_done = verify->n_done >= ticket;
    pthread_mutex_unlock(&verify->lock);
    return is_done;
}

int hr_dit_verify_end(struct hr_dit_verify *verify, struct hr_error *err)
{
    if (!verify->is_started)
        return 0;
    pthread_mutex_lock(&verify->lock);
    while (verify->n_done < verify->n_posted)
        pthread_cond_wait(&verify->changed, &verify->lock);
    const int r = failure(verify, err);
    pthread_mutex_unlock(&verify->lock);
    return r;
}
