/* SPDX-License-Identifier: Apache-2.0 */
/* Passes as recordings; see recorder.h. */
#include "nn/recorder.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "device/device.h"

/* After so many failures nothing is recorded any more. */
enum { MOST_FAILURES = 3, MOST_DROPPED = 4 /* of one pass, and more */ };
/* Of a launch's arguments, of which a product has up to 4 KiB and others some hundred bytes, and what a vendor adds. */
enum { LAUNCH_BYTES = 2048, LAUNCHES_PER_STEP = 2 };

typedef struct known_pass {
    pst_recorder_key key;
    pst_device_recording *recording; /* NULL: the pass came once */
    uint64_t used;                   /* when: number of passes until then; 0: it is free */
} known_pass;

struct pst_recorder {
    pst_device *device;
    known_pass records[PST_RECORDINGS];
    pst_device_recording *dropped[MOST_DROPPED]; /* until nothing is under way: giving one back waits, and would
                                                  * hear of failures that are the pass's */
    uint32_t dropped_count;
    uint64_t passes;
    uint32_t failures;
    bool off;
};

int pst_recorder_create(pst_device *device, pst_recorder **out, pst_error *err)
{
    pst_recorder *r = pst_heap_calloc(1, sizeof *r);
    if (r == NULL)
        return pst_fail_memory(err, "the recordings of passes", sizeof *r);
    r->device = device;
    *out = r;
    return 0;
}

void pst_recorder_settle(pst_recorder *r)
{
    while (r->dropped_count > 0)
        r->device->ops->recording_destroy(r->device, r->dropped[--r->dropped_count]);
}

static void drop(pst_recorder *r, known_pass *record)
{
    if (record->recording == NULL)
        return;
    if (r->dropped_count == MOST_DROPPED)
        pst_recorder_settle(r);
    r->dropped[r->dropped_count++] = record->recording;
    record->recording = NULL;
}

void pst_recorder_destroy(pst_recorder *r)
{
    if (r == NULL)
        return;
    for (int i = 0; i < PST_RECORDINGS; i++)
        drop(r, &r->records[i]);
    pst_recorder_settle(r);
    pst_heap_free(r);
}

uint64_t pst_recorder_bytes(const pst_program *program)
{
    uint64_t launches = 0;
    for (uint32_t s = program->gathered_stages; s < program->stage_count; s++)
        launches += (uint64_t)LAUNCHES_PER_STEP * program->nn_stages[s].step_count;
    return sizeof(pst_recorder) + PST_RECORDINGS * launches * LAUNCH_BYTES;
}

/* The record of these numbers, or NULL with the one that they get in *out_oldest. */
static known_pass *find(pst_recorder *r, const pst_recorder_key *key, known_pass **out_oldest)
{
    *out_oldest = &r->records[0];
    for (known_pass *record = r->records; record < r->records + PST_RECORDINGS; record++) {
        if (record->used > 0 && memcmp(&record->key, key, sizeof *key) == 0)
            return record;
        if (record->used < (*out_oldest)->used)
            *out_oldest = record;
    }
    return NULL;
}

/* Something could not be recorded, or replayed for want of memory; the pass is run as it is. */
static void note_failure(pst_recorder *r, known_pass *record, const char *why)
{
    r->off = ++r->failures == MOST_FAILURES;
    pst_log(r->off ? PST_LOG_WARNING : PST_LOG_INFO, "device %s: recording a pass failed%s: %s", r->device->ops->name,
            r->off ? ", and is not tried again" : "", why);
    drop(r, record);
    record->used = 0; /* the next pass like this one is the first again */
}

/* Records the pass's calls: 1; 0: it did not work out, and the pass has to be run. */
static int try_recording(pst_recorder *r, known_pass *record, pst_recorder_pass *pass, void *context, pst_error *err)
{
    pst_device *device = r->device;
    pst_error cause = {.code = 0};
    int status = device->ops->record_begin(device);
    if (status == PST_E_UNSUPPORTED) { /* for good, and known from the start */
        r->off = true;
        return 0;
    }
    if (status < 0) {
        note_failure(r, record, device->ops->last_error(device));
        return 0;
    }
    status = pass(context, &cause);
    if (status < 0) {
        device->ops->record_end(device, NULL);
        if (status == PST_E_CANCELLED) {
            if (err != NULL)
                *err = cause;
            return status;
        }
        note_failure(r, record, cause.message);
        return 0;
    }
    status = device->ops->record_end(device, &record->recording);
    if (status < 0)
        note_failure(r, record, device->ops->last_error(device));
    return status >= 0;
}

/* 1: done; 0: the recording is gone. */
static int try_replay(pst_recorder *r, known_pass *record, pst_error *err)
{
    pst_device *device = r->device;
    int status = device->ops->replay(device, record->recording);
    if (status == 0)
        return 1;
    if (status == 1)
        drop(r, record);
    else if (status == -ENOMEM) /* then nothing was done */
        note_failure(r, record, device->ops->last_error(device));
    else
        return pst_device_fail(err, device, status, "replaying a pass");
    return 0;
}

static int run_whole(pst_recorder_pass *pass, void *context, pst_recorder_result *out, pst_error *err)
{
    PST_TRY(pass(context, err));
    *out = PST_RECORDER_RUN;
    return 0;
}

int pst_recorder_run(pst_recorder *r, const pst_recorder_key *key, pst_recorder_pass *pass, void *context,
                     pst_recorder_result *out, pst_error *err)
{
    known_pass *oldest, *record = r->off ? NULL : find(r, key, &oldest);
    int status;
    r->passes++;
    if (r->off)
        return run_whole(pass, context, out, err);
    if (record == NULL) {
        drop(r, oldest);
        oldest->key = *key;
        oldest->used = r->passes;
        return run_whole(pass, context, out, err);
    }
    record->used = r->passes;
    if (record->recording != NULL) {
        PST_TRY(status = try_replay(r, record, err));
        if (status == 1) {
            *out = PST_RECORDER_REPLAYED;
            return 0;
        }
    }
    if (record->used > 0) { /* it may have come to nothing just now */
        PST_TRY(status = try_recording(r, record, pass, context, err));
        if (status == 1)
            PST_TRY(status = try_replay(r, record, err));
        if (status == 1) {
            *out = PST_RECORDER_RECORDED;
            return 0;
        }
    }
    return run_whole(pass, context, out, err);
}
