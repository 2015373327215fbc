/* SPDX-License-Identifier: Apache-2.0 */
/* penstock bench save: checkpoints saved, durable, beside other libraries and the drive's ceiling. */
#include "cmd_bench_ckpt.h"

#define AT(member) .offset = offsetof(ckpt_values, member)

static const pst_option how_rows[] = {
    {.name = "from",
     .type = PST_OPTION_STRING,
     AT(from),
     .metavar = "PATH",
     .help =
         "tensors of the names, types and shapes of this checkpoint's, instead of --size and --tensors; its data is "
         "not read"},
    {.name = "no-digests", .type = PST_OPTION_FLAG, AT(no_digests), .help = "without digests of the tensors"},
    {.name = "ring",
     .type = PST_OPTION_SIZE,
     AT(ring),
     .metavar = "SIZE",
     .min = 1 << 20,
     .max = 1e12,
     .help = "memory that tensors stream through; without it the library's default"},
    CLI_NUMBER_ROW(ckpt_values, ranks, "ranks", "1", 1, 1024,
                   "so many processes save one checkpoint together, each its share of the bytes"),
};

static const pst_option_group groups[] = {
    CLI_OWN_GROUP("Work", ckpt_work_rows),
    CLI_OWN_GROUP("How it is done", how_rows),
    CLI_SHARED_GROUP("Drives", cli_io_rows, ckpt_values, io),
    CLI_OWN_GROUP("Comparison and chart", ckpt_report_rows),
    CLI_SHARED_GROUP("Output", cli_report_rows, ckpt_values, report),
};

static int bench_save(const void *all_values, const pst_options_found *found, pst_error *err)
{
    ckpt_job job = {.values = all_values, .place = found->operands[0]};
    return ckpt_measure(&job, err);
}

const cli_command cli_command_bench_save = {
    .spec =
        {.name = "bench save",
         .operands = "DIR",
         .min_operands = 1,
         .max_operands = 1,
         .summary = "checkpoints saved, measured, also beside torch.save, safetensors, DeepSpeed and fio",
         .description =
             "Makes tensors of --size in memory, saves them as a checkpoint in DIR until it is durable, and removes it "
             "again. Seconds include the final syncs of file and folder, on all sides. The report has every "
             "repetition as JSON, and the median, lowest and highest rate as text, each beside fio's where it is "
             "compared: fio writes as many bytes in one file, direct and sequential, and syncs it, with the fastest "
             "of several settings, which is what the drive can do.\n\n"
             "All sides take turns, another one being first each time. Each run of another library is a process of "
             "its own, whose start and whose making of tensors is not counted.",
         .example = "  penstock bench save /mnt/nvme --size 4G --format pt\n"
                    "  penstock bench save /mnt/nvme --size 1G,4G,16G --against fio,torch,safetensors --loops 5 "
                    "--plot save.svg\n",
         .groups = groups,
         .group_count = CLI_COUNT(groups),
         .values_bytes = sizeof(ckpt_values)},
    .run = bench_save,
};
