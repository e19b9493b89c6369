/* SPDX-License-Identifier: Apache-2.0 */
/* model_folder.c -- see model_folder.h. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/files.h"
#include "engine/model_folder.h"

enum { NAMES_MAX = 100000, NAMES_SHOWN = 4, NAME_SHOWN_BYTES = 128, PATH_SHOWN_BYTES = 384 };

static const char TRANSFORMER[] = "transformer";

const char *hr_names_join(char *const *names, uint32_t n, char *buf, size_t buf_bytes)
{
    char shown[NAME_SHOWN_BYTES];
    size_t len = 0;

    buf[0] = '\0';
    for (uint32_t i = 0; i < n && i < NAMES_SHOWN; i++) {
        const int put = snprintf(buf + len, buf_bytes - len, "%s%s", i ? ", " : "",
                                 hr_printable(names[i], shown, sizeof(shown)));

        len = hr_min_u64(len + (size_t) put, buf_bytes - 1);
    }
    if (n > NAMES_SHOWN)
        snprintf(buf + len, buf_bytes - len, " and %u more", n - NAMES_SHOWN);
    return buf;
}

/* ---- opening ------------------------------------------------------------------------ */

/* Real path of the model cache, NULL when there is none. */
static char *find_cache(const char *cache_dir)
{
    const char *base, *tail = "";
    char *path, *real;

    if (cache_dir)
        base = cache_dir;
    else if ((base = hr_env("HF_HUB_CACHE")))
        ;
    else if ((base = hr_env("HF_HOME")))
        tail = "/hub";
    else if ((base = hr_env("XDG_CACHE_HOME")))
        tail = "/huggingface/hub";
    else if ((base = hr_env("HOME")))
        tail = "/.cache/huggingface/hub";
    else
        return NULL;
    if (asprintf(&path, "%s%s", base, tail) < 0)
        return NULL;
    real = realpath(path, NULL);
    free(path);
    return real;
}

int hr_folder_open(struct hr_folder *ret_folder, const char *path, const char *cache_dir,
                   struct hr_error *err)
{
    struct hr_folder folder = {.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
    char shown[PATH_SHOWN_BYTES], reason[128];
    int r;

    if (folder.fd >= 0) {
        folder.path = strdup(path);
        folder.root = realpath(path, NULL);
    }
    if (folder.path && folder.root) {
        folder.cache = find_cache(cache_dir);
        *ret_folder = folder;
        return 0;
    }
    r = folder.fd >= 0 && !folder.path ? -ENOMEM : -errno;
    hr_folder_close(&folder);
    return hr_error_set(err, r, "%s: cannot open the folder: %s",
                        hr_printable(path, shown, sizeof(shown)),
                        hr_strerror(r, reason, sizeof(reason)));
}

void hr_folder_close(struct hr_folder *folder)
{
    if (folder->fd >= 0)
        close(folder->fd);
    free(folder->path);
    free(folder->root);
    free(folder->cache);
    *folder = (struct hr_folder){.fd = -1};
}

static bool is_under(const char *path, const char *root)
{
    const size_t len = root ? strlen(root) : 0;

    if (!root)
        return false;
    if (len == 1) /* "/" */
        return true;
    return !strncmp(path, root, len) && (path[len] == '/' || path[len] == '\0');
}

/* Where a name of the folder leads, when that is allowed.
 * @param ret_real  real path when it is a link, NULL when not; free() it */
static int resolve(const struct hr_folder *folder, const char *name, char **ret_real,
                   struct hr_error *err)
{
    char shown[PATH_SHOWN_BYTES], target_shown[PATH_SHOWN_BYTES], target[PATH_SHOWN_BYTES] = "";
    struct stat st;
    char *path, *real;
    int r = 0;

    *ret_real = NULL;
    path = hr_file_join(folder->path, name);
    if (!path)
        return hr_error_set(err, -ENOMEM, "no memory for a file's name");
    hr_printable(path, shown, sizeof(shown));
    if (fstatat(folder->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        r = -errno;
        if (r != -ENOENT)
            hr_error_set(err, r, "%s: %s", shown, hr_strerror(r, target, sizeof(target)));
    }
    if (r < 0 || !S_ISLNK(st.st_mode)) {
        free(path);
        return r;
    }
    real = realpath(path, NULL);
    free(path);
    if (!real) {
        if (readlinkat(folder->fd, name, target, sizeof(target) - 1) < 0)
            target[0] = '\0';
        return hr_error_set(err, -ENOENT,
                            "%s: links to %s, which cannot be reached; download the model again",
                            shown, hr_printable(target, target_shown, sizeof(target_shown)));
    }
    if (!is_under(real, folder->root) && !is_under(real, folder->cache)) {
        hr_error_set(err, -EACCES,
                     "%s: links to %s, outside the model's folder and the model cache; set "
                     "HF_HUB_CACHE to a folder that holds it, or put the file itself there",
                     shown, hr_printable(real, target_shown, sizeof(target_shown)));
        free(real);
        return -EACCES;
    }
    *ret_real = real;
    return 0;
}

static int descend(struct hr_folder *folder, const char *name, struct hr_error *err)
{
    char shown[PATH_SHOWN_BYTES], reason[128];
    char *real, *path;
    int fd, r = resolve(folder, name, &real, err);

    if (r < 0)
        return r;
    path = hr_file_join(folder->path, name);
    fd = openat(folder->fd, real ? real : name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    r = path ? fd < 0 ? -errno : 0 : -ENOMEM;
    free(real);
    if (r < 0) {
        hr_error_set(err, r, "%s: cannot open its folder %s: %s",
                     hr_printable(folder->path, shown, sizeof(shown)), name,
                     hr_strerror(r, reason, sizeof(reason)));
        if (fd >= 0)
            close(fd);
        free(path);
        return r;
    }
    close(folder->fd);
    free(folder->path);
    folder->fd = fd;
    folder->path = path;
    return 0;
}

int hr_folder_open_file(const struct hr_folder *folder, const char *name, int *ret_fd,
                        uint64_t *ret_bytes, struct hr_error *err)
{
    char shown[PATH_SHOWN_BYTES], reason[128];
    char *real, *path;
    mode_t mode;
    int r = resolve(folder, name, &real, err);

    if (r < 0)
        return r;
    r = hr_file_open(folder->fd, real ? real : name, O_NOFOLLOW, ret_fd, ret_bytes, &mode);
    free(real);
    if (r >= 0)
        return 0;
    path = hr_file_join(folder->path, name);
    hr_printable(path ? path : name, shown, sizeof(shown));
    free(path);
    if (r == -EINVAL && !S_ISREG(mode))
        return hr_error_set(err, r, "%s: is %s, not a file", shown, hr_file_kind(mode));
    return hr_error_set(err, r, "%s: cannot open: %s", shown,
                        hr_strerror(r, reason, sizeof(reason)));
}

/* ---- listing ------------------------------------------------------------------------ */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *) a, *(char *const *) b);
}

static int append_name(char ***names, uint32_t *n, const char *name)
{
    if (*n >= NAMES_MAX)
        return -E2BIG;
    if ((*n & (*n - 1)) == 0) { /* full at every power of two */
        char **grown = realloc(*names, hr_max_u64(2 * (uint64_t) *n, 1) * sizeof(char *));

        if (!grown)
            return -ENOMEM;
        *names = grown;
    }
    (*names)[*n] = strdup(name);
    if (!(*names)[*n])
        return -ENOMEM;
    ++*n;
    return 0;
}

static int add_name(struct hr_folder_list *list, int dir_fd, const char *name)
{
    struct stat st;

    if (name[0] == '.') /* unfinished downloads, and what some systems put beside a file */
        return 0;
    if (hr_has_suffix(name, ".safetensors"))
        return append_name(&list->weights, &list->n_weights, name);
    if (hr_has_suffix(name, ".safetensors.index.json"))
        return append_name(&list->indices, &list->n_indices, name);
    if (!strcmp(name, "model_index.json"))
        list->is_pipeline = true;
    else if (!strcmp(name, TRANSFORMER))
        list->has_transformer = fstatat(dir_fd, name, &st, 0) == 0 && S_ISDIR(st.st_mode);
    return 0;
}

static int make_list(struct hr_folder_list *ret_list, const struct hr_folder *folder,
                     struct hr_error *err)
{
    struct hr_folder_list list = {0};
    char shown[PATH_SHOWN_BYTES], reason[128];
    const int fd = openat(folder->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    int r = dir ? 0 : -errno;

    while (r == 0) {
        const struct dirent *entry;

        errno = 0;
        entry = readdir(dir);
        if (!entry) {
            r = -errno;
            break;
        }
        r = add_name(&list, folder->fd, entry->d_name);
    }
    if (dir)
        closedir(dir);
    else if (fd >= 0)
        close(fd);
    if (r < 0) {
        hr_folder_list_uninit(&list);
        return hr_error_set(err, r, "%s: cannot list the folder: %s",
                            hr_printable(folder->path, shown, sizeof(shown)),
                            hr_strerror(r, reason, sizeof(reason)));
    }
    if (list.n_weights > 0)
        qsort(list.weights, list.n_weights, sizeof(char *), compare_names);
    if (list.n_indices > 0)
        qsort(list.indices, list.n_indices, sizeof(char *), compare_names);
    *ret_list = list;
    return 0;
}

static void free_names(char **names, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
}

void hr_folder_list_uninit(struct hr_folder_list *list)
{
    free_names(list->weights, list->n_weights);
    free_names(list->indices, list->n_indices);
    *list = (struct hr_folder_list){0};
}

int hr_folder_open_model(struct hr_folder *ret_folder, struct hr_folder_list *ret_list,
                         const char *path, const char *cache_dir, struct hr_error *err)
{
    struct hr_folder_list list = {0};
    struct hr_folder folder;
    char shown[PATH_SHOWN_BYTES];
    int r = hr_folder_open(&folder, path, cache_dir, err);

    if (r < 0)
        return r;
    r = make_list(&list, &folder, err);
    if (r == 0 && list.has_transformer &&
        (list.is_pipeline || list.n_weights + list.n_indices == 0)) {
        hr_log(HR_LOG_INFO, "%s: a pipeline's folder; the model is in its transformer/",
               hr_printable(path, shown, sizeof(shown)));
        hr_folder_list_uninit(&list);
        r = descend(&folder, TRANSFORMER, err);
        if (r == 0)
            r = make_list(&list, &folder, err);
    }
    if (r < 0) {
        hr_folder_close(&folder);
        return r;
    }
    *ret_folder = folder;
    *ret_list = list;
    return 0;
}

/* ---- parts -------------------------------------------------------------------------- */

struct part {
    size_t stem_len;
    unsigned long k, n;
    unsigned n_digits;
};

/* The digits that end before text[*end]; moves *end to their beginning. */
static bool parse_digits(const char *text, size_t *end, unsigned long *ret_value,
                         unsigned *ret_n_digits)
{
    size_t begin = *end;

    while (begin > 0 && isdigit((unsigned char) text[begin - 1]))
        begin--;
    if (begin == *end || *end - begin > 9)
        return false;
    *ret_n_digits = (unsigned) (*end - begin);
    *ret_value = strtoul(text + begin, NULL, 10);
    *end = begin;
    return true;
}

/* NAME-00003-of-00009.safetensors */
static bool parse_part(const char *name, struct part *ret_part)
{
    size_t end = strlen(name) - strlen(".safetensors");
    unsigned n_digits_k;

    if (!parse_digits(name, &end, &ret_part->n, &ret_part->n_digits))
        return false;
    if (end < 4 || memcmp(name + end - 4, "-of-", 4) != 0)
        return false;
    end -= 4;
    if (!parse_digits(name, &end, &ret_part->k, &n_digits_k) || end == 0 || name[end - 1] != '-')
        return false;
    ret_part->stem_len = end - 1;
    return n_digits_k == ret_part->n_digits && ret_part->k >= 1 && ret_part->k <= ret_part->n;
}

static bool same_series(const char *name, const struct part *part, const char *other,
                        const struct part *other_part)
{
    return part->n == other_part->n && part->n_digits == other_part->n_digits &&
           part->stem_len == other_part->stem_len && !memcmp(name, other, part->stem_len);
}

int hr_folder_check_series(const struct hr_folder_list *list, const char *shown,
                           struct hr_error *err)
{
    char names[5 * NAME_SHOWN_BYTES], stem[NAME_SHOWN_BYTES];
    struct part first, part;

    if (list->n_weights == 0)
        return hr_error_set(err, -ENOENT, "%s: no .safetensors file here; is it a model's folder?",
                            shown);
    if (!parse_part(list->weights[0], &first)) {
        if (list->n_weights == 1)
            return 0;
        goto unrelated;
    }
    for (uint32_t i = 1; i < list->n_weights; i++)
        if (!parse_part(list->weights[i], &part) ||
            !same_series(list->weights[0], &first, list->weights[i], &part))
            goto unrelated;
    /* One series: the sorted names are in order of k, and no k comes twice. */
    for (uint32_t i = 0; i < first.n; i++) {
        if (i < list->n_weights && parse_part(list->weights[i], &part) && part.k == i + 1)
            continue;
        hr_printable(list->weights[0], stem, sizeof(stem));
        if (first.stem_len < sizeof(stem))
            stem[first.stem_len] = '\0';
        return hr_error_set(
            err, -ENOENT,
            "%s: %s-%0*u-of-%0*lu.safetensors is missing (%u of %lu files are here, without an "
            "index); download it again",
            shown, stem, (int) first.n_digits, i + 1, (int) first.n_digits, first.n,
            list->n_weights, first.n);
    }
    return 0;

unrelated:
    return hr_error_set(err, -EINVAL,
                        "%s: several .safetensors files and no index that says which belong "
                        "together (%s); name the file itself",
                        shown, hr_names_join(list->weights, list->n_weights, names, sizeof(names)));
}
