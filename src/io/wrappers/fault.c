/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The misbehaving wrapper around an engine.
 *
 * Requests get numbers in the order in which they arrive, over all queues. All that chance decides about a request
 * follows from the seed and its number. The inner engine never sees the library's requests but copies of them (an
 * `item` each), so that what it is asked for may differ: a part of a write, or several parts, one after the other.
 *
 * An item is with the inner engine, or held back (`held`), or finished (`ready`), or waits to be given to the inner
 * engine again (`start`). Nothing polls without a pause: while results are held back the queue sleeps in small steps,
 * and it waits in the inner engine when nothing is.
 *
 * A synchronous inner engine stays one: submit carries out whatever has to be done to the request, delays included,
 * before it returns.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/number.h"
#include "io/engine.h"
#include "os/clock.h"
#include "os/sys.h"
#include "penstock/io_fault.h"

enum {
    ALL_FAULTS =
        PST_IO_FAULT_ERROR | PST_IO_FAULT_SHORT | PST_IO_FAULT_DELAY | PST_IO_FAULT_REORDER | PST_IO_FAULT_TORN,
    SECTOR_BYTES = 512,
    SAFE_UNIT_BYTES = 4096,
    DEFAULT_MAX_DELAY_NS = 2000000,
    DEFAULT_WINDOW = 8,
    NAP_NS = 1000000,     /* at most, so that `wake` is noticed */
    SHORT_NAP_NS = 100000 /* while the inner engine may have results, too */
};

/* What a read's buffer holds behind a short transfer: who takes it for data shall notice. */
enum { SCRIBBLE = 0xdb };

typedef struct wrapper {
    pst_io_engine table; /* first: open_queue gets this */
    const pst_io_engine *inner;
    pst_io_fault_options options;             /* defaults filled in; `errors` is not used */
    char *name, *description;                 /* owned */
    atomic_uint_fast64_t requests, counts[5]; /* by the bits of `faults` */
    uint32_t error_count, read_error_count;   /* the first read_error_count of them may strike reads */
    int errors[];
} wrapper;

typedef struct part {
    uint32_t at, bytes; /* of the request */
} part;

typedef struct item {
    pst_io_request request; /* first: the inner engine hands this back */
    pst_io_request *outer;
    struct item *next;
    unsigned fault;  /* the one that strikes, or 0 */
    uint64_t random; /* state */
    uint64_t due_ns; /* DELAY: not to be handed out before; 0: not delayed */
    uint32_t passes; /* REORDER: results of others that go first */
    uint32_t shown;  /* SHORT: bytes that a write reports at most */
    unsigned parts_left;
    part parts[2]; /* TORN: what reaches the file */
} item;

typedef struct queue {
    wrapper *w;
    const pst_io_engine *engine; /* the inner one */
    void *inner;
    atomic_bool woken;
    uint32_t depth, with_inner, reordered;
    item *free, *held, *start;
    item *ready, **ready_last;
    pst_io_request **requests; /* depth of them */
    item items[];
} queue;

/* ---- chance ---- */

static uint64_t draw_below(uint64_t *state, uint64_t limit)
{
    return pst_random_next(state) % limit;
}

static unsigned bit_number(unsigned fault)
{
    return (unsigned)__builtin_ctz(fault);
}

/* What can happen to this request. */
static unsigned possible_faults(const wrapper *w, const pst_io_request *r)
{
    unsigned possible = w->options.faults;
    if (!r->write)
        possible &= ~(unsigned)PST_IO_FAULT_TORN;
    if (r->bytes < 2)
        possible &= ~(unsigned)PST_IO_FAULT_SHORT;
    if (!r->write && w->read_error_count == 0)
        possible &= ~(unsigned)PST_IO_FAULT_ERROR;
    return possible;
}

/* The fault that strikes the request of this number, or 0. */
static unsigned choose_fault(const wrapper *w, const pst_io_request *r, uint64_t number, uint64_t *random)
{
    const pst_io_fault_options *o = &w->options;
    *random = o->seed ^ (number + 1) * 0xd1342543de82ef95u;
    bool strikes = (double)(pst_random_next(random) >> 11) * 0x1p-53 < o->rate;
    if (o->times > 0 && number >= (uint64_t)o->at && number - (uint64_t)o->at < (uint64_t)o->times)
        strikes = true;
    unsigned possible = possible_faults(w, r);
    if (!strikes || possible == 0 || !(r->write ? o->writes : o->reads))
        return 0;
    for (uint64_t skip = draw_below(random, (uint64_t)__builtin_popcount(possible)); skip > 0; skip--)
        possible &= possible - 1;
    return possible & -possible;
}

/* ---- sectors ---- */

/* What a write can be cut into. A direct write keeps to the alignment that the file demands; where the system does not
 * tell it, to 4096. */
static uint32_t unit_of(const pst_io_request *r, bool *direct)
{
    int flags = pst_sys->open_flags(r->fd);
    *direct = flags < 0 || (flags & O_DIRECT) != 0;
    if (!*direct)
        return SECTOR_BYTES;
    uint32_t unit = 0;
#ifdef STATX_DIOALIGN
    struct statx info;
    if (pst_sys->statx(r->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info) >= 0 && (info.stx_mask & STATX_DIOALIGN) != 0)
        unit = info.stx_dio_offset_align > info.stx_dio_mem_align ? info.stx_dio_offset_align : info.stx_dio_mem_align;
#endif
    if (unit == 0)
        unit = SAFE_UNIT_BYTES;
    return unit > SECTOR_BYTES ? unit : SECTOR_BYTES;
}

typedef struct sectors {
    uint32_t head, unit, bytes, count; /* the first one may be smaller, the last one too */
} sectors;

/* Sectors are those of the file, so the first and the last sector of a buffered write may be parts of one. */
static sectors sectors_of(const pst_io_request *r)
{
    bool direct;
    sectors s = {.bytes = r->bytes, .unit = unit_of(r, &direct)};
    s.head = direct ? s.unit : s.unit - (uint32_t)(r->offset % s.unit);
    s.count = s.bytes <= s.head ? 1 : 1 + (s.bytes - s.head + s.unit - 1) / s.unit;
    return s;
}

/* Where the nth sector begins; n may be `count`. */
static uint32_t sector_start(const sectors *s, uint32_t n)
{
    if (n == 0)
        return 0;
    uint64_t at = s->head + (uint64_t)(n - 1) * s->unit;
    return at < s->bytes ? (uint32_t)at : s->bytes;
}

/* Some of the sectors from `first` up to `end`, in one row, or none. */
static void add_part(item *it, const sectors *s, uint32_t first, uint32_t end)
{
    if (first >= end || draw_below(&it->random, 4) == 0)
        return;
    uint32_t from = first + (uint32_t)draw_below(&it->random, end - first);
    uint32_t to = from + 1 + (uint32_t)draw_below(&it->random, end - from);
    uint32_t at = sector_start(s, from);
    it->parts[it->parts_left++] = (part){.at = at, .bytes = sector_start(s, to) - at};
}

/* One sector never reaches the file; of those before it and of those behind it, some do. A single one does or does
 * not. */
static void tear(item *it)
{
    sectors s = sectors_of(&it->request);
    it->parts_left = 0;
    if (s.count == 1) {
        if (draw_below(&it->random, 2) == 0)
            it->parts[it->parts_left++] = (part){.at = 0, .bytes = s.bytes};
        return;
    }
    uint32_t victim = (uint32_t)draw_below(&it->random, s.count);
    add_part(it, &s, 0, victim);
    add_part(it, &s, victim + 1, s.count);
}

/* Lowers what a write asks for to what it will report, rounded up to whole sectors. */
static void shorten_write(item *it)
{
    sectors s = sectors_of(&it->request);
    it->shown = 1 + (uint32_t)draw_below(&it->random, it->request.bytes - 1);
    uint32_t n = it->shown <= s.head ? 1 : 1 + (it->shown - s.head + s.unit - 1) / s.unit;
    it->request.bytes = sector_start(&s, n);
}

/* ---- the life of an item ---- */

static void make_ready(queue *q, item *it)
{
    it->next = NULL;
    *q->ready_last = it;
    q->ready_last = &it->next;
}

static void hold(queue *q, item *it)
{
    it->next = q->held;
    q->held = it;
}

/* Gives the inner engine the next part of a torn write; false when there is none. */
static bool take_part(item *it)
{
    if (it->parts_left == 0)
        return false;
    part p = it->parts[--it->parts_left];
    it->request.address = (char *)it->outer->address + p.at;
    it->request.offset = it->outer->offset + p.at;
    it->request.bytes = p.bytes;
    it->request.result = 0;
    return true;
}

/* True when the inner engine has something to do for it. */
static bool begin(queue *q, item *it)
{
    wrapper *w = q->w;
    uint64_t number = atomic_fetch_add(&w->requests, 1);
    it->fault = choose_fault(w, it->outer, number, &it->random);
    it->due_ns = 0;
    it->passes = 0;
    it->shown = UINT32_MAX;
    it->parts_left = 0;
    if (it->fault != 0)
        atomic_fetch_add(&w->counts[bit_number(it->fault)], 1);
    switch (it->fault) {
    case PST_IO_FAULT_ERROR:
        it->request.result =
            -w->errors[draw_below(&it->random, it->request.write ? w->error_count : w->read_error_count)];
        return false;
    case PST_IO_FAULT_SHORT:
        if (it->request.write)
            shorten_write(it);
        return true;
    case PST_IO_FAULT_TORN:
        tear(it);
        it->request.result = -EIO;
        return take_part(it);
    default: return true;
    }
}

static void end_short(item *it)
{
    pst_io_request *r = &it->request;
    if (r->write) {
        if (r->result > (int64_t)it->shown)
            r->result = it->shown;
    } else if (r->result > 1) {
        int64_t shown = 1 + (int64_t)draw_below(&it->random, (uint64_t)r->result - 1);
        memset((char *)r->address + shown, SCRIBBLE, (size_t)(r->result - shown));
        r->result = shown;
    }
}

static void hold_for_a_time(queue *q, item *it)
{
    const pst_io_fault_options *o = &q->w->options;
    it->due_ns = pst_clock_ns() + o->min_delay_ns + draw_below(&it->random, o->max_delay_ns - o->min_delay_ns + 1);
    hold(q, it);
}

/* The inner engine has handed it back. */
static void finish(queue *q, item *it)
{
    switch (it->fault) {
    case PST_IO_FAULT_SHORT: end_short(it); break;
    case PST_IO_FAULT_TORN:
        if (take_part(it)) {
            it->next = q->start;
            q->start = it;
            return;
        }
        it->request.result = -EIO;
        break;
    case PST_IO_FAULT_DELAY: hold_for_a_time(q, it); return;
    case PST_IO_FAULT_REORDER:
        if ((q->engine->flags & PST_IO_ENGINE_SYNCHRONOUS) != 0) { /* one at a time: only other queues can pass it */
            hold_for_a_time(q, it);
            return;
        }
        it->passes = 1 + (uint32_t)draw_below(&it->random, q->w->options.reorder_window);
        q->reordered++;
        hold(q, it);
        return;
    default: break;
    }
    make_ready(q, it);
}

/* ---- the queue ---- */

static void give_inner(queue *q, uint32_t count)
{
    if (count == 0)
        return;
    q->with_inner += count;
    q->engine->submit(q->inner, q->requests, count);
}

static void give_started(queue *q)
{
    uint32_t count = 0;
    for (; q->start != NULL; q->start = q->start->next)
        q->requests[count++] = &q->start->request;
    give_inner(q, count);
}

static uint32_t collect(queue *q, bool wait)
{
    uint32_t count = q->engine->reap(q->inner, q->requests, q->depth, wait);
    q->with_inner -= count;
    for (uint32_t i = 0; i < count; i++)
        finish(q, (item *)(void *)q->requests[i]);
    return count;
}

/* Releases what is due or was passed often enough. */
static void release_due(queue *q)
{
    uint64_t now = q->held != NULL ? pst_clock_ns() : 0;
    for (item **at = &q->held; *at != NULL;) {
        item *it = *at;
        if (it->due_ns != 0 ? it->due_ns > now : it->passes > 0) {
            at = &it->next;
            continue;
        }
        *at = it->next;
        q->reordered -= it->due_ns == 0;
        make_ready(q, it);
    }
}

/* Releases the one among those held back for reordering that has the fewest to wait for. */
static void release_reordered(queue *q)
{
    item **least = NULL;
    for (item **at = &q->held; *at != NULL; at = &(*at)->next) {
        if ((*at)->due_ns == 0 && (least == NULL || (*at)->passes < (*least)->passes))
            least = at;
    }
    if (least == NULL)
        return;
    item *it = *least;
    *least = it->next;
    q->reordered--;
    make_ready(q, it);
}

static void release(queue *q)
{
    release_due(q);
    while (q->reordered > q->w->options.reorder_window)
        release_reordered(q);
    if (q->ready == NULL && q->with_inner == 0 && q->start == NULL && q->reordered > 0)
        release_reordered(q); /* there is nothing left that could pass it */
}

static uint32_t hand_out(queue *q, pst_io_request **done, uint32_t max)
{
    uint32_t count = 0;
    while (count < max && q->ready != NULL) {
        item *it = q->ready;
        q->ready = it->next;
        if (q->ready == NULL)
            q->ready_last = &q->ready;
        it->outer->result = it->request.result;
        done[count++] = it->outer;
        it->next = q->free;
        q->free = it;
        for (item *other = q->held; other != NULL; other = other->next)
            other->passes -= other->passes > 0;
    }
    return count;
}

/* When the next delayed result is due; UINT64_MAX when none is held back. */
static uint64_t next_due(const queue *q)
{
    uint64_t due = UINT64_MAX;
    for (const item *it = q->held; it != NULL; it = it->next)
        due = it->due_ns != 0 && it->due_ns < due ? it->due_ns : due;
    return due;
}

static void nap(const queue *q)
{
    uint64_t due = next_due(q), now = pst_clock_ns();
    if (due <= now || due == UINT64_MAX)
        return;
    uint64_t longest = q->with_inner > 0 ? SHORT_NAP_NS : NAP_NS;
    pst_sys->sleep_ns(due - now < longest ? due - now : longest);
}

static void submit(void *handle, pst_io_request *const *requests, uint32_t count)
{
    queue *q = handle;
    uint32_t give = 0;
    for (uint32_t i = 0; i < count; i++) {
        item *it = q->free;
        q->free = it->next;
        it->request = *requests[i];
        it->outer = requests[i];
        if (begin(q, it))
            q->requests[give++] = &it->request;
        else
            make_ready(q, it);
    }
    give_inner(q, give);
    if ((q->engine->flags & PST_IO_ENGINE_SYNCHRONOUS) == 0)
        return;
    for (; q->with_inner > 0 || q->held != NULL; release(q)) {
        if (q->with_inner > 0)
            collect(q, true);
        give_started(q);
        nap(q);
    }
}

static uint32_t reap(void *handle, pst_io_request **done, uint32_t max, bool wait)
{
    queue *q = handle;
    for (;;) {
        /* Waiting inside is right only when nothing here will become due without it. */
        bool block = wait && q->ready == NULL && next_due(q) == UINT64_MAX && (q->with_inner > 0 || q->held == NULL);
        uint32_t collected = q->with_inner > 0 || block ? collect(q, block) : 0;
        give_started(q);
        release(q);
        uint32_t count = hand_out(q, done, max);
        bool woken = atomic_exchange(&q->woken, false);
        if (count > 0 || !wait || woken || (block && collected == 0))
            return count;
        nap(q);
    }
}

static void wake(void *handle)
{
    queue *q = handle;
    atomic_store(&q->woken, true); /* first: the inner reap returns because of the next line, and finds it */
    q->engine->wake(q->inner);
}

static int set_file(void *handle, uint32_t slot, int fd)
{
    queue *q = handle;
    return q->engine->set_file(q->inner, slot, fd);
}

static int set_buffer(void *handle, uint32_t slot, void *memory, uint64_t bytes)
{
    queue *q = handle;
    return q->engine->set_buffer(q->inner, slot, memory, bytes);
}

static int open_queue(const pst_io_engine *self, const pst_io_queue_settings *settings, void **out, pst_error *err)
{
    wrapper *w = (wrapper *)(uintptr_t)self; /* made by pst_io_fault_create; only its counters change */
    size_t bytes = sizeof(queue) + settings->depth * sizeof(item);
    queue *q = pst_heap_calloc(1, bytes);
    pst_io_request **requests = pst_heap_calloc(settings->depth, sizeof *requests);
    int status = q == NULL || requests == NULL ? pst_fail_memory(err, "an I/O queue", bytes) : 0;
    void *inner = NULL;
    if (status >= 0)
        status = w->inner->open_queue(w->inner, settings, &inner, err);
    if (status < 0) {
        pst_heap_free(q);
        pst_heap_free(requests);
        return status;
    }
    q->w = w;
    q->engine = w->inner;
    q->inner = inner;
    q->depth = settings->depth;
    q->requests = requests;
    q->ready_last = &q->ready;
    for (uint32_t i = settings->depth; i-- > 0;) {
        q->items[i].next = q->free;
        q->free = &q->items[i];
    }
    *out = q;
    return 0;
}

static void close_queue(void *handle)
{
    queue *q = handle;
    q->engine->close_queue(q->inner);
    pst_heap_free(q->requests);
    pst_heap_free(q);
}

/* ---- making one ---- */

/* For reads first; ENOSPC is nothing that happens to them. */
static const int default_errors[] = {EIO, ENOMEM, EAGAIN, EINTR, ENOSPC};
enum { DEFAULT_ERRORS = sizeof default_errors / sizeof default_errors[0] };

static int check_options(const pst_io_fault_options *o, pst_error *err)
{
    if ((o->faults & ~(uint32_t)ALL_FAULTS) != 0)
        return pst_fail(err, PST_E_USAGE, NULL, "there is no I/O fault %#x", o->faults & ~(uint32_t)ALL_FAULTS);
    if (!(o->rate >= 0 && o->rate <= 1))
        return pst_fail(err, PST_E_USAGE, NULL, "a rate of I/O faults is a chance between 0 and 1, not %g", o->rate);
    if (o->at < 0 || o->times < 0)
        return pst_fail(err, PST_E_USAGE, NULL, "I/O faults at %lld, %lld times, make no sense", (long long)o->at,
                        (long long)o->times);
    if (o->min_delay_ns > o->max_delay_ns || o->max_delay_ns > INT64_MAX)
        return pst_fail(err, PST_E_USAGE, NULL, "delays of %llu to %llu ns make no sense",
                        (unsigned long long)o->min_delay_ns, (unsigned long long)o->max_delay_ns);
    for (uint32_t i = 0; o->errors != NULL && i < o->error_count; i++) {
        if (o->errors[i] <= 0)
            return pst_fail(err, PST_E_USAGE, NULL, "%d is no errno value", o->errors[i]);
    }
    return 0;
}

static void fill_defaults(pst_io_fault_options *o)
{
    if (!o->reads && !o->writes)
        o->reads = o->writes = true;
    if (o->max_delay_ns == 0)
        o->max_delay_ns = o->min_delay_ns > DEFAULT_MAX_DELAY_NS ? o->min_delay_ns : DEFAULT_MAX_DELAY_NS;
    if (o->reorder_window == 0)
        o->reorder_window = DEFAULT_WINDOW;
    if (o->error_count == 0)
        o->errors = NULL;
}

/* The first that works of those that "auto" would try. */
static int find_auto(const pst_io_engine **out, pst_error *err)
{
    int status = PST_E_UNSUPPORTED;
    const pst_io_engine *engine;
    for (unsigned n = 0; (engine = pst_io_engine_choice(n, NULL)) != NULL; n++) {
        pst_io_queue_settings settings = {.struct_size = sizeof settings, .depth = 1};
        void *opened;
        status = engine->open_queue(engine, &settings, &opened, err);
        if (status < 0)
            continue;
        engine->close_queue(opened);
        *out = engine;
        return 0;
    }
    return status;
}

static int find_inner(const pst_io_engine **inner, const char *name, pst_error *err)
{
    if (*inner == NULL && (name == NULL || strcmp(name, "auto") == 0))
        return find_auto(inner, err);
    if (*inner == NULL)
        *inner = pst_io_engine_find(name);
    if (*inner == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "there is no I/O engine \"%s\"", name);
    return pst_io_engine_check(*inner, err);
}

static void fill_table(wrapper *w)
{
    const pst_io_engine *inner = w->inner;
    w->table = (pst_io_engine){.version = PST_IO_ENGINE_VERSION,
                               .struct_size = sizeof(pst_io_engine),
                               .name = w->name,
                               .description = w->description,
                               .flags = inner->flags,
                               .open_queue = open_queue,
                               .close_queue = close_queue,
                               .submit = submit,
                               .reap = reap};
    if (PST_IO_ENGINE_HAS(inner, wake))
        w->table.wake = wake;
    if ((inner->flags & PST_IO_ENGINE_FILE_SLOTS) != 0)
        w->table.set_file = set_file;
    if ((inner->flags & PST_IO_ENGINE_BUFFER_SLOTS) != 0)
        w->table.set_buffer = set_buffer;
}

int pst_io_fault_create(const pst_io_engine *inner, const char *inner_name, const pst_io_fault_options *options,
                        pst_io_engine **out, pst_error *err)
{
    pst_io_fault_options own = {0};
    if (options != NULL) {
        size_t known = options->struct_size;
        memcpy(&own, options, known == 0 || known > sizeof own ? sizeof own : known);
    }
    fill_defaults(&own);
    PST_TRY(check_options(&own, err));
    PST_TRY(find_inner(&inner, inner_name, err));
    const int *errors = own.errors != NULL ? own.errors : default_errors;
    uint32_t count = own.errors != NULL ? own.error_count : DEFAULT_ERRORS;
    wrapper *w = pst_heap_calloc(1, sizeof *w + count * sizeof w->errors[0]);
    if (w == NULL)
        return pst_fail_memory(err, "an I/O engine", sizeof *w);
    w->inner = inner;
    w->name = pst_heap_printf("fault:%s", inner->name);
    w->description = pst_heap_printf("faults on purpose around %s", inner->name);
    if (w->name == NULL || w->description == NULL) {
        pst_io_fault_destroy(&w->table);
        return pst_fail_memory(err, "an I/O engine", sizeof *w);
    }
    w->options = own;
    w->options.errors = NULL; /* the caller's */
    w->error_count = count;
    w->read_error_count = own.errors != NULL ? count : DEFAULT_ERRORS - 1;
    memcpy(w->errors, errors, count * sizeof errors[0]);
    fill_table(w);
    *out = &w->table;
    return 0;
}

void pst_io_fault_destroy(pst_io_engine *engine)
{
    if (engine == NULL)
        return;
    wrapper *w = (wrapper *)(void *)engine;
    pst_heap_free(w->name);
    pst_heap_free(w->description);
    pst_heap_free(w);
}

void pst_io_fault_get_counts(const pst_io_engine *engine, pst_io_fault_counts *out)
{
    wrapper *w = (wrapper *)(uintptr_t)engine;
    *out = (pst_io_fault_counts){.requests = atomic_load(&w->requests),
                                 .errors = atomic_load(&w->counts[0]),
                                 .shorts = atomic_load(&w->counts[1]),
                                 .delays = atomic_load(&w->counts[2]),
                                 .reorders = atomic_load(&w->counts[3]),
                                 .torn = atomic_load(&w->counts[4])};
}
