/* SPDX-License-Identifier: Apache-2.0 */
/* Processor time, and child processes with a socket: orders, answers, ends of either side. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "os/clock.h"
#include "os/process.h"

/* ---- processor time ---- */

static volatile uint64_t sink;

static void *burn(void *unused)
{
    uint64_t end = pst_clock_ns() + 30000000;
    while (pst_clock_ns() < end)
        sink++;
    return unused;
}

static void test_cpu_seconds(void **state)
{
    (void)state;
    double before = pst_os_cpu_seconds();
    usleep(30000);
    assert_true(pst_os_cpu_seconds() - before < 0.020); /* sleeping is free */
    before = pst_os_cpu_seconds();
    while (pst_os_cpu_seconds() - before < 0.020)
        burn(NULL); /* on a busy machine it may take several */
    pthread_t thread;
    before = pst_os_cpu_seconds();
    for (int i = 0; i < 100 && pst_os_cpu_seconds() - before < 0.020; i++) {
        assert_int_equal(pthread_create(&thread, NULL, burn, NULL), 0);
        pthread_join(thread, NULL);
    }
    assert_true(pst_os_cpu_seconds() - before >= 0.020); /* threads that are over count, too */
}

/* ---- children ---- */

typedef struct letter {
    int number;
    char text[1000];
} letter;

/* Answers with number + 1 and what it was given; 99 ends it with that status. */
static int echo_main(int fd, void *context)
{
    letter l;
    while (pst_child_receive(fd, &l, sizeof l, -1) == 0) {
        if (l.number == 99)
            return 99;
        l.number += 1;
        strcpy(l.text, context);
        if (pst_child_send(fd, &l, sizeof l) < 0)
            return 1;
    }
    return 0;
}

static void test_orders(void **state)
{
    (void)state;
    pst_child child;
    pst_error err;
    assert_int_equal(pst_child_start(echo_main, (char[]){"context"}, &child, &err), 0);
    letter l = {.number = 0};
    assert_int_equal(pst_child_receive(child.fd, &l, sizeof l, 10), 1); /* nothing was asked */
    for (int i = 0; i < 90; i++) {
        l.number = i;
        assert_int_equal(pst_child_send(child.fd, &l, sizeof l), 0);
        assert_int_equal(pst_child_receive(child.fd, &l, sizeof l, 10000), 0);
        assert_int_equal(l.number, i + 1);
        assert_string_equal(l.text, "context");
    }
    l.number = 7; /* an answer that is longer or shorter than expected is noticed */
    assert_int_equal(pst_child_send(child.fd, &l, sizeof l), 0);
    assert_int_equal(pst_child_receive(child.fd, &l, sizeof l - 1, 10000), -EPROTO);
    letter two[2];
    assert_int_equal(pst_child_send(child.fd, &l, sizeof l), 0);
    assert_int_equal(pst_child_receive(child.fd, two, sizeof two, 10000), -EPROTO);
    pid_t pid = child.pid;
    pst_child_stop(&child);
    assert_int_equal(child.pid, 0);
    assert_int_equal(kill(pid, 0), -1);
    assert_int_equal(errno, ESRCH); /* waited for */
    pst_child_stop(&child);         /* again is fine */
}

static void test_ends(void **state)
{
    (void)state;
    pst_child child;
    pst_error err;
    letter l = {.number = 99};
    assert_int_equal(pst_child_start(echo_main, (char[]){""}, &child, &err), 0);
    assert_int_equal(pst_child_send(child.fd, &l, sizeof l), 0);
    assert_int_equal(pst_child_receive(child.fd, &l, sizeof l, 10000), -EPIPE);
    assert_int_equal(pst_child_ended(&child, "the child", &err), -ECHILD);
    assert_non_null(strstr(err.message, "the child"));
    assert_non_null(strstr(err.message, "status 99"));
    assert_int_equal(pst_child_ended(&child, "the child", &err), -ECHILD);

    assert_int_equal(pst_child_start(echo_main, (char[]){""}, &child, &err), 0);
    kill(child.pid, SIGINT); /* the parent's business */
    l.number = 1;
    assert_int_equal(pst_child_send(child.fd, &l, sizeof l), 0);
    int status = pst_child_receive(child.fd, &l, sizeof l, 10000);
    if (status == 0) { /* it may have come before the child could take care of it */
        kill(child.pid, SIGKILL);
        assert_int_equal(pst_child_receive(child.fd, &l, sizeof l, 10000), -EPIPE);
        assert_int_equal(pst_child_send(child.fd, &l, sizeof l), -EPIPE);
        assert_int_equal(pst_child_ended(&child, "the child", &err), -ECHILD);
        assert_non_null(strstr(err.message, "signal 9"));
    } else {
        assert_int_equal(status, -EPIPE);
        assert_int_equal(pst_child_ended(&child, "the child", &err), -ECHILD);
    }
}

/* Which descriptors are open above the standard ones: one bit each. */
static int count_main(int fd, void *context)
{
    (void)context;
    uint64_t open = 0;
    for (int other = 3; other < 64; other++)
        open |= fcntl(other, F_GETFD) >= 0 ? UINT64_C(1) << other : 0;
    return pst_child_send(fd, &open, sizeof open) < 0;
}

/* A child keeps no descriptor of other children's: else the end of one would not be seen while another one lives. */
static void test_descriptors(void **state)
{
    (void)state;
    pst_child first, second;
    uint64_t open = 0;
    assert_int_equal(pst_child_start(echo_main, (char[]){""}, &first, NULL), 0);
    assert_int_equal(pst_child_start(count_main, NULL, &second, NULL), 0);
    assert_int_equal(pst_child_receive(second.fd, &open, sizeof open, 10000), 0);
    assert_int_equal(open, UINT64_C(1) << 3);
    assert_int_equal(pst_child_receive(second.fd, &open, sizeof open, 10000), -EPIPE);
    assert_int_equal(pst_child_ended(&second, "the child", NULL), -ECHILD);
    pst_child_stop(&first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_seconds),
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_ends),
        cmocka_unit_test(test_descriptors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
