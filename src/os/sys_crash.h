/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A system-call table on which the power can fail. Tests put it in place with pst_sys_replace(&pst_sys_crash), watch a
 * folder, run what they test, and let the power fail at the nth step; then they look at the states in which the failure
 * may have left the folder.
 *
 *     pst_sys_replace(&pst_sys_crash);
 *     pst_crash_watch(folder, &err);            what is there now is durable
 *     pst_crash_at(step);
 *     status = publish(...);                    -EIO from the step on
 *     for each loss and seed:
 *         pst_crash_recover(loss, seed, &err);  puts the folder into that state
 *         ... open it and check ...
 *     pst_crash_forget();
 *     pst_sys_replace(NULL);
 *
 * Until the power fails, calls work on the real files; only the syncs do not reach the file system, which makes tests
 * fast. What is durable is kept beside them, in memory. Transfers of io_uring and libaio are seen through
 * `async_result`. All that happens below the folder must go through the table: files that come into being behind its
 * back, or under it by other calls, are not there after a failure. Any thread may call the table; the functions here
 * belong to one thread, and pst_crash_recover and pst_crash_forget run while no other works in the folder.
 *
 * What is promised, and nothing beyond it:
 *  - fdatasync and fsync of a file make durable what was written to it before, and its length; not its name.
 *  - fsync and fdatasync of a folder make durable which names it holds and what they stand for; not the content of
 *    what they stand for, and not the folder's own name in the folder above.
 *  - Everything else may be lost, whenever the power fails: data sector by sector (512 bytes of the file), the length
 *    apart from the data (a file may be long and hold zeros), each change of a folder by itself. Closing makes nothing
 *    durable, and neither does renaming.
 *  - A rename within a folder happens wholly or not, and so does an exchange of two names in it. Between folders the old name may come back when only the new folder
 *    was synced; a sync of the old folder makes the new name durable too, so that what was moved is never lost.
 *  - What was durable stays: no other sector, file or name suffers.
 *
 * So this is POSIX with directories that need a sync, about what ext4 promises in its mode data=writeback and without
 * delayed allocation's heuristics. Real file systems promise more: ext4 and XFS keep the order of metadata changes, and
 * commit all of them when any file is synced; a new file's fsync there makes its name durable as well; ext4 in its mode
 * data=ordered writes data before the length that shows it, and flushes a file that is renamed over another. What holds
 * here holds there. In one thing they promise less: of several unsynced writes to one sector, this table knows the last
 * one only, and a sector is either that or what was durable.
 */
#ifndef PST_OS_SYS_CRASH_H
#define PST_OS_SYS_CRASH_H

#include "os/sys.h"
#include "penstock/types.h"

extern const pst_sys_table pst_sys_crash;

/* Starts to watch everything below `folder`, with all counts at zero and no failure ahead. What is there now counts as
 * durable and is read into memory: regular files, folders, symbolic links; anything else is PST_E_UNSUPPORTED. One
 * folder at a time. Hard links are known only where they are there already. */
int pst_crash_watch(const char *folder, pst_error *err);
/* Ends it and frees everything. The folder stays as it is. Calls pass through from then on. */
void pst_crash_forget(void);

/* A step is a call that changes what is durable or may be lost: a write, truncation, allocation, creation, rename,
 * removal, or sync below the folder, also one that fails by itself. The power fails at step `step`, counted from 0 since
 * pst_crash_watch, before it has any effect, except that a write that is struck may leave any of its sectors. It answers
 * -EIO, and so does every later call below the folder (closing closes all the same); what a ring still carries out
 * after that has no effect on what is found later. -1: never. */
void pst_crash_at(int64_t step);
/* The same, counting syncs only; the struck sync made nothing durable. */
void pst_crash_at_sync(int64_t sync);
int64_t pst_crash_steps(void); /* so far */
int64_t pst_crash_syncs(void);
bool pst_crash_happened(void);

/* What becomes of things that were not synced. */
typedef enum pst_crash_loss {
    PST_CRASH_LOSE_ALL, /* nothing of it survives */
    PST_CRASH_KEEP_ALL, /* everything survives, as if the cache had been written back just in time */
    PST_CRASH_MIXED /* each sector, each length and each change of a folder survives or not, by chance; of the changes
                           of one folder, later ones may survive earlier ones. The seeds 0 to 24 go through all pairs of
                           chances of 50, 0, 25, 75 and 100 % for data and for changes of folders, larger ones repeat
                           these with other dice */
} pst_crash_loss;

/* Puts the folder into a state after the failure. If the power has not failed, it fails now. The same seed gives the
 * same state. It may be called again and again, for other states after the same failure; descriptors from before it
 * stand for files that are gone. From the first call on the table passes calls through to the real one. */
int pst_crash_recover(pst_crash_loss loss, uint64_t seed, pst_error *err);

#endif
