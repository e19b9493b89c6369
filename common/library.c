/* SPDX-License-Identifier: Apache-2.0 */
/* library.c -- libraries loaded at run time. */
#include <dlfcn.h>
#include <string.h>

#include "common/common.h"

void *hr_library_open(const char *const *names, size_t n)
{
    void *library = NULL;

    for (size_t i = 0; i < n && !library; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

const char *hr_library_bind(void *library, void *table, const struct hr_symbol *symbols, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        void *symbol = dlsym(library, symbols[i].name);

        if (!symbol && !symbols[i].is_optional)
            return symbols[i].name;
        memcpy((char *) table + symbols[i].at, &symbol, sizeof(symbol));
    }
    return NULL;
}

int hr_library_load(struct hr_library *library, int (*load)(struct hr_error *err),
                    struct hr_error *err)
{
    pthread_mutex_lock(&library->mutex);
    const int r = library->is_loaded ? 0 : load(err);
    library->is_loaded = r == 0;
    pthread_mutex_unlock(&library->mutex);
    return r;
}
