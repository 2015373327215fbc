/* SPDX-License-Identifier: Apache-2.0 */
/* The list of engines. Entries are only ever added, so a pointer that was found stays good. */
#include "io/engine.h"

#include <pthread.h>
#include <string.h>

#include "base/error.h"

enum { MAX_REGISTERED = 16 };

static const pst_io_engine *const built_in[] = {&pst_io_engine_uring, &pst_io_engine_threads};
static const pst_io_engine *registered[MAX_REGISTERED];
static unsigned registered_count;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

const pst_io_engine *pst_io_engine_choice(unsigned n)
{
    return n < sizeof built_in / sizeof built_in[0] ? built_in[n] : NULL;
}

static const pst_io_engine *find_locked(const char *name)
{
    for (size_t i = 0; i < sizeof built_in / sizeof built_in[0]; i++) {
        if (strcmp(built_in[i]->name, name) == 0)
            return built_in[i];
    }
    for (unsigned i = 0; i < registered_count; i++) {
        if (strcmp(registered[i]->name, name) == 0)
            return registered[i];
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

static bool complete(const pst_io_engine *engine)
{
    if (engine->name == NULL || engine->name[0] == '\0' || engine->open_queue == NULL || engine->close_queue == NULL ||
        engine->submit == NULL || engine->reap == NULL)
        return false;
    return (engine->wake != NULL || (engine->flags & PST_IO_ENGINE_SYNCHRONOUS) != 0) &&
           (engine->set_file != NULL || (engine->flags & PST_IO_ENGINE_FILE_SLOTS) == 0) &&
           (engine->set_buffer != NULL || (engine->flags & PST_IO_ENGINE_BUFFER_SLOTS) == 0);
}

int pst_io_engine_register(const pst_io_engine *engine, pst_error *err)
{
    if (engine == NULL || engine->version != PST_IO_ENGINE_VERSION || engine->struct_size < sizeof *engine)
        return pst_fail(err, PST_E_USAGE, NULL, "the I/O engine was made for another version of the interface");
    if (!complete(engine))
        return pst_fail(err, PST_E_USAGE, NULL, "the I/O engine's table lacks entries that its flags promise");
    int status = 0;
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
