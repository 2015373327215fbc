/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots of the engine's file table. A slot saves the kernel about 0.1 us per transfer, but putting a file into it and
 * taking it out again costs a round through all workers, several times what it costs to open the file. So a file gets one
 * only after PST_IO_SLOT_AFTER transfers, and each worker puts it into its own queue when it first has a transfer for
 * it. Only the end, when the file is closed, takes a round.
 */
#include "io/internal.h"

/* Gives the file a slot for good, or none for good. */
static int decide(pst_io *io, pst_io_file *file)
{
    pthread_mutex_lock(&io->slot_lock);
    int slot = atomic_load(&file->slot);
    if (slot == PST_IO_SLOT_UNDECIDED) {
        slot = PST_IO_SLOT_NEVER;
        for (int i = 0; i < PST_IO_FILE_SLOTS && slot < 0; i++) {
            if (!io->file_slots[i])
                slot = i;
        }
        if (slot >= 0)
            io->file_slots[slot] = true;
        atomic_store(&file->slot, slot);
    }
    pthread_mutex_unlock(&io->slot_lock);
    return slot;
}

int pst_io_slot_of(worker *w, pst_io_file *file, bool direct)
{
    const pst_io_engine *engine = w->io->engine;
    /* One descriptor of the file has the slot: the direct one where there is one. */
    if ((engine->flags & PST_IO_ENGINE_FILE_SLOTS) == 0 || direct != (file->direct_fd >= 0))
        return -1;
    int slot = atomic_load_explicit(&file->slot, memory_order_acquire);
    if (slot == PST_IO_SLOT_UNDECIDED) {
        if (atomic_fetch_add_explicit(&file->transfers, 1, memory_order_relaxed) < PST_IO_SLOT_AFTER)
            return -1;
        slot = decide(w->io, file);
    }
    if (slot < 0)
        return -1;
    if (w->slots[slot] == SLOT_EMPTY) {
        int fd = direct ? file->direct_fd : atomic_load(&file->buffered_fd);
        w->slots[slot] = engine->set_file(w->queue, (uint32_t)slot, fd) >= 0 ? SLOT_HOLDS : SLOT_REFUSED;
    }
    return w->slots[slot] == SLOT_HOLDS ? slot : -1;
}

void pst_io_slot_forget(worker *w, uint32_t slot)
{
    if (w->slots[slot] == SLOT_HOLDS)
        w->io->engine->set_file(w->queue, slot, -1);
    w->slots[slot] = SLOT_EMPTY;
}

void pst_io_slot_give(pst_io_file *file)
{
    pst_io *io = file->io;
    int slot = atomic_load(&file->slot);
    if (slot < 0)
        return;
    control c = {.kind = CONTROL_FILE, .slot = (uint32_t)slot};
    pthread_mutex_lock(&io->control_lock);
    pst_io_control(io, &c); /* fails only where the workers, and their queues with them, are gone */
    pthread_mutex_unlock(&io->control_lock);
    pthread_mutex_lock(&io->slot_lock);
    io->file_slots[slot] = false;
    pthread_mutex_unlock(&io->slot_lock);
}
