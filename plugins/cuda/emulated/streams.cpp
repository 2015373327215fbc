/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams, events, copies and launches of the emulator, and graphs of them.
 *
 * Streams are lazy: what is asked of them is queued, and carried out when something has to wait for it, or at some random
 * call before. Only the order of a stream and its waits for events restrict what comes first: who forgets an event meets
 * an order that shows it. Memory that is neither of the device nor pinned makes a copy wait, as with the vendor.
 *
 * A stream that captures keeps what is asked of it, arguments and all, in a list, and a launch of the graph queues all of it. What
 * a capture cannot hold, calls that wait or might, fails and spoils it.
 */
#include "runtime.h"

#include <deque>
#include <memory>
#include <set>
#include <thread>
#include <vector>

using namespace emulated;

namespace
{
struct stream_state;

/* Which orders of tests concern a piece of work when it is carried out. */
enum work_kind { WORK_COPY, WORK_KERNEL, WORK_OTHER };

/* One thing to do: work, or waiting until another stream has done so much. */
struct queued {
    std::function<int()> work;
    std::shared_ptr<stream_state> on;
    uint64_t until;
};

struct noted {
    work_kind kind;
    std::function<int()> work;
};

struct stream_state {
    std::deque<queued> queue;
    uint64_t taken = 0, done = 0;
    bool captures = false, spoilt = false;
    std::thread::id owner; /* who began to capture: the calls of others are none of its business */
    std::vector<noted> captured;
};

std::set<pst_vendor_event> events;
std::map<pst_vendor_stream, std::shared_ptr<stream_state>> streams;
std::set<pst_vendor_graph> graphs;
} // namespace

struct pst_emulated_stream {
    char unused;
};

struct pst_emulated_event {
    std::shared_ptr<stream_state> on; /* NULL: never recorded */
    uint64_t until;
};

struct pst_emulated_graph {
    std::vector<noted> work;
};

/* ---- Streams ---- */

/* Carries out what a stream has to do up to then. */
static void advance(stream_state &stream, uint64_t until)
{
    while (stream.done < until) {
        const queued item = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (item.on != NULL) {
            advance(*item.on, item.until);
        } else if (sticky == EMULATED_OK && untold == EMULATED_OK) {
            const int error = item.work();
            if (error == EMULATED_KERNEL)
                sticky = error;
            else
                untold = error;
        }
        stream.done++;
    }
}

/* Some more of what is queued anywhere. */
static void advance_some(void)
{
    std::vector<stream_state *> busy;
    for (auto &entry : streams)
        if (!entry.second->queue.empty())
            busy.push_back(entry.second.get());
    if (busy.empty())
        return;
    const reach all;
    for (uint64_t steps = 1 + pst_emulated_random_below(3); steps > 0; steps--) {
        stream_state &stream = *busy[pst_emulated_random_below(busy.size())];
        if (!stream.queue.empty())
            advance(stream, stream.done + 1);
    }
}

void emulated::advance_all(void)
{
    const reach all;
    while (true) {
        bool busy = false;
        for (auto &entry : streams)
            busy |= !entry.second->queue.empty();
        if (!busy)
            return;
        advance_some();
    }
}

static int take(pst_vendor_stream stream, queued item)
{
    auto found = streams.find(stream);
    if (found == streams.end())
        return failed(pst_emulated_say(EMULATED_INVALID, "a stream that does not exist"));
    found->second->queue.push_back(std::move(item));
    found->second->taken++;
    if (pst_emulated_random_below(4) == 0)
        advance_some();
    return EMULATED_OK;
}

/* Waits for a stream up to there; what went wrong anywhere since the last time. */
static int wait_for(stream_state &stream, uint64_t until)
{
    if (pst_emulated_random_below(2) == 0)
        advance_some();
    {
        const reach all;
        advance(stream, until);
    }
    const int error = sticky != EMULATED_OK ? sticky : untold;
    untold = EMULATED_OK;
    return failed(error);
}

int emulated::outside_captures(void)
{
    bool any = false;
    for (auto &entry : streams) {
        stream_state &stream = *entry.second;
        if (!stream.captures || stream.owner != std::this_thread::get_id())
            continue;
        any = stream.spoilt = true;
    }
    return any ? pst_emulated_say(EMULATED_CAPTURE, "a call that may wait, while a stream captures") : (int)EMULATED_OK;
}

void emulated::forget_work(void)
{
    for (auto &entry : streams) {
        stream_state &stream = *entry.second;
        stream.queue.clear();
        stream.done = stream.taken;
        stream.captured.clear();
        stream.captures = stream.spoilt = false;
    }
}

void emulated::count_streams(pst_emulated_counts *out)
{
    out->streams = streams.size();
    out->events = events.size();
    out->graphs = graphs.size();
}

pst_vendor_error pst_vendor_stream_create(pst_vendor_stream *out)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (injected(PST_EMULATED_CREATE))
        return failed(EMULATED_INJECTED);
    *out = new pst_emulated_stream();
    streams[*out] = std::make_shared<stream_state>();
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_stream_destroy(pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = outside_captures())
        return failed(error);
    auto found = streams.find(stream);
    if (found == streams.end())
        return failed(pst_emulated_say(EMULATED_INVALID, "a stream that does not exist"));
    {
        const reach all;
        advance(*found->second, found->second->taken);
    }
    streams.erase(found);
    delete stream;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_stream_synchronize(pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = outside_captures())
        return failed(error);
    auto found = streams.find(stream);
    if (found == streams.end())
        return failed(pst_emulated_say(EMULATED_INVALID, "a stream that does not exist"));
    return wait_for(*found->second, found->second->taken);
}

pst_vendor_error pst_vendor_stream_wait(pst_vendor_stream stream, pst_vendor_event event)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (events.count(event) == 0)
        return failed(pst_emulated_say(EMULATED_INVALID, "an event that does not exist"));
    return event->on == NULL ? (int)EMULATED_OK : take(stream, {nullptr, event->on, event->until});
}

pst_vendor_error pst_vendor_event_create(pst_vendor_event *out)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (injected(PST_EMULATED_CREATE))
        return failed(EMULATED_INJECTED);
    *out = new pst_emulated_event();
    events.insert(*out);
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_event_destroy(pst_vendor_event event)
{
    const guard held(lock);
    if (events.erase(event) == 0)
        return failed(pst_emulated_say(EMULATED_INVALID, "an event that does not exist"));
    delete event;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_event_record(pst_vendor_event event, pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    auto found = streams.find(stream);
    if (events.count(event) == 0 || found == streams.end())
        return failed(pst_emulated_say(EMULATED_INVALID, "an event or a stream that does not exist"));
    event->on = found->second;
    event->until = found->second->taken;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_event_synchronize(pst_vendor_event event)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (events.count(event) == 0)
        return failed(pst_emulated_say(EMULATED_INVALID, "an event that does not exist"));
    return event->on == NULL ? (int)EMULATED_OK : wait_for(*event->on, event->until);
}

pst_vendor_error pst_vendor_event_query(pst_vendor_event event, bool *done)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (int error = outside_captures())
        return failed(error);
    if (events.count(event) == 0)
        return failed(pst_emulated_say(EMULATED_INVALID, "an event that does not exist"));
    *done = event->on == NULL || event->on->done >= event->until;
    if (!*done) { /* time passes */
        const reach all;
        advance(*event->on, event->on->done + pst_emulated_random_below(2));
        advance_some();
    }
    return EMULATED_OK;
}

/* ---- Copies and launches ---- */

/* Ordinary memory of the host: the copy may be done when the call returns, or be like any other: GPUs differ. *waits. */
static int check_range(const void *address, size_t bytes, const char *what, bool *waits)
{
    bool partly;
    const allocation *a = find(address, bytes, &partly);
    if (partly)
        return pst_emulated_say(EMULATED_INVALID, "%zu bytes %s %p go beyond what was allocated", bytes, what, address);
    *waits |= a == NULL;
    return EMULATED_OK;
}

/* What a piece of work becomes when a test wants it to fail. */
static std::function<int()> as_ordered(work_kind kind, const std::function<int()> &work)
{
    if (kind == WORK_COPY && injected(PST_EMULATED_COPY_LATER))
        return [] { return (int)EMULATED_INJECTED; };
    if (kind == WORK_KERNEL && injected(PST_EMULATED_LAUNCH_LATER))
        return [] { return (int)EMULATED_KERNEL; };
    return work;
}

/* Queues work, or notes it where the stream captures. */
static int enter(pst_vendor_stream stream, work_kind kind, const std::function<int()> &work)
{
    auto found = streams.find(stream);
    if (found == streams.end() || !found->second->captures)
        return take(stream, {as_ordered(kind, work), NULL, 0});
    if (found->second->spoilt)
        return failed(pst_emulated_say(EMULATED_CAPTURE, "what the stream captures is spoilt"));
    found->second->captured.push_back({kind, work});
    return EMULATED_OK;
}

static bool is_capturing(pst_vendor_stream stream)
{
    auto found = streams.find(stream);
    return found != streams.end() && found->second->captures;
}

static int carry_out(pst_vendor_stream stream, bool waits, const std::function<int()> &work)
{
    if (injected(PST_EMULATED_COPY))
        return failed(EMULATED_INJECTED);
    if (waits && is_capturing(stream)) {
        streams[stream]->spoilt = true;
        return failed(pst_emulated_say(EMULATED_CAPTURE, "a copy of ordinary memory, while the stream captures"));
    }
    if (int error = enter(stream, WORK_COPY, work))
        return error;
    if (!waits || pst_emulated_random_below(2) == 0)
        return EMULATED_OK;
    stream_state &state = *streams[stream];
    return wait_for(state, state.taken);
}

pst_vendor_error pst_vendor_copy(void *to, const void *from, size_t bytes, pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    bool waits = false;
    if (int error = check_range(to, bytes, "to", &waits))
        return failed(error);
    if (int error = check_range(from, bytes, "from", &waits))
        return failed(error);
    return carry_out(stream, waits, [to, from, bytes] {
        memmove(to, from, bytes);
        return (int)EMULATED_OK;
    });
}

bool pst_vendor_knows(const void *at)
{
    const guard held(lock);
    bool partly;
    return find(at, 1, &partly) != NULL;
}

pst_vendor_error pst_vendor_fill(void *to, int byte, size_t bytes, pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    bool waits = false;
    if (int error = check_range(to, bytes, "to", &waits))
        return failed(error);
    if (waits)
        return failed(pst_emulated_say(EMULATED_INVALID, "a fill of memory that the device does not know"));
    return carry_out(stream, false, [to, byte, bytes] {
        memset(to, byte, bytes);
        return (int)EMULATED_OK;
    });
}

int pst_emulated_take(void *stream, pst_emulated_work *work, pst_emulated_work *release, void *context)
{
    const guard held(lock);
    const std::shared_ptr<void> owned(context, release);
    if (int error = ready())
        return error;
    return enter((pst_vendor_stream)stream, WORK_OTHER, [work, owned] {
        work(owned.get());
        return (int)EMULATED_OK;
    });
}

static int check_launch(const pst_emulated_grid &g)
{
    const dim3 &block = g.block, &grid = g.grid;
    if (block.x == 0 || block.y == 0 || block.z == 0 || block.z > 64 || block.x > PST_EMULATED_MAX_THREADS ||
        block.y > PST_EMULATED_MAX_THREADS || (uint64_t)block.x * block.y * block.z > PST_EMULATED_MAX_THREADS)
        return pst_emulated_say(EMULATED_INVALID, "kernel %s: blocks of %u x %u x %u threads", g.name, block.x, block.y,
                                block.z);
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
        return pst_emulated_say(EMULATED_INVALID, "kernel %s: a grid of %u x %u x %u blocks", g.name, grid.x, grid.y,
                                grid.z);
    if (g.shared_bytes > shared_limit)
        return pst_emulated_say(EMULATED_INVALID, "kernel %s: %zu bytes of shared memory", g.name, g.shared_bytes);
    return EMULATED_OK;
}

pst_vendor_error pst_emulated_launch(const char *name, const void *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                                     pst_vendor_stream stream, std::function<void()> thread)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    const pst_emulated_grid all = {name, kernel, grid, block, shared_bytes, std::move(thread)};
    if (int error = check_launch(all))
        return failed(error);
    if (injected(PST_EMULATED_LAUNCH))
        return failed(EMULATED_INJECTED);
    return enter(stream, WORK_KERNEL, [all] { return pst_emulated_run_grid(all); });
}

/* ---- Graphs ---- */

pst_vendor_error pst_vendor_capture_begin(pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    auto found = streams.find(stream);
    if (found == streams.end() || found->second->captures)
        return failed(pst_emulated_say(EMULATED_INVALID, "a stream that captures already, or does not exist"));
    if (injected(PST_EMULATED_GRAPH))
        return failed(EMULATED_INJECTED);
    found->second->captures = true;
    found->second->owner = std::this_thread::get_id();
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_capture_end(pst_vendor_stream stream, pst_vendor_graph *out)
{
    const guard held(lock);
    auto found = streams.find(stream);
    if (found == streams.end() || !found->second->captures)
        return failed(pst_emulated_say(EMULATED_INVALID, "a stream that does not capture"));
    stream_state &state = *found->second;
    const bool spoilt = state.spoilt;
    std::vector<noted> work = std::move(state.captured);
    state.captured.clear();
    state.captures = state.spoilt = false;
    if (int error = ready())
        return failed(error);
    if (spoilt)
        return failed(pst_emulated_say(EMULATED_CAPTURE, "what the stream captured is spoilt"));
    if (out == NULL)
        return EMULATED_OK;
    if (injected(PST_EMULATED_GRAPH))
        return failed(EMULATED_INJECTED);
    *out = new pst_emulated_graph{std::move(work)};
    graphs.insert(*out);
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_graph_launch(pst_vendor_graph graph, pst_vendor_stream stream)
{
    const guard held(lock);
    if (int error = ready())
        return failed(error);
    if (graphs.count(graph) == 0 || is_capturing(stream))
        return failed(pst_emulated_say(EMULATED_INVALID, "a graph that does not exist, or a stream that captures"));
    if (injected(PST_EMULATED_GRAPH))
        return failed(EMULATED_INJECTED);
    for (const noted &item : graph->work)
        if (int error = take(stream, {as_ordered(item.kind, item.work), NULL, 0}))
            return error;
    return EMULATED_OK;
}

pst_vendor_error pst_vendor_graph_destroy(pst_vendor_graph graph)
{
    const guard held(lock);
    if (graphs.erase(graph) == 0)
        return failed(pst_emulated_say(EMULATED_INVALID, "a graph that does not exist"));
    delete graph;
    return EMULATED_OK;
}
