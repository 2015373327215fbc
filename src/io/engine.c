/* SPDX-License-Identifier: Apache-2.0 */
/* The list of engines. Entries are only ever added, so a pointer that was found stays good. */
#include "io/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "penstock/io.h"

enum { MAX_REGISTERED = 16, PROBE_DEPTH = 64 }; /* the depth that a handle has by default */

/* Best first. */
static const pst_io_engine *const built_in[] = {&pst_io_engine_uring, &pst_io_engine_libaio, &pst_io_engine_threads,
                                                &pst_io_engine_null};
enum { BUILT_IN = sizeof built_in / sizeof built_in[0] };
static const pst_io_engine *registered[MAX_REGISTERED];
static unsigned registered_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const pst_io_engine *at_locked(unsigned n)
{
    if (n < BUILT_IN)
        return built_in[n];
    return n - BUILT_IN < registered_count ? registered[n - BUILT_IN] : NULL;
}

static const pst_io_engine *find_locked(const char *name)
{
    const pst_io_engine *engine;
    for (unsigned i = 0; (engine = at_locked(i)) != NULL; i++) {
        if (strcmp(engine->name, name) == 0)
            return engine;
    }
    return NULL;
}

const pst_io_engine *pst_io_engine_find(const char *name)
{
    pthread_mutex_lock(&lock);
    const pst_io_engine *found = find_locked(name);
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- registration ---- */

static bool complete(const pst_io_engine *engine)
{
    if (engine->name == NULL || engine->name[0] == '\0' || engine->open_queue == NULL || engine->close_queue == NULL ||
        engine->submit == NULL || engine->reap == NULL)
        return false;
    return (PST_IO_ENGINE_HAS(engine, wake) || (engine->flags & PST_IO_ENGINE_SYNCHRONOUS) != 0) &&
           (PST_IO_ENGINE_HAS(engine, set_file) || (engine->flags & PST_IO_ENGINE_FILE_SLOTS) == 0) &&
           (PST_IO_ENGINE_HAS(engine, set_buffer) || (engine->flags & PST_IO_ENGINE_BUFFER_SLOTS) == 0);
}

int pst_io_engine_check(const pst_io_engine *engine, pst_error *err)
{
    if (engine == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "there is no table of the I/O engine");
    if (engine->version != PST_IO_ENGINE_VERSION)
        return pst_fail(err, PST_E_USAGE, NULL, "the I/O engine was made for version %u of the interface, not %u",
                        engine->version, PST_IO_ENGINE_VERSION);
    if (engine->struct_size < PST_IO_ENGINE_MIN_SIZE)
        return pst_fail(err, PST_E_USAGE, NULL, "the I/O engine's table has %u bytes, fewer than %zu",
                        engine->struct_size, PST_IO_ENGINE_MIN_SIZE);
    if (!complete(engine))
        return pst_fail(err, PST_E_USAGE, NULL, "the I/O engine's table lacks entries that its flags promise");
    return 0;
}

int pst_io_engine_register(const pst_io_engine *engine, pst_error *err)
{
    int status = pst_io_engine_check(engine, err);
    if (status < 0)
        return status;
    pthread_mutex_lock(&lock);
    if (strcmp(engine->name, "auto") == 0 || find_locked(engine->name) != NULL)
        status = pst_fail(err, PST_E_USAGE, NULL, "there is an I/O engine \"%s\" already", engine->name);
    else if (registered_count == MAX_REGISTERED)
        status = pst_fail(err, PST_E_USAGE, NULL, "more than %d I/O engines", MAX_REGISTERED);
    else
        registered[registered_count++] = engine;
    pthread_mutex_unlock(&lock);
    return status;
}

/* ---- what works here ---- */

/* Opens a queue and closes it again. */
static int try_out(const pst_io_engine *engine, pst_error *err)
{
    bool synchronous = (engine->flags & PST_IO_ENGINE_SYNCHRONOUS) != 0;
    pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = synchronous ? 1 : PROBE_DEPTH};
    void *queue;
    int status = engine->open_queue(engine, &settings, &queue, err);
    if (status >= 0)
        engine->close_queue(queue);
    return status;
}

int pst_io_engine_at(uint32_t n, pst_io_engine_info *out)
{
    pthread_mutex_lock(&lock);
    const pst_io_engine *engine = at_locked(n);
    pthread_mutex_unlock(&lock);
    if (engine == NULL)
        return 0;
    size_t known = out->struct_size;
    if (known == 0 || known > sizeof *out)
        known = sizeof *out;
    pst_error err = {.message = ""};
    pst_io_engine_info info = {.struct_size = known,
                               .name = engine->name,
                               .description = engine->description != NULL ? engine->description : "",
                               .flags = engine->flags,
                               .automatic = n < BUILT_IN && (engine->flags & PST_IO_ENGINE_NO_DATA) == 0,
                               .status = try_out(engine, &err)};
    if (info.status > 0)
        info.status = 0;
    if (info.status < 0)
        snprintf(info.why_not, sizeof info.why_not, "%.*s", (int)sizeof info.why_not - 1,
                 err.message[0] != '\0' ? err.message : pst_strerror(info.status));
    memcpy(out, &info, known);
    return 1;
}
