/* SPDX-License-Identifier: Apache-2.0 */
/* Configurations that are refused: with which code, and what the message holds. */
#ifndef PST_TESTS_UNIT_NN_REFUSALS_H
#define PST_TESTS_UNIT_NN_REFUSALS_H

#include <string.h>

#include "base/error.h"
#include "nn/config.h"

typedef struct refusal {
    const char *config;
    int code;
    const char *says;
} refusal;

static inline void check_refusals(const refusal *cases, size_t count,
                                  int (*parse)(const char *config, pst_transformer *out, pst_error *err))
{
    for (size_t i = 0; i < count; i++) {
        pst_transformer t;
        pst_error err;
        int status = parse(cases[i].config, &t, &err);
        if (status != cases[i].code || strstr(err.message, cases[i].says) == NULL)
            fail_msg("%s: %d \"%s\", expected %d with \"%s\"", cases[i].config, status, err.message, cases[i].code,
                     cases[i].says);
        assert_string_equal(err.path, "config.json");
    }
}

#endif
