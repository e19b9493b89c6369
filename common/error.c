/* SPDX-License-Identifier: Apache-2.0 */
/* error.c -- error messages, log lines and failed assertions. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/common.h"

static struct {
    hr_log_fn *fn;
    void *user;
    enum hr_log_level level;
} log_sink = {.level = HR_LOG_WARN};

const char *hr_version(void)
{
    return HR_VERSION;
}

void hr_assert_failed(const char *cond, const char *file, int line, const char *func)
{
    fprintf(stderr, "headrace: %s:%d: %s: assertion failed: %s; this is a bug, please report it\n",
            file, line, func, cond);
    abort();
}

int hr_error_set(struct hr_error *err, int code, const char *format, ...)
{
    va_list ap;

    hr_assert(code < 0);
    if (!err || err->code != 0)
        return code;
    err->code = code;
    va_start(ap, format);
    vsnprintf(err->message, sizeof(err->message), format, ap);
    va_end(ap);
    return code;
}

void hr_error_clear(struct hr_error *err)
{
    if (err)
        *err = (struct hr_error){0};
}

const char *hr_strerror(int code, char *buf, size_t buf_bytes)
{
    return strerror_r(-code, buf, buf_bytes);
}

const char *hr_printable(const char *text, char *buf, size_t buf_bytes)
{
    static const char ellipsis[] = "...";
    size_t len = 0;

    hr_assert(buf_bytes > sizeof(ellipsis) + 4);
    for (const unsigned char *p = (const unsigned char *) text; *p; p++) {
        const bool plain = *p >= 0x20 && *p < 0x7f;

        if (len + (plain ? 1 : 4) + sizeof(ellipsis) > buf_bytes) {
            memcpy(buf + len, ellipsis, sizeof(ellipsis));
            return buf;
        }
        if (plain)
            buf[len++] = (char) *p;
        else
            len += (size_t) snprintf(buf + len, 5, "\\x%02x", *p);
    }
    buf[len] = '\0';
    return buf;
}

void hr_log_set(hr_log_fn *fn, void *user, enum hr_log_level level)
{
    log_sink.fn = fn;
    log_sink.user = user;
    log_sink.level = level;
}

void hr_log(enum hr_log_level level, const char *format, ...)
{
    char line[HR_ERROR_BYTES];
    va_list ap;

    if (level > log_sink.level)
        return;
    va_start(ap, format);
    vsnprintf(line, sizeof(line), format, ap);
    va_end(ap);
    if (log_sink.fn)
        log_sink.fn(log_sink.user, level, line);
    else
        fprintf(stderr, "headrace: %s\n", line);
}
