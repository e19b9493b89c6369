/* SPDX-License-Identifier: Apache-2.0 */
/* json_strict.c -- a walk over the members of an object, and jansson for everything inside.
 *
 * The walk finds where strings and brackets end and nothing more: every byte between is checked
 * by jansson later, when a key or value is parsed, so there is one authority on what is JSON.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/formats.h"
#include "formats/json_strict.h"

_Static_assert(HR_JSON_DEPTH_MAX == 32, "as a message says");

static int fail_at(const struct hr_json_source *source, const char *at, const char *message)
{
    return hr_error_set(source->err, -EBADMSG, "%s: malformed JSON at byte %zu: %s", source->what,
                        (size_t) (at - source->text), message);
}

int hr_json_fail_memory(const struct hr_json_source *source)
{
    return hr_error_set(source->err, -ENOMEM, "%s: out of memory while reading JSON", source->what);
}

static const char *skip_space(const char *p, const char *end)
{
    while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
        p++;
    return p;
}

/* @return the byte after the string that begins at p, or NULL when it does not end */
static const char *string_end(const char *p, const char *end)
{
    for (p++; p < end; p++) {
        if (*p == '"')
            return p + 1;
        if (*p == '\\' && ++p == end)
            break;
    }
    return NULL;
}

static bool ends_scalar(char c)
{
    return c == ',' || c == '}' || c == ']' || c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Find the end of the value that begins at p: of its last bracket, its string or its word.
 * @return 0 or -EBADMSG */
static int value_end(const struct hr_json_source *source, const char *p, const char *end,
                     const char **ret_end)
{
    const char *begin = p;
    unsigned depth = 0;

    while (p < end) {
        if (*p == '"') {
            p = string_end(p, end);
            if (!p)
                break;
        } else if (*p == '{' || *p == '[') {
            if (++depth > HR_JSON_DEPTH_MAX)
                return fail_at(source, p, "more than 32 brackets inside one another");
            p++;
        } else if (depth == 0) {
            while (p < end && !ends_scalar(*p))
                p++;
        } else {
            depth -= *p == '}' || *p == ']';
            p++;
        }
        if (depth == 0) {
            *ret_end = p;
            return 0;
        }
    }
    return fail_at(source, begin, "the text ends inside the value that begins here");
}

/* True when jansson would not tell the integer from a legal one: `-0`, which it reads as 0. */
static bool is_minus_zero(const char *token, size_t bytes)
{
    return bytes == 2 && memcmp(token, "-0", 2) == 0;
}

/* True for an integer beyond int64, which jansson refuses without a word on where it stands. */
static bool is_too_large(const char *token, size_t bytes)
{
    static const char largest[] = "9223372036854775807";
    const size_t n_largest = sizeof(largest) - 1;

    if (bytes && *token == '-') {
        token++;
        bytes--;
    }
    for (size_t i = 0; i < bytes; i++) {
        if (token[i] < '0' || token[i] > '9')
            return false;
    }
    return bytes > n_largest || (bytes == n_largest && memcmp(token, largest, bytes) > 0);
}

/* Replace the integers above by others of the same length that are no less legal JSON, but are
 * refused wherever an integer has to be used: -1, and a number with an exponent.
 * @param ret_copy  *text changed, to be freed; untouched when nothing had to change */
static int patch_integers(const char *text, size_t bytes, char **ret_copy)
{
    const char *end = text + bytes;

    for (const char *p = text; p < end;) {
        const char *token = p;
        size_t n;

        if (*p == '"') {
            p = string_end(p, end);
            if (!p)
                return 0; /* for jansson to say */
            continue;
        }
        while (p < end && ((*p >= '0' && *p <= '9') || (*p && strchr("+-.eE", *p))))
            p++;
        n = (size_t) (p - token);
        if (n == 0)
            p++;
        if (!is_minus_zero(token, n) && !is_too_large(token, n))
            continue;
        if (!*ret_copy) {
            *ret_copy = malloc(bytes);
            if (!*ret_copy)
                return -ENOMEM;
            memcpy(*ret_copy, text, bytes);
        }
        memcpy(*ret_copy + (p - text) - 2, n == 2 ? "-1" : "e1", 2);
    }
    return 0;
}

/* ---- long tokens --------------------------------------------------------------------------
 *
 * jansson (2.14, lex_save()) leaves a character out where its buffer for a token cannot grow, and
 * says nothing: for want of memory a name or a number would become another one. The buffer begins
 * with TOKEN_BYTES and never shrinks, so longer tokens are made to come second: behind a string
 * that is as long, of which it is easy to see whether it is whole. */

enum { TOKEN_BYTES = 15 };

/* Bytes of the longest token, of strings with their quotes. */
static size_t longest_token(const char *p, const char *end)
{
    size_t longest = 0;

    while (p < end) {
        const char *begin = p;

        if (*p == '"') {
            p = string_end(p, end);
            if (!p)
                p = end; /* for jansson to say */
        } else {
            while (p < end && !ends_scalar(*p) && *p != '"' && *p != '[' && *p != '{' && *p != ':')
                p++;
        }
        if ((size_t) (p - begin) > longest)
            longest = (size_t) (p - begin);
        if (p == begin)
            p++;
    }
    return longest;
}

/* The second of two elements of which the first is n bytes long; NULL: it is not, or there are not
 * two. Takes the array. */
static json_t *take_second(json_t *array, size_t n)
{
    const bool whole = json_string_length(json_array_get(array, 0)) == n;
    json_t *value = NULL;

    if (whole && json_array_size(array) == 2)
        value = json_incref(json_array_get(array, 1));
    json_decref(array);
    return value;
}

/* @param ret_shift  how far jansson's positions are from those in `text`
 * @return NULL with *error, whose text is empty for want of memory */
static json_t *load_text(const char *text, size_t bytes, json_error_t *error, size_t *ret_shift)
{
    const size_t n = longest_token(text, text + bytes);
    const size_t flags = JSON_REJECT_DUPLICATES | JSON_DECODE_ANY;

    *ret_shift = 0;
    error->text[0] = '\0';
    if (n <= TOKEN_BYTES)
        return json_loadb(text, bytes, flags, error);
    const size_t shift = n + 4; /* [" and ", */
    char *padded = malloc(shift + bytes + 1);

    if (!padded)
        return NULL;
    memset(padded, 'a', shift);
    memcpy(padded, "[\"", 2);
    memcpy(padded + shift - 2, "\",", 2);
    memcpy(padded + shift, text, bytes);
    padded[shift + bytes] = ']';
    json_t *array = json_loadb(padded, shift + bytes + 1, flags, error);

    free(padded);
    *ret_shift = shift;
    return array ? take_second(array, n) : NULL;
}

/* @param where  in front of jansson's words, such as `tensor "x": ` */
static int load_span(json_t **ret_value, const struct hr_json_source *source,
                     struct hr_json_span span, const char *where)
{
    char *copy = NULL;
    char text[JSON_ERROR_TEXT_LENGTH * 2];
    json_error_t error;
    json_t *value;
    size_t shift;

    if (span.bytes > HR_JSON_VALUE_BYTES_MAX && *span.begin != '"')
        return hr_error_set(source->err, -EBADMSG,
                            "%s: %sa value of %zu bytes where at most %d are expected",
                            source->what, where, span.bytes, (int) HR_JSON_VALUE_BYTES_MAX);
    if (patch_integers(span.begin, span.bytes, &copy) < 0)
        return hr_json_fail_memory(source);
    value = load_text(copy ? copy : span.begin, span.bytes, &error, &shift);
    free(copy);
    if (value) {
        *ret_value = value;
        return 0;
    }
    if (!error.text[0] || json_error_code(&error) == json_error_out_of_memory)
        return hr_json_fail_memory(source);
    return hr_error_set(source->err, -EBADMSG, "%s: %smalformed JSON at byte %zu: %s", source->what,
                        where,
                        (size_t) (span.begin - source->text) + (size_t) error.position - shift,
                        hr_printable(error.text, text, sizeof(text)));
}

int hr_json_load(json_t **ret_value, const struct hr_json_source *source)
{
    const char *end = source->text + source->bytes;
    const char *p = skip_space(source->text, end);
    const char *after;

    if (p == end)
        return fail_at(source, p, "the text is empty");
    if (value_end(source, p, end, &after) < 0)
        return -EBADMSG;
    if (skip_space(after, end) != end)
        return fail_at(source, skip_space(after, end), "something follows the value");
    return load_span(ret_value, source, (struct hr_json_span){p, (size_t) (after - p)}, "");
}

int hr_json_parse(json_t **ret_root, const char *text, size_t bytes, const char *what,
                  struct hr_error *err)
{
    const struct hr_json_source source = {text, bytes, what, err};

    return hr_json_load(ret_root, &source);
}

int hr_json_load_member(json_t **ret_value, const struct hr_json_object *object,
                        const struct hr_json_member *member)
{
    char key[160], where[200];

    snprintf(where, sizeof(where), "%s \"%s\": ", object->kind,
             hr_printable(member->key, key, sizeof(key)));
    return load_span(ret_value, object->source, member->value, where);
}

int hr_json_object_init(struct hr_json_object *object, const struct hr_json_source *source,
                        struct hr_json_span span, const char *kind, struct hr_arena *arena)
{
    const char *end = span.begin + span.bytes;
    const char *p = skip_space(span.begin, end);

    if (p == end || *p != '{')
        return fail_at(source, p, "expected an object, beginning with {");
    *object = (struct hr_json_object){
        .source = source, .kind = kind, .arena = arena, .pos = p + 1, .end = end, .is_first = true};
    return 0;
}

void hr_json_object_uninit(struct hr_json_object *object)
{
    free(object->keys);
    object->keys = NULL;
}

static int compare_keys(const void *a, const void *b)
{
    const char *const *ka = a;
    const char *const *kb = b;

    return strcmp(*ka, *kb);
}

static int finish(struct hr_json_object *object, const char *p)
{
    char key[160];

    p = skip_space(p, object->end);
    if (p != object->end)
        return fail_at(object->source, p, "something follows the closing }");
    if (object->n_keys)
        qsort(object->keys, object->n_keys, sizeof(*object->keys), compare_keys);
    for (size_t i = 1; i < object->n_keys; i++) {
        if (strcmp(object->keys[i - 1], object->keys[i]) == 0)
            return hr_error_set(object->source->err, -EBADMSG, "%s: %s \"%s\" appears twice",
                                object->source->what, object->kind,
                                hr_printable(object->keys[i], key, sizeof(key)));
    }
    return 0;
}

static int add_key(struct hr_json_object *object, struct hr_json_span span)
{
    json_t *value;
    const char *key;
    int r;

    const char **keys =
        hr_array_grow(object->keys, object->n_keys, &object->n_keys_max, sizeof(*keys));

    if (!keys)
        return hr_json_fail_memory(object->source);
    object->keys = keys;
    r = load_span(&value, object->source, span, "");
    if (r < 0)
        return r;
    key = hr_arena_strdup(object->arena, json_string_value(value));
    json_decref(value);
    if (!key)
        return hr_json_fail_memory(object->source);
    object->keys[object->n_keys++] = key;
    return 0;
}

int hr_json_object_next(struct hr_json_object *object, struct hr_json_member *ret_member)
{
    const struct hr_json_source *source = object->source;
    const char *end = object->end;
    const char *p = skip_space(object->pos, end);
    const char *after;
    int r;

    if (p < end && *p == '}')
        return finish(object, p + 1);
    if (!object->is_first) {
        if (p == end || *p != ',')
            return fail_at(source, p, "expected , or }");
        p = skip_space(p + 1, end);
    }
    if (p == end || *p != '"')
        return fail_at(source, p, "expected a key in quotes");
    after = string_end(p, end);
    if (!after)
        return fail_at(source, p, "the text ends inside the string that begins here");
    r = add_key(object, (struct hr_json_span){p, (size_t) (after - p)});
    if (r < 0)
        return r;
    p = skip_space(after, end);
    if (p == end || *p != ':')
        return fail_at(source, p, "expected :");
    p = skip_space(p + 1, end);
    r = value_end(source, p, end, &after);
    if (r < 0)
        return r;
    if (after == p)
        return fail_at(source, p, "expected a value");
    *ret_member = (struct hr_json_member){
        .key = object->keys[object->n_keys - 1],
        .value = {p, (size_t) (after - p)},
    };
    object->pos = after;
    object->is_first = false;
    return 1;
}

int hr_json_each(const struct hr_json_source *source, struct hr_json_span span, const char *kind,
                 struct hr_arena *arena, hr_json_visit *visit, void *user)
{
    struct hr_json_object object;
    struct hr_json_member member;
    int r = hr_json_object_init(&object, source, span, kind, arena);

    if (r < 0)
        return r;
    while ((r = hr_json_object_next(&object, &member)) > 0) {
        r = visit(user, &object, &member);
        if (r < 0)
            break;
    }
    hr_json_object_uninit(&object);
    return r;
}

bool hr_json_get_u64(const json_t *value, uint64_t *ret_number)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *ret_number = (uint64_t) json_integer_value(value);
    return true;
}
