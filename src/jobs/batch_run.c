/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running a batch job. Lines that have no answer yet go through the session, choice by choice; a line whose last choice
 * ended is answered in the journal. When all are answered, the answers are written out in the input's order, published,
 * and only then the journal goes away: whatever moment a failure picks, there is the journal, or the whole output, or both.
 */
#include <fcntl.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "jobs/batch_internal.h"
#include "os/clock.h"
#include "os/file.h"
#include "os/sys.h"

/* ---- answering ---- */

static int sync_now_and_then(pst_batch *b, pst_error *err)
{
    uint64_t now = pst_clock_ns();
    if ((double)(now - b->last_sync_ns) < b->options.sync_seconds * 1e9)
        return 0;
    b->last_sync_ns = now;
    return pst_journal_sync(b->journal, err);
}

static int answer(pst_batch *b, pst_batch_group *g, pst_error *err)
{
    pst_json_text text = {0};
    int status = pst_batch_answer(b, &g->line, g->results, &text, err);
    if (status >= 0)
        status = pst_journal_append(b->journal, g->line.index, g->line.error_code != NULL, text.text, text.bytes, err);
    pst_json_text_free(&text);
    PST_TRY(status);
    b->progress.done++;
    return sync_now_and_then(b, err);
}

void pst_batch_drop_group(pst_batch *b, pst_batch_group *g)
{
    if (g->previous != NULL)
        g->previous->next = g->next;
    else
        b->groups = g->next;
    if (g->next != NULL)
        g->next->previous = g->previous;
    for (size_t i = 0; g->results != NULL && i < g->line.choices; i++)
        pst_result_free(&g->results[i]);
    pst_heap_free(g->results);
    pst_batch_line_free(&g->line);
    pst_heap_free(g);
}

static int end_choice(pst_batch *b, pst_batch_group *g, pst_error *err)
{
    if (++g->ended < g->line.choices)
        return 0;
    PST_TRY(answer(b, g, err));
    pst_batch_drop_group(b, g);
    return 0;
}

/* ---- the source ---- */

/* Makes the line the current one, or answers it where nothing is to be computed. */
static int begin_line(pst_batch *b, const pst_batch_raw *raw, pst_error *err)
{
    pst_batch_group *g = pst_heap_calloc(1, sizeof *g);
    if (g == NULL)
        return pst_fail_memory(err, "a line", sizeof *g);
    g->next = b->groups;
    if (b->groups != NULL)
        b->groups->previous = g;
    b->groups = g;
    PST_TRY(pst_batch_line_read(&b->rules, raw, &g->line, err));
    if (g->line.error_code != NULL || g->line.choices == 0) {
        PST_TRY(answer(b, g, err));
        pst_batch_drop_group(b, g);
        return pst_batch_tell(b, err);
    }
    if (b->options.kind == PST_BATCH_GENERATE) {
        g->results = pst_heap_calloc(g->line.choices, sizeof *g->results);
        if (g->results == NULL)
            return pst_fail_memory(err, "results", g->line.choices * sizeof *g->results);
    }
    b->current = g;
    return 0;
}

/* 1: there is a current line with a choice to give; 0: the input is over. */
static int find_choice(pst_batch *b, pst_error *err)
{
    while (b->current == NULL) {
        pst_batch_raw raw;
        int status = pst_batch_input_next(b->input, &raw, err);
        PST_TRY(status);
        if (status == 0) {
            if (pst_batch_input_digest(b->input) != b->input_digest)
                return pst_fail(err, PST_E_FORMAT, b->options.input, "was changed while it was read");
            return 0;
        }
        int found = pst_journal_find(b->journal, raw.index, err);
        PST_TRY(found);
        if (found == 0)
            PST_TRY(begin_line(b, &raw, err));
    }
    return 1;
}

/* Notes the current line's next choice as one that the session has. */
static int give_choice(pst_batch *b, pst_batch_entry **out, pst_error *err)
{
    int status = find_choice(b, err);
    if (status <= 0)
        return status;
    if (b->entry_count == b->entry_capacity) {
        size_t capacity = b->entry_capacity * 2 + 8;
        pst_batch_entry *grown = pst_heap_reallocarray(b->entries, capacity, sizeof *grown);
        if (grown == NULL)
            return pst_fail_memory(err, "requests", capacity * sizeof *grown);
        b->entries = grown;
        b->entry_capacity = capacity;
    }
    pst_batch_group *g = b->current;
    *out = &b->entries[b->entry_count++];
    **out = (pst_batch_entry){.number = b->given++, .group = g, .choice = g->given++};
    if (g->given == g->line.choices)
        b->current = NULL;
    return 1;
}

static pst_batch_entry take_entry(pst_batch *b, size_t number)
{
    size_t i = 0;
    while (b->entries[i].number != number)
        i++;
    pst_batch_entry entry = b->entries[i];
    b->entries[i] = b->entries[--b->entry_count];
    return entry;
}

static void note_failure(pst_batch_group *g, const pst_error *failure)
{
    if (failure != NULL)
        pst_batch_line_fail(&g->line, "server_error", "%s", failure->message);
}

/* ---- generation ---- */

static int next_request(void *user, pst_request *out, pst_error *err)
{
    pst_batch *b = user;
    pst_batch_entry *entry;
    int status = give_choice(b, &entry, err);
    if (status == 1)
        pst_batch_line_request(&b->rules, &entry->group->line, entry->choice, out);
    return status;
}

static int on_result(void *user, size_t request, pst_result *result, const pst_error *failure, pst_error *err)
{
    pst_batch *b = user;
    pst_batch_entry entry = take_entry(b, request);
    entry.group->results[entry.choice] = *result;
    *result = (pst_result){0};
    note_failure(entry.group, failure);
    return end_choice(b, entry.group, err);
}

static int on_token(void *user, size_t request, uint32_t id, const char *text, size_t bytes)
{
    (void)request;
    (void)text;
    (void)bytes;
    pst_batch *b = user;
    b->progress.tokens += id != UINT32_MAX;
    return pst_batch_tell(b, NULL) < 0;
}

/* ---- scoring ---- */

static int next_window(void *user, pst_score_request *out, pst_error *err)
{
    pst_batch *b = user;
    pst_batch_entry *entry;
    int status = give_choice(b, &entry, err);
    if (status == 1)
        pst_batch_line_window(&b->rules, &entry->group->line, entry->choice, out);
    return status;
}

static int on_scored(void *user, size_t request, const pst_error *failure, pst_error *err)
{
    pst_batch *b = user;
    pst_batch_entry entry = take_entry(b, request);
    note_failure(entry.group, failure);
    return end_choice(b, entry.group, err);
}

static int on_logits(void *user, size_t request, uint32_t position, const float *logits, size_t vocab)
{
    (void)request;
    (void)position;
    (void)logits;
    (void)vocab;
    pst_batch *b = user;
    b->progress.tokens++;
    return pst_batch_tell(b, NULL) < 0;
}

/* ---- the run ---- */

static int run_lines(pst_batch *b, pst_session *session, pst_run_stats *stats, pst_error *err)
{
    const pst_generate_calls generate = {.next = next_request, .on_result = on_result, .on_token = on_token, .user = b};
    const pst_score_calls score = {.next = next_window, .on_result = on_scored, .on_logits = on_logits, .user = b};
    b->last_sync_ns = pst_clock_ns();
    int status;
    if (session == NULL) /* no line has anything to compute, or so it was measured */
        status = find_choice(b, err);
    else if (b->options.kind == PST_BATCH_SCORE)
        status = pst_score_stream(session, &score, stats, err);
    else
        status = pst_generate_stream(session, &generate, stats, err);
    if (status == 1 && session == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "the batch has requests and no session to run them");
    /* However it ended: what is answered stays. */
    int synced = pst_journal_sync(b->journal, status < 0 ? NULL : err);
    return status < 0 ? status : synced;
}

enum { WRITE_BYTES = 1 << 18 };

typedef struct output_file {
    int fd;
    char *path, *buffer;
    size_t filled;
    uint64_t offset;
} output_file;

static int flush(output_file *f, pst_error *err)
{
    ssize_t put = pst_sys_write_all(f->fd, f->buffer, f->filled, f->offset);
    if (put < 0)
        return pst_fail(err, (int)put, f->path, "cannot write: %s", pst_strerror((int)put));
    f->offset += f->filled;
    f->filled = 0;
    return 0;
}

static int put(output_file *f, const char *text, size_t bytes, pst_error *err)
{
    while (bytes > 0) {
        size_t room = WRITE_BYTES - f->filled, part = bytes < room ? bytes : room;
        memcpy(f->buffer + f->filled, text, part);
        f->filled += part;
        text += part;
        bytes -= part;
        if (f->filled == WRITE_BYTES)
            PST_TRY(flush(f, err));
    }
    return 0;
}

static int write_answers(pst_batch *b, output_file *f, pst_error *err)
{
    PST_TRY(pst_file_remove(f->path, err)); /* of a run that was killed here; the journal's lock makes it ours */
    f->fd = pst_sys->open(f->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (f->fd < 0)
        return pst_fail(err, f->fd, f->path, "cannot create: %s", pst_strerror(f->fd));
    b->progress = (pst_batch_progress){.phase = PST_BATCH_WRITING, .total = b->info.lines};
    for (uint64_t line = 0; line < b->info.lines; line++) {
        const char *text;
        size_t bytes;
        PST_TRY(pst_journal_read(b->journal, line, &text, &bytes, err));
        PST_TRY(put(f, text, bytes, err));
        b->progress.done++;
        PST_TRY(pst_batch_tell(b, err));
    }
    PST_TRY(flush(f, err));
    int status = pst_sys->close(f->fd);
    f->fd = -1;
    if (status < 0)
        return pst_fail(err, status, f->path, "cannot close: %s", pst_strerror(status));
    return pst_file_publish_rename(f->path, b->options.output, err);
}

static int write_output(pst_batch *b, pst_error *err)
{
    output_file f = {.fd = -1,
                     .path = pst_heap_printf("%s.partial-output", b->options.output),
                     .buffer = pst_heap_alloc(WRITE_BYTES)};
    int status = f.path != NULL && f.buffer != NULL ? write_answers(b, &f, err)
                                                    : pst_fail_memory(err, "the output", WRITE_BYTES);
    if (f.fd >= 0)
        pst_sys->close(f.fd);
    if (status < 0 && f.path != NULL)
        pst_file_remove(f.path, NULL); /* nothing to remove once it was renamed */
    pst_heap_free(f.path);
    pst_heap_free(f.buffer);
    PST_TRY(status);
    return pst_journal_remove(b->journal, err);
}

static int begin_run(pst_batch *b, pst_session *session, pst_error *err)
{
    char types[PST_BATCH_TYPES_BYTES] = "none";
    if (session != NULL)
        pst_batch_types(session, types);
    if (pst_journal_header(b->journal) != NULL)
        return session != NULL ? pst_batch_check_types(b, types, err) : 0;
    char *header = pst_batch_header(b, types);
    if (header == NULL)
        return pst_fail_memory(err, "the journal's header", 4096);
    int status = pst_journal_begin(b->journal, header, err);
    pst_heap_free(header);
    return status;
}

int pst_batch_run(pst_batch *b, pst_session *session, pst_batch_report *report, pst_run_stats *stats, pst_error *err)
{
    pst_batch_report done = {.lines = b->info.lines, .resumed = b->info.answered};
    pst_run_stats run = {0};
    if (!b->info.complete) {
        if (b->input == NULL || b->given > 0)
            return pst_fail(err, PST_E_USAGE, NULL, "a batch runs once; open it again to go on");
        PST_TRY(begin_run(b, session, err));
        b->progress = (pst_batch_progress){
            .phase = PST_BATCH_RUNNING, .total = b->info.lines, .done = b->info.answered, .before = b->info.answered};
        if (b->info.answered < b->info.lines)
            PST_TRY(run_lines(b, session, &run, err));
        done.answered = pst_journal_count(b->journal);
        done.failed = pst_journal_failed(b->journal);
        PST_TRY(write_output(b, err));
        b->info.complete = true;
    } else {
        done.answered = b->info.lines;
    }
    if (report != NULL)
        *report = done;
    if (stats != NULL)
        *stats = run;
    return 0;
}
