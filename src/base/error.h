/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How errors are made and passed on. The place that knows the path and the cause calls pst_fail (or pst_fail_errno);
 * everybody above passes the code on with PST_TRY and leaves the record alone, so that it says what failed first.
 */
#ifndef PST_BASE_ERROR_H
#define PST_BASE_ERROR_H

#include "penstock/types.h"

/* Records {code, path, offset, message} in err (may be NULL; path may be NULL) and returns code. */
int pst_fail_at(pst_error *err, int code, const char *path, uint64_t offset, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* The same without an offset. */
#define pst_fail(err, code, path, ...) pst_fail_at((err), (code), (path), PST_NO_OFFSET, __VA_ARGS__)

/* Out of memory for `bytes` bytes of `what`: -ENOMEM. */
int pst_fail_memory(pst_error *err, const char *what, size_t bytes);

/* Writes "path: message (at byte offset)" for a human reader into text; always terminated. Returns text. */
char *pst_error_format(const pst_error *err, char *text, size_t text_bytes);

/* Passes a failure on to the caller. */
#define PST_TRY(expression)                                                                                            \
    do {                                                                                                               \
        int pst_try_ = (expression);                                                                                   \
        if (pst_try_ < 0)                                                                                              \
            return pst_try_;                                                                                           \
    } while (0)

/* The same with a clean-up label; needs `int status` in scope. */
#define PST_TRY_GOTO(label, expression)                                                                                \
    do {                                                                                                               \
        status = (expression);                                                                                         \
        if (status < 0)                                                                                                \
            goto label;                                                                                                \
    } while (0)

#endif
