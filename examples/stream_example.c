/* SPDX-License-Identifier: Apache-2.0 */
/* stream_example.c -- every byte of a safetensors model (file, folder or shards) through one ring:
 *   cc stream_example.c $(pkg-config --cflags --libs headrace) && ./a.out MODEL */
#include <stdio.h>
#include <stdlib.h>

#include <headrace.h>

int main(int argc, char **argv)
{
    const struct hr_checkpoint_params paths = {(const char *const *) argv + 1, argc - 1, NULL};
    struct hr_checkpoint *model = NULL;
    struct hr_stream *stream = NULL;
    struct hr_error err = {0};
    struct hr_unit unit;
    uint64_t sum = 0;
    int r = hr_checkpoint_open(&model, &paths, &err);
    const uint32_t n = r == 0 ? hr_checkpoint_n_tensors(model) : 0;
    const char **names = calloc(n + 1, sizeof(*names)); /* any order; here by name */

    for (uint32_t i = 0; names && i < n; i++)
        names[i] = hr_checkpoint_tensor(model, i)->name;
    if (r == 0)
        r = hr_stream_open(&stream, model, &(struct hr_stream_params){0}, &err);
    if (r == 0)
        r = hr_stream_plan(stream, names, names ? n : 0, 0, 1, &err); /* reading starts here */
    while (r >= 0 && (r = hr_stream_next(stream, &unit, &err)) > 0) {
        for (uint64_t i = 0; i < unit.size_bytes; i++) /* while the next units are being read */
            sum += ((const unsigned char *) unit.data)[i];
        hr_stream_release(stream, &unit);
    }
    if (r < 0)
        fprintf(stderr, "%s\n", err.message);
    else
        printf("sum of bytes %llu\n", (unsigned long long) sum);
    hr_stream_close(&stream);
    hr_checkpoint_close(&model);
    free(names);
    return r < 0;
}
