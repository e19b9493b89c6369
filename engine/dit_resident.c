/* SPDX-License-Identifier: Apache-2.0 */
/* dit_resident.c -- choice and store of the weights that stay in memory. */
#include "engine/dit_resident.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/states.h"
#include "formats/formats.h"

enum { PLACE_BYTES = 64, HUGE_BYTES = 2 << 20 };

/* What few values there are beside the matrices of the blocks is not worth a loss. */
static enum hr_dtype kept_dtype(const struct hr_resident_set *set, const struct hr_tensor *tensor)
{
    static const char blocks[] = "transformer_blocks.";
    const bool rounds = set->fp8 && tensor->rank == 2 && hr_dtype_bits(tensor->dtype) > 8 &&
                        strncmp(tensor->name, blocks, sizeof(blocks) - 1) == 0;

    return rounds ? HR_DTYPE_F8_E4M3 : tensor->dtype;
}

/* Bytes that a tensor takes of the store. */
static uint64_t store_bytes(const struct hr_resident_set *set, const struct hr_tensor *tensor)
{
    const uint64_t n = hr_shape_elements(tensor->shape, tensor->rank);

    return hr_align_up(n * hr_dtype_bytes(kept_dtype(set, tensor)), PLACE_BYTES);
}

static int by_tensor(const void *a, const void *b)
{
    const struct hr_tensor *x = ((const struct hr_resident *) a)->tensor;
    const struct hr_tensor *y = ((const struct hr_resident *) b)->tensor;

    return (x > y) - (x < y);
}

static void add(struct hr_resident_set *set, const struct hr_tensor *tensor)
{
    const struct hr_resident resident = {
        .tensor = tensor, .dtype = kept_dtype(set, tensor), .at = set->size_bytes};

    set->residents[set->n++] = resident;
    set->size_bytes += store_bytes(set, tensor);
    if (resident.dtype != tensor->dtype)
        set->rounded_bytes += store_bytes(set, tensor);
}

uint64_t hr_resident_bytes_always(const struct hr_tensor *const *tensors, uint32_t n,
                                  const uint8_t *keep)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; keep && i < n; i++)
        if (keep[i] == HR_KEEP_ALWAYS)
            bytes += hr_align_up(tensors[i]->size_bytes, PLACE_BYTES);
    return bytes;
}

/* Fill up to the budget from those that are `open`. */
static void spread(struct hr_resident_set *set, const struct hr_tensor *const *tensors, uint32_t n,
                   bool *open, uint64_t budget_bytes)
{
    const uint64_t room_bytes = budget_bytes - hr_min_u64(budget_bytes, set->size_bytes);
    uint64_t total_bytes = 0;
    double credit = 0.0;

    for (uint32_t i = 0; i < n; i++)
        if (open[i])
            total_bytes += store_bytes(set, tensors[i]);
    if (total_bytes == 0)
        return;
    /* Each tensor brings its share of the budget; whenever that has grown to a whole tensor, it is
     * taken: evenly spread, and never more than the budget. */
    const double share = hr_min_u64(room_bytes, total_bytes) / (double) total_bytes;

    for (uint32_t i = 0; i < n; i++) {
        const uint64_t bytes = store_bytes(set, tensors[i]);

        if (!open[i])
            continue;
        credit += share * (double) bytes;
        if (credit + 0.5 >= (double) bytes && set->size_bytes + bytes <= budget_bytes) {
            credit -= (double) bytes;
            open[i] = false;
            add(set, tensors[i]);
        }
    }
    /* What is left holds smaller ones. */
    for (uint32_t i = 0; i < n; i++)
        if (open[i] && set->size_bytes + store_bytes(set, tensors[i]) <= budget_bytes)
            add(set, tensors[i]);
}

int hr_resident_choose(struct hr_resident_set *set, const struct hr_tensor *const *tensors,
                       uint32_t n, const uint8_t *keep, uint64_t budget_bytes, bool fp8,
                       const struct hr_resident_set *elsewhere, struct hr_error *err)
{
    bool *open = calloc(n, sizeof(*open)); /* may be taken, and is not */

    hr_assert(!fp8 || !keep); /* a table says the dtypes itself */
    *set = (struct hr_resident_set){.residents = calloc(n, sizeof(*set->residents)), .fp8 = fp8};
    if (!open || !set->residents) {
        free(open);
        return hr_error_set(err, -ENOMEM, "no memory for a choice among %u tensors", n);
    }
    for (uint32_t i = 0; i < n; i++) {
        open[i] = (!keep || keep[i] == HR_KEEP_IF_ROOM) &&
                  (!elsewhere || !hr_resident_find(elsewhere, tensors[i]));
        if (keep && keep[i] == HR_KEEP_ALWAYS)
            add(set, tensors[i]);
    }
    spread(set, tensors, n, open, budget_bytes);
    free(open);
    qsort(set->residents, set->n, sizeof(*set->residents), by_tensor);
    return 0;
}

int hr_resident_take(struct hr_resident_set *set, struct hr_error *err)
{
    if (set->size_bytes == 0)
        return 0;
    /* The pages themselves come while the first pass fills them: clearing them now would keep the
     * disk waiting for seconds. Whether they can come is asked here. */
    const uint64_t available = hr_room_read("").room_bytes;

    if (set->size_bytes > available)
        return hr_error_set(
            err, -ENOMEM,
            "the memory limit leaves %llu MiB for resident weights, but the machine "
            "has only %llu MiB available; lower the limit",
            hr_mib(set->size_bytes), (unsigned long long) (available / HR_MIB));
    void *store =
        mmap(NULL, set->size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (store == MAP_FAILED)
        return hr_error_set(err, -ENOMEM,
                            "no memory for %llu MiB of resident weights; lower the memory limit",
                            hr_mib(set->size_bytes));
    if (set->size_bytes >= HUGE_BYTES)
        madvise(store, set->size_bytes, MADV_HUGEPAGE); /* fewer misses; no matter if refused */
    madvise(store, set->size_bytes, MADV_DONTFORK); /* fork() would copy pages that are pinned */
    set->store = store;
    return 0;
}

struct hr_resident *hr_resident_find(const struct hr_resident_set *set,
                                     const struct hr_tensor *tensor)
{
    const struct hr_resident key = {.tensor = tensor};

    return set->n ? bsearch(&key, set->residents, set->n, sizeof(key), by_tensor) : NULL;
}

/* Elements of a row of the outermost dimension. */
static uint64_t row_elements(const struct hr_resident *resident)
{
    return hr_shape_elements(resident->tensor->shape + 1, resident->tensor->rank - 1);
}

uint64_t hr_resident_row_bytes(const struct hr_resident *resident)
{
    return row_elements(resident) * hr_dtype_bytes(resident->dtype);
}

void *hr_resident_row(const struct hr_resident_set *set, const struct hr_resident *resident,
                      uint64_t row)
{
    return set->store + resident->at + row * hr_resident_row_bytes(resident);
}

/* n values of another dtype, through f32 a few at a time. */
static void cast(unsigned char *dst, enum hr_dtype to, const unsigned char *src, enum hr_dtype from,
                 uint64_t n)
{
    float values[1024];

    for (uint64_t i = 0; i < n; i += HR_ARRAY_SIZE(values)) {
        const size_t n_values = (size_t) hr_min_u64(n - i, HR_ARRAY_SIZE(values));

        hr_dtype_to_f32(values, src + i * hr_dtype_bytes(from), from, n_values);
        hr_dtype_from_f32(dst + i * hr_dtype_bytes(to), values, to, n_values);
    }
}

void hr_resident_keep(const struct hr_resident_set *set, struct hr_resident *resident,
                      const void *rows, uint64_t row_begin, uint64_t n_rows)
{
    void *dst = hr_resident_row(set, resident, row_begin);

    if (resident->dtype == resident->tensor->dtype)
        memcpy(dst, rows, n_rows * hr_resident_row_bytes(resident));
    else
        cast(dst, resident->dtype, rows, resident->tensor->dtype, n_rows * row_elements(resident));
    resident->loaded = row_begin + n_rows == resident->tensor->shape[0];
}

void hr_resident_uninit(struct hr_resident_set *set)
{
    if (set->store && !set->on_device)
        munmap(set->store, set->size_bytes);
    free(set->residents);
    *set = (struct hr_resident_set){0};
}
