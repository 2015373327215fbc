/* SPDX-License-Identifier: Apache-2.0 */
/* What the ranks of a save tell each other. */
#include "ckpt/agree.h"

#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "base/heap.h"

/* The head of a record. Fixed widths, no pointers: ranks may be processes on other machines of the same kind. */
typedef struct head {
    int32_t status;
    uint32_t bytes; /* that follow: ranks that do not agree in this are lost to each other */
    uint64_t offset;
    char path[256];
    char message[240];
} head;

struct pst_ckpt_agree {
    pst_ckpt_ranks ranks; /* count is at least 1 */
    size_t max_bytes;
    size_t stride; /* of records at the last call */
    char *mine;    /* head and max_bytes */
    char *all;     /* count of these */
};

int pst_ckpt_agree_create(const pst_ckpt_ranks *ranks, size_t max_bytes, pst_ckpt_agree **out, pst_error *err)
{
    if (ranks != NULL && (ranks->count == 0 || ranks->rank >= ranks->count))
        return pst_fail(err, PST_E_USAGE, NULL, "there is no rank %u of %u", ranks->rank, ranks->count);
    if (ranks != NULL && ranks->count > 1 && ranks->all_gather == NULL)
        return pst_fail(err, PST_E_USAGE, NULL, "%u ranks, but no all_gather between them", ranks->count);
    pst_ckpt_agree *agree = pst_heap_calloc(1, sizeof *agree);
    if (agree == NULL)
        return pst_fail_memory(err, "what ranks tell each other", sizeof *agree);
    agree->ranks = ranks != NULL ? *ranks : (pst_ckpt_ranks){.count = 1};
    agree->max_bytes = max_bytes;
    agree->mine = pst_heap_calloc(1, sizeof(head) + max_bytes);
    agree->all = pst_heap_calloc(agree->ranks.count, sizeof(head) + max_bytes);
    if (agree->mine == NULL || agree->all == NULL) {
        pst_ckpt_agree_destroy(agree);
        return pst_fail_memory(err, "what ranks tell each other", sizeof(head) + max_bytes);
    }
    *out = agree;
    return 0;
}

void pst_ckpt_agree_destroy(pst_ckpt_agree *agree)
{
    if (agree == NULL)
        return;
    pst_heap_free(agree->mine);
    pst_heap_free(agree->all);
    pst_heap_free(agree);
}

uint32_t pst_ckpt_agree_rank(const pst_ckpt_agree *agree)
{
    return agree->ranks.rank;
}

uint32_t pst_ckpt_agree_count(const pst_ckpt_agree *agree)
{
    return agree->ranks.count;
}

/* Another rank's failure as an error here. */
static int pass_on(uint32_t rank, const head *from, pst_error *err)
{
    int code = from->status;
    pst_fail_at(err, code, NULL, from->offset, "rank %u: %.*s", rank, (int)sizeof from->message, from->message);
    if (err != NULL)
        snprintf(err->path, sizeof err->path, "%.*s", (int)sizeof from->path, from->path);
    return code;
}

/* What all of them told. */
static int judge(const pst_ckpt_agree *agree, int status, size_t bytes, pst_error *err)
{
    if (status < 0)
        return status;
    for (uint32_t i = 0; i < agree->ranks.count; i++) {
        head h;
        memcpy(&h, agree->all + i * agree->stride, sizeof h);
        if (h.bytes != bytes)
            return pst_fail(err, PST_E_USAGE, NULL,
                            "rank %u tells %u bytes where rank %u tells %zu: they are not in the "
                            "same phase of the same save",
                            i, h.bytes, agree->ranks.rank, bytes);
        if (h.status < 0)
            return pass_on(i, &h, err);
    }
    return 0;
}

int pst_ckpt_agree_tell(pst_ckpt_agree *agree, int status, const void *mine, size_t bytes, pst_error *err)
{
    head h = {.status = status < 0 ? status : 0, .bytes = (uint32_t)bytes, .offset = PST_NO_OFFSET};
    if (bytes > agree->max_bytes)
        return pst_fail(err, PST_E_USAGE, NULL, "a rank would tell %zu bytes at once", bytes);
    if (status < 0 && err != NULL) {
        h.offset = err->offset;
        snprintf(h.path, sizeof h.path, "%.*s", (int)sizeof h.path - 1, err->path);
        snprintf(h.message, sizeof h.message, "%.*s", (int)sizeof h.message - 1, err->message);
    }
    memcpy(agree->mine, &h, sizeof h);
    if (bytes > 0)
        memcpy(agree->mine + sizeof h, mine, bytes);
    agree->stride = sizeof h + bytes;
    if (agree->ranks.count == 1) {
        memcpy(agree->all, agree->mine, agree->stride);
        return status < 0 ? status : 0;
    }
    int gathered = agree->ranks.all_gather(agree->ranks.user, agree->mine, agree->stride, agree->all);
    if (gathered < 0 && status >= 0)
        return pst_fail(err, gathered, NULL, "the ranks of a save cannot reach each other: %s", pst_strerror(gathered));
    return gathered < 0 ? status : judge(agree, status, bytes, err);
}

const void *pst_ckpt_agree_told(const pst_ckpt_agree *agree, uint32_t rank)
{
    return agree->all + rank * agree->stride + sizeof(head);
}
