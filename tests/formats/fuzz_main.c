/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_main.c -- stands in for libFuzzer: gives each file named, or in a folder named, to the
 * target once.
 */
#include <dirent.h>
#include <limits.h>
#include <string.h>

#include "tests/formats/fuzz.h"
#include "tests/formats/read_file.h"

/* @return files replayed, or -1 */
static int replay_file(const char *path)
{
    size_t size;
    uint8_t *data = read_file(path, &size);

    if (!data) {
        perror(path);
        return -1;
    }
    LLVMFuzzerTestOneInput(data, size);
    free(data);
    return 1;
}

static int replay(const char *path)
{
    DIR *dir = opendir(path);
    int n_files = 0;

    if (!dir)
        return replay_file(path);
    for (struct dirent *entry; (entry = readdir(dir));) {
        char file[PATH_MAX];
        int n;

        if (entry->d_name[0] == '.')
            continue;
        snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
        n = replay_file(file);
        if (n < 0) {
            closedir(dir);
            return -1;
        }
        n_files += n;
    }
    closedir(dir);
    return n_files;
}

int main(int argc, char **argv)
{
    int n_files = 0;

    for (int i = 1; i < argc; i++) {
        const int n = replay(argv[i]);

        if (n < 0)
            return 1;
        n_files += n;
    }
    printf("%d files replayed\n", n_files);
    return n_files ? 0 : 1;
}
