/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/io/gate.h"

#include <errno.h>
#include <time.h>
#include <unistd.h>

#include "unit/io/io_test.h"

gate_state gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static int gate_open(const pst_io_engine *self, const pst_io_queue_settings *settings, void **queue, pst_error *err)
{
    (void)self;
    (void)err;
    assert_true(settings->depth <= HELD_MAX && settings->struct_size == sizeof *settings);
    *queue = &gate;
    return 0;
}

static void gate_close(void *queue)
{
    (void)queue;
    assert_int_equal(gate.held_count, 0);
}

static void gate_submit(void *queue, pst_io_request *const *requests, uint32_t count)
{
    (void)queue;
    pthread_mutex_lock(&gate.lock);
    for (uint32_t i = 0; i < count; i++) {
        assert_true(gate.held_count < HELD_MAX);
        gate.held[gate.held_count++] = requests[i];
        if (gate.started_count < MAX_LOG)
            gate.started[gate.started_count++] = requests[i]->offset;
    }
    if (gate.held_count > gate.most_held)
        gate.most_held = gate.held_count;
    if (count > gate.most_submitted)
        gate.most_submitted = count;
    void (*hook)(void) = gate.on_submit;
    gate.on_submit = NULL;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
    if (hook != NULL)
        hook();
}

static uint32_t gate_reap(void *queue, pst_io_request **done, uint32_t max, bool wait)
{
    (void)queue;
    uint32_t count = 0;
    pthread_mutex_lock(&gate.lock);
    while (wait && !gate.woken && (gate.held_count == 0 || (gate.allowance == 0 && !gate.free_running)))
        pthread_cond_wait(&gate.changed, &gate.lock);
    gate.woken = false;
    if (gate.refusals > 0 && gate.held_count > 0) {
        gate.refusals--;
        while (count < max && gate.held_count > 0) {
            done[count] = gate.held[--gate.held_count];
            done[count++]->result = -EAGAIN;
        }
    }
    while (count < max && gate.held_count > 0 && (gate.allowance > 0 || gate.free_running)) {
        uint32_t pick = (uint32_t)test_below(&gate.random, gate.held_count);
        pst_io_request *r = gate.held[pick];
        gate.held[pick] = gate.held[--gate.held_count];
        gate.allowance -= gate.allowance > 0;
        r->result = r->write ? pwrite(r->fd, r->address, r->bytes, (off_t)r->offset)
                             : pread(r->fd, r->address, r->bytes, (off_t)r->offset);
        if (r->result < 0)
            r->result = -errno;
        done[count++] = r;
        if (test_below(&gate.random, 3) == 0)
            break;
    }
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
    return count;
}

static void gate_wake(void *queue)
{
    (void)queue;
    pthread_mutex_lock(&gate.lock);
    gate.woken = true;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static int gate_set_file(void *queue, uint32_t slot, int fd)
{
    (void)queue, (void)slot;
    gate.files += fd >= 0 ? 1u : -1u;
    return 0;
}

static int gate_set_buffer(void *queue, uint32_t slot, void *memory, uint64_t bytes)
{
    (void)queue, (void)slot, (void)bytes;
    gate.buffers += memory != NULL ? 1u : -1u;
    return 0;
}

const pst_io_engine gate_engine = {
    .version = PST_IO_ENGINE_VERSION,
    .struct_size = sizeof(pst_io_engine),
    .name = "gate",
    .flags = PST_IO_ENGINE_FILE_SLOTS | PST_IO_ENGINE_BUFFER_SLOTS,
    .open_queue = gate_open,
    .close_queue = gate_close,
    .submit = gate_submit,
    .reap = gate_reap,
    .wake = gate_wake,
    .set_file = gate_set_file,
    .set_buffer = gate_set_buffer,
};

void gate_allow(uint32_t count)
{
    pthread_mutex_lock(&gate.lock);
    gate.allowance += count;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

void gate_allow_all(bool all)
{
    pthread_mutex_lock(&gate.lock);
    gate.free_running = all;
    gate.allowance = 0;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

void gate_await_held(uint32_t count)
{
    pthread_mutex_lock(&gate.lock);
    while (gate.held_count != count)
        pthread_cond_wait(&gate.changed, &gate.lock);
    pthread_mutex_unlock(&gate.lock);
}

bool gate_comes_to_hold(uint32_t count)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    int late = 0;
    pthread_mutex_lock(&gate.lock);
    while (gate.held_count != count && late == 0)
        late = pthread_cond_timedwait(&gate.changed, &gate.lock, &until);
    bool holds = gate.held_count == count;
    pthread_mutex_unlock(&gate.lock);
    return holds;
}
