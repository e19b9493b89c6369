/* SPDX-License-Identifier: Apache-2.0 */
/* arena.h -- many small things that live as long as one parsed text: taken one by one, freed at
 * once. What was taken never moves. And arrays of a length that shows while parsing. Internal to
 * formats/.
 */
#ifndef HR_FORMATS_ARENA_H
#define HR_FORMATS_ARENA_H

#include <stddef.h>

struct hr_arena_block;

/* All zero: empty, and nothing to free. */
struct hr_arena {
    struct hr_arena_block *last; /* the one being filled; earlier ones hang from it */
};

/* @return bytes aligned for any type, uninitialised; NULL without memory */
void *hr_arena_take(struct hr_arena *arena, size_t bytes);
/* @return a copy of text, or NULL without memory */
char *hr_arena_strdup(struct hr_arena *arena, const char *text);
void hr_arena_uninit(struct hr_arena *arena);

/* A plain array that grows, freed by free(): as it is while n < *n_max, else twice as long.
 * @return it, or NULL without memory, and it is as it was */
void *hr_array_grow(void *array, size_t n, size_t *n_max, size_t element_bytes);

#endif /* HR_FORMATS_ARENA_H */
