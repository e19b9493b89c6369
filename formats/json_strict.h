/* SPDX-License-Identifier: Apache-2.0 */
/* json_strict.h -- JSON from strangers, read with jansson member by member.
 *
 * jansson turns text into a tree that costs up to 80 times the text's bytes ("{}" in an array:
 * 3 bytes of text, 240 of memory). A safetensors header may have 100 MB, so the long objects
 * (header, `__metadata__`, `weight_map`) are walked here and jansson only sees one member's value
 * at a time; what it takes is bounded by HR_JSON_VALUE_BYTES_MAX, and by twice the text for a
 * string. On top of jansson's rules (UTF-8, no duplicate keys, no NUL, nothing after the end):
 * duplicate keys of a walked object, nesting, and integers that jansson lets pass or cannot hold.
 * Internal to formats/.
 */
#ifndef HR_FORMATS_JSON_STRICT_H
#define HR_FORMATS_JSON_STRICT_H

#include <jansson.h>

#include "common/common.h"
#include "formats/arena.h"

enum {
    HR_JSON_DEPTH_MAX = 32,            /* brackets inside one another, in one value */
    HR_JSON_VALUE_BYTES_MAX = 1 << 20, /* text of one array or object given to jansson */
};

/* The whole text and how to speak of it; outlives what is made from it. */
struct hr_json_source {
    const char *text;
    size_t bytes;
    const char *what;
    struct hr_error *err;
};

/* Memory was lacking for what is made of it. @return -ENOMEM */
int hr_json_fail_memory(const struct hr_json_source *source);

struct hr_json_span {
    const char *begin;
    size_t bytes;
};

struct hr_json_member {
    const char *key; /* decoded; lives as long as the arena */
    struct hr_json_span value;
};

/* An object whose members are visited one by one. */
struct hr_json_object {
    const struct hr_json_source *source;
    const char *kind; /* what a member is, for messages: "tensor", "key" */
    struct hr_arena *arena;
    const char *pos, *end;
    bool is_first;
    const char **keys; /* of all members so far */
    size_t n_keys, n_keys_max;
};

/* Start on the object that `span` holds, white space around it allowed.
 * @param arena  takes the keys; borrowed
 * @return 0, or -EBADMSG when it is something else */
int hr_json_object_init(struct hr_json_object *object, const struct hr_json_source *source,
                        struct hr_json_span span, const char *kind, struct hr_arena *arena);
/* @return 1 with the next member, 0 at the end of a well-formed object without duplicate keys,
 *         -EBADMSG or -ENOMEM. The member's value is only known to end; it is yet to be parsed. */
int hr_json_object_next(struct hr_json_object *object, struct hr_json_member *ret_member);
void hr_json_object_uninit(struct hr_json_object *object);

/* A member's turn. @return 0 to go on, or a negative errno to end the walk with it */
typedef int hr_json_visit(void *user, const struct hr_json_object *object,
                          const struct hr_json_member *member);
/* All of the above for each member of the object that `span` holds.
 * @return 0, the error of the object, or that of `visit` */
int hr_json_each(const struct hr_json_source *source, struct hr_json_span span, const char *kind,
                 struct hr_arena *arena, hr_json_visit *visit, void *user);

/* Parse a member's value. An integer that int64 cannot hold, and -0, come out as something that
 * hr_json_get_u64() refuses.
 * @param ret_value  owned by the caller
 * @return 0, -EBADMSG or -ENOMEM */
int hr_json_load_member(json_t **ret_value, const struct hr_json_object *object,
                        const struct hr_json_member *member);
/* The same for a whole text. */
int hr_json_load(json_t **ret_value, const struct hr_json_source *source);

static inline struct hr_json_span hr_json_span_of(const struct hr_json_source *source)
{
    return (struct hr_json_span){source->text, source->bytes};
}

/* True, and the number, for an integer 0..2^63-1 written as such. value may be NULL. */
bool hr_json_get_u64(const json_t *value, uint64_t *ret_number);

#endif /* HR_FORMATS_JSON_STRICT_H */
