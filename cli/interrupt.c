/* SPDX-License-Identifier: Apache-2.0 */
/* Signal handling with lock-free atomics only: all that a handler may touch. */
#include "interrupt.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "progress.h"

static _Atomic(pst_session *) session;
static _Atomic(const char *) doomed_path;
static atomic_int handlers_inside, signal_seen, polled;

static void on_signal(int number)
{
    int saved = errno;
    /* Counted before the session is looked at, so that attach(NULL) can wait until it is not used. */
    atomic_fetch_add(&handlers_inside, 1);
    int none = 0;
    if (!atomic_compare_exchange_strong(&signal_seen, &none, number)) {
        atomic_fetch_sub(&handlers_inside, 1);
        return; /* what the first one began is under way */
    }
    pst_session *running = atomic_load(&session);
    if (running != NULL)
        pst_session_cancel(running);
    atomic_fetch_sub(&handlers_inside, 1);
    if (running == NULL && !atomic_load(&polled)) {
        const char *path = atomic_load(&doomed_path);
        if (path != NULL)
            unlink(path);
        cli_progress_clear_in_handler();
        _exit(128 + number);
    }
    errno = saved;
}

void cli_interrupt_install(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct sigaction inherited;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        sigaddset(&action.sa_mask, numbers[i]);
    /* A shell starts background jobs with SIGINT ignored, nohup a program with SIGHUP, and so it shall stay. */
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        if (numbers[i] == SIGTERM || (sigaction(numbers[i], NULL, &inherited) == 0 && inherited.sa_handler != SIG_IGN))
            sigaction(numbers[i], &action, NULL);
    }
    /* A reader that left shows as EPIPE at the next write, which ends the command in order. */
    signal(SIGPIPE, SIG_IGN);
    /* A file that would grow past its limit shows as EFBIG, which every writer tidies up after. */
    signal(SIGXFSZ, SIG_IGN);
}

void cli_interrupt_attach(pst_session *running)
{
    atomic_store(&session, running);
    while (atomic_load(&handlers_inside) > 0)
        sched_yield();
    /* A signal between two sessions of one command. */
    if (running != NULL && atomic_load(&signal_seen) != 0)
        pst_session_cancel(running);
}

void cli_interrupt_polled(bool value)
{
    atomic_store(&polled, value);
}

int cli_interrupted(void)
{
    return atomic_load(&signal_seen);
}

void cli_interrupt_remove(const char *path)
{
    atomic_store(&doomed_path, path);
}
