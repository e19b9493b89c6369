/* SPDX-License-Identifier: Apache-2.0 */
/* arena.c -- memory in blocks that double in size, so that a small text costs little and a large
 * one few calls.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "common/common.h"
#include "formats/arena.h"

enum { BLOCK_BYTES_MIN = 4096, BLOCK_BYTES_MAX = 1 << 20 };

struct hr_arena_block {
    struct hr_arena_block *previous;
    size_t used;
    size_t bytes;
    max_align_t data[];
};

static struct hr_arena_block *block_add(struct hr_arena *arena, size_t bytes)
{
    size_t wanted = BLOCK_BYTES_MIN;
    struct hr_arena_block *block;

    if (arena->last)
        wanted = (size_t) hr_min_u64(2 * arena->last->bytes, BLOCK_BYTES_MAX);
    wanted = (size_t) hr_max_u64(wanted, bytes);
    block = malloc(sizeof(*block) + wanted);
    if (!block)
        return NULL;
    block->previous = arena->last;
    block->used = 0;
    block->bytes = wanted;
    arena->last = block;
    return block;
}

void *hr_arena_take(struct hr_arena *arena, size_t bytes)
{
    struct hr_arena_block *block = arena->last;
    void *taken;

    if (bytes > SIZE_MAX / 4)
        return NULL;
    bytes = (size_t) hr_align_up(bytes, _Alignof(max_align_t));
    if (!block || block->bytes - block->used < bytes)
        block = block_add(arena, bytes);
    if (!block)
        return NULL;
    taken = (char *) block->data + block->used;
    block->used += bytes;
    return taken;
}

char *hr_arena_strdup(struct hr_arena *arena, const char *text)
{
    const size_t bytes = strlen(text) + 1;
    char *copy = hr_arena_take(arena, bytes);

    return copy ? memcpy(copy, text, bytes) : NULL;
}

void *hr_array_grow(void *array, size_t n, size_t *n_max, size_t element_bytes)
{
    if (n < *n_max)
        return array;
    const size_t n_new = *n_max ? 2 * *n_max : 64;
    void *grown = realloc(array, n_new * element_bytes);

    if (grown)
        *n_max = n_new;
    return grown;
}

void hr_arena_uninit(struct hr_arena *arena)
{
    while (arena->last) {
        struct hr_arena_block *previous = arena->last->previous;

        free(arena->last);
        arena->last = previous;
    }
}
