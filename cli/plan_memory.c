/* SPDX-License-Identifier: Apache-2.0 */
/* plan_memory.c -- the map of the memory that a run's buffers would take. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"

static const char *const kinds[] = {"activations", "scales", "lora", "weights", "device"};

void cli_map_add(void *user, const struct hr_memory_part *part)
{
    struct cli_map *map = user;

    if (map->n == map->n_room) {
        const uint32_t n_room = map->n_room ? 2 * map->n_room : 64;
        struct cli_map_part *parts = realloc(map->parts, n_room * sizeof(*parts));

        map->failed = map->failed || !parts;
        if (!parts)
            return;
        map->parts = parts;
        map->n_room = n_room;
    }
    struct cli_map_part *copy = &map->parts[map->n++];

    *copy = (struct cli_map_part){
        .is = *part,
        .name = strdup(part->name),
        .overlies = part->overlies ? strdup(part->overlies) : NULL,
    };
    copy->is.name = copy->name;
    copy->is.overlies = copy->overlies;
    map->failed = map->failed || !copy->name || (part->overlies && !copy->overlies);
}

void cli_map_free(struct cli_map *map)
{
    for (uint32_t i = 0; i < map->n; i++) {
        free(map->parts[i].name);
        free(map->parts[i].overlies);
    }
    free(map->parts);
    *map = (struct cli_map){.n = 0};
}

json_t *cli_map_json(const struct cli_map *map)
{
    json_t *array = json_array();

    for (uint32_t i = 0; i < map->n; i++) {
        const struct hr_memory_part *part = &map->parts[i].is;
        json_t *shape = json_array();

        for (uint32_t k = 0; k < part->rank; k++)
            json_array_append_new(shape, json_integer((json_int_t) part->shape[k]));
        json_array_append_new(
            array, json_pack("{s:o, s:s, s:o, s:o, s:s, s:o, s:o, s:I}", "name",
                             cli_json_text(part->name), "kind", kinds[part->kind], "sample",
                             part->sample_idx < 0 ? json_null() : json_integer(part->sample_idx),
                             "overlies", cli_json_text(part->overlies), "dtype",
                             hr_dtype_name(part->dtype), "shape", shape, "offset_bytes",
                             part->offset_bytes == UINT64_MAX
                                 ? json_null()
                                 : json_integer((json_int_t) part->offset_bytes),
                             "bytes", (json_int_t) part->size_bytes));
    }
    return array;
}

/* What is taken for buffers of a kind, and how many they are. */
static uint64_t sum_of(const struct cli_map *map, enum hr_memory_kind kind, uint32_t *ret_n)
{
    uint64_t bytes = 0;

    *ret_n = 0;
    for (uint32_t i = 0; i < map->n; i++)
        if (map->parts[i].is.kind == kind && !map->parts[i].is.overlies) {
            bytes += map->parts[i].is.size_bytes;
            ++*ret_n;
        }
    return bytes;
}

static bool is_alike(const struct hr_memory_part *a, const struct hr_memory_part *b)
{
    return strcmp(a->name, b->name) == 0 && a->kind == b->kind && a->dtype == b->dtype &&
           a->rank == b->rank && memcmp(a->shape, b->shape, a->rank * sizeof(a->shape[0])) == 0;
}

/* The same buffer of several inputs is one row, at the first of them. */
static void print_part(const struct cli_map *map, uint32_t idx)
{
    const struct hr_memory_part *part = &map->parts[idx].is;
    char size[32], shape[80] = "", times[16] = "";
    uint32_t n = 0;

    for (uint32_t i = 0; i < map->n; i++) {
        n += is_alike(part, &map->parts[i].is);
        if (i < idx && is_alike(part, &map->parts[i].is))
            return;
    }
    for (uint32_t k = 0; k < part->rank; k++)
        snprintf(shape + strlen(shape), sizeof(shape) - strlen(shape), "%s%llu", k ? ", " : "[",
                 (unsigned long long) part->shape[k]);
    if (n > 1)
        snprintf(times, sizeof(times), "%u x ", n);
    printf("%*s%-*s %-5s %-22s %s%s\n", part->overlies ? 14 : 12, "", part->overlies ? 20 : 22,
           part->name, hr_dtype_name(part->dtype), strcat(shape, "]"), times,
           cli_size(size, part->size_bytes));
}

/* Of LoRAs and scales there are hundreds, as many as layers: their sum will do. */
void cli_map_print(const struct cli_map *map)
{
    static const char *const titles[] = {"activations", "scales of weights", "LoRAs",
                                         "weights that stay on the device",
                                         "the device's own beside the arena"};
    char size[32];

    for (enum hr_memory_kind kind = 0; kind <= HR_MEMORY_DEVICE; kind++) {
        uint32_t n;
        const uint64_t bytes = sum_of(map, kind, &n);

        if (n == 0)
            continue;
        printf("map       %s %s, buffers %u\n", titles[kind], cli_size(size, bytes), n);
        for (uint32_t i = 0; i < map->n; i++)
            if (map->parts[i].is.kind == kind &&
                (kind == HR_MEMORY_ACTIVATIONS || kind == HR_MEMORY_DEVICE))
                print_part(map, i);
    }
}
