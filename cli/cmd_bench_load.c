/* SPDX-License-Identifier: Apache-2.0 */
/* penstock bench load: checkpoints loaded cold, beside other libraries and the drive's ceiling. */
#include <string.h>
#include <sys/stat.h>

#include "cmd_bench_ckpt.h"

#define AT(member) .offset = offsetof(ckpt_values, member)

static const pst_option how_rows[] = {
    {.name = "verify", .type = PST_OPTION_FLAG, AT(verify), .help = "check the tensors' digests"},
    {.name = "small-pages",
     .type = PST_OPTION_FLAG,
     AT(small_pages),
     .help = "the tensors' memory is in pages of 4 KiB, as memory that was in use before may be; default: huge pages, "
             "which fresh memory gets"},
    {.name = "ring",
     .type = PST_OPTION_SIZE,
     AT(ring),
     .metavar = "SIZE",
     .min = 1 << 20,
     .max = 1e12,
     .help = "memory beside the tensors', for digests; without it the library's default"},
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Work", ckpt_work_rows),
    CLI_OWN_GROUP("How it is done", how_rows),
    CLI_SHARED_GROUP("Drives", cli_io_rows, ckpt_values, io),
    CLI_OWN_GROUP("Comparison and chart", ckpt_report_rows),
    CLI_SHARED_GROUP("Output", cli_report_rows, ckpt_values, report),
};

/* A file is loaded; a folder is, if it is a checkpoint and no size is asked for. */
static int find_given(ckpt_job *job, const pst_options_found *found, pst_error *err)
{
    struct stat about;
    bool is_folder = stat(job->place, &about) == 0 && S_ISDIR(about.st_mode);
    pst_error ignored;
    if (is_folder && pst_options_given(&cli_command_bench_load.spec, found, "size"))
        return 0;
    int status = ckpt_find_format(job->place, &job->format, is_folder ? &ignored : err);
    job->given = status >= 0;
    return is_folder ? 0 : status;
}

static int bench_load(const void *all_values, const pst_options_found *found, pst_error *err)
{
    ckpt_job job = {.values = all_values, .place = found->operands[0], .load = true};
    PST_TRY(find_given(&job, found, err));
    return ckpt_measure(&job, err);
}

const cli_command cli_command_bench_load = {
    .spec =
        {.name = "bench load",
         .operands = "DIR|CHECKPOINT",
         .min_operands = 1,
         .max_operands = 1,
         .summary = "checkpoints loaded, measured, also beside torch.load, safetensors and fio",
         .description =
             "Loads a checkpoint (a file of torch.save or safetensors, or a folder of them), or makes one of --size "
             "in DIR, loads that and removes it again. The page cache holds nothing of it when a load begins. This "
             "library opens it and reads all tensors into memory that is there already; the others make their "
             "memory themselves, and every page of it is touched, since some only map the file. fio reads as many "
             "bytes of the same file, direct and sequential, with the fastest of several settings.\n\n"
             "All sides take turns, another one being first each time. Each run of another library is a process of "
             "its own, whose start is not counted.",
         .example = "  penstock bench load /mnt/nvme --size 4G --format pt --against fio,torch\n"
                    "  penstock bench load model.safetensors --verify\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(ckpt_values)},
    .run = bench_load,
};
