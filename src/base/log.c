/* SPDX-License-Identifier: Apache-2.0 */
/* One sink under one lock: the log is for rare events, never for the steady path. */
#include "base/log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pst_log_sink current_sink;
static void *current_user;
static pst_log_level current_level;

void pst_log_set_sink(pst_log_sink sink, void *user, pst_log_level level)
{
    pthread_mutex_lock(&lock);
    current_sink = sink;
    current_user = user;
    current_level = level;
    pthread_mutex_unlock(&lock);
}

void pst_log(pst_log_level level, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&lock);
    if (current_sink != NULL && level <= current_level)
        current_sink(current_user, level, line);
    pthread_mutex_unlock(&lock);
}
